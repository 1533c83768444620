"""What a fold costs as the store grows: the same work at each size, so that growth would show."""

from __future__ import annotations

import time
from statistics import median

from coffee_rt.bench.orders import make_orders
from coffee_rt.bench.posts import Progress
from coffee_rt.bench.results import Figure
from coffee_rt.bench.stack import Stack
from coffee_rt.bench.workers import prepare_store
from coffee_rt.domain.ids import IdMinter
from coffee_rt.store.contract import EntryWrite
from coffee_rt.store.keeper import PostgresKeeper
from coffee_rt.store.orders import PostgresOrderWriter
from coffee_rt.store.pool import Pool
from coffee_rt.store.view_catalogue import PostgresViewCatalogue
from coffee_rt.store.view_fold import PostgresViewFolder
from coffee_rt.store.view_repair import PostgresViewRepairer

BATCH_RECORDS = 500
BATCHES = 100
FILL_ROWS = 1_000_000
FILL_DAYS = 21
DELTAS_MAX = 10_000

# Purpose: grow the table by rows of the last 20 days, as orders that were on time.
_FILL = """
INSERT INTO orders (order_id, batch_id, body_hash, price_minor, ordered_at, accepted_at, tenant, quantity,
                    is_late, store, drink)
SELECT (lpad(to_hex(at_ms), 12, '0') || '7' || lpad(to_hex(n % 4096), 3, '0') || '8'
        || substr(md5(n::text), 1, 15))::uuid,
       gen_random_uuid(), '\\x00', 200 + n % 350, to_timestamp(at_ms / 1000.0),
       to_timestamp(at_ms / 1000.0), 0, 1 + n % 3, false, 'store ' || n % 20,
       (ARRAY['latte', 'cappuccino', 'americano', 'flat white', 'mocha', 'tea', 'espresso'])[1 + n % 7]
FROM (SELECT n, $2::bigint - (n % 1728000) * 1000 AS at_ms FROM generate_series($1::bigint, $3::bigint) AS n)
"""


async def measure_fold(say: Progress, *, sizes: list[int]) -> Figure:
    """Microseconds of folding an order, at each number of stored orders."""
    costs: dict[int, float] = {}
    writes: dict[int, float] = {}
    with Stack() as stack:
        pool = await prepare_store(stack.postgres.url)
        stored = 0
        for size in sizes:
            say(f"fold: growing the store to {size} orders")
            stored = await grow(pool, stored, size)
            say("fold: recomputing the views, then folding new orders")
            await rebuild_views(pool)
            await pool.execute("ANALYZE")
            costs[size], writes[size] = await _fold_cost(pool)
        await pool.close()
    first, last = costs[sizes[0]], costs[sizes[-1]]
    return Figure(
        name="fold",
        what=f"folding a new order, {sizes[-1]} stored against {sizes[0]}",
        value=round(last, 2),
        unit="us/order",
        ceiling=round(first, 2),
        ceiling_is=f"the same with {sizes[0]} stored",
        ratio=round(last / first, 3),
        goal="ratio 0.8 to 1.2: flat",
        notes={
            "us_per_order": {str(size): round(cost, 2) for size, cost in costs.items()},
            "write_us_per_order": {str(size): round(cost, 2) for size, cost in writes.items()},
        },
    )


async def grow(pool: Pool, stored: int, size: int) -> int:
    """Add orders of the last days until `size` are stored; how many there are."""
    now_ms = int(time.time() * 1000)
    await PostgresKeeper(pool).ensure_partitions(now_ms - FILL_DAYS * 86_400_000, FILL_DAYS + 2)
    while stored < size:
        rows = min(FILL_ROWS, size - stored)
        async with pool.transaction() as connection:
            await connection.execute("SET LOCAL statement_timeout = 0")
            await connection.execute(_FILL, stored, now_ms, stored + rows - 1, timeout=600)
        stored += rows
    return stored


async def rebuild_views(pool: Pool) -> None:
    """Recompute every view from the orders."""
    repairer = PostgresViewRepairer(pool)
    for state in await PostgresViewCatalogue(pool).views():
        for chunk in await repairer.plan_chunks(state.internal, None, None):
            await repairer.rebuild_chunk(chunk)


async def _fold_cost(pool: Pool) -> tuple[float, float]:
    """Median microseconds an order of folding a batch, and of writing it."""
    writer, folder = PostgresOrderWriter(pool), PostgresViewFolder(pool)
    await writer.refresh_catalogue()
    minter = IdMinter()
    folds, writes = [], []
    for number in range(BATCHES):
        now_ms = int(time.time() * 1000)
        entry = EntryWrite(
            shard=0,
            entry=(now_ms, number),
            batch_id=minter.mint(now_ms),
            counter=number * BATCH_RECORDS,
            records=BATCH_RECORDS,
            orders=make_orders(BATCH_RECORDS, now_ms, minter),
        )
        began = time.perf_counter()
        await writer.commit(writer.prepare([entry]))
        written = time.perf_counter()
        for work in await folder.waiting_lanes():
            await folder.fold_lane(work.key, DELTAS_MAX, DELTAS_MAX)
        folds.append(time.perf_counter() - written)
        writes.append(written - began)
    return median(folds) / BATCH_RECORDS * 1e6, median(writes) / BATCH_RECORDS * 1e6
