"""How fast a worker moves the log into PostgreSQL, beside COPY of the same rows encoded beforehand."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg

from coffee_rt.bench.orders import fill_log, make_orders
from coffee_rt.bench.posts import Progress
from coffee_rt.bench.results import Figure, with_ratio
from coffee_rt.bench.stack import Stack
from coffee_rt.domain.ids import IdMinter
from coffee_rt.runtime.settings import DatabaseSettings
from coffee_rt.store.definitions import load_definitions
from coffee_rt.store.keeper import PostgresKeeper
from coffee_rt.store.migrations import migrate
from coffee_rt.store.order_rows import COLUMNS, RowEncoder
from coffee_rt.store.pool import Pool, copy_into, create_pool
from coffee_rt.store.view_catalogue import PostgresViewCatalogue
from coffee_rt.store.view_repair import PostgresViewRepairer
from coffee_rt.streams.shards import LogKeys

NAMESPACE = "bench"
DRAIN_SECONDS_MAX = 300.0
COPY_RECORDS = 10_000


async def prepare_store(url: str) -> Pool:
    """Schema, the built-in views and today's partitions: what a worker finds after an install."""
    await migrate(url)
    pool = await create_pool(DatabaseSettings(url=url))
    await PostgresKeeper(pool).ensure_partitions(int(time.time() * 1000), 2)
    repairer = PostgresViewRepairer(pool)
    for internal in await PostgresViewCatalogue(pool).ensure_views(load_definitions()):
        await repairer.mark_backfilled(internal, None)
    return pool


async def measure_keyed_worker(say: Progress, *, orders: int) -> Figure:
    """What remembering every order's Idempotency-Key costs a worker: the ceiling is the same without keys."""
    plain, keyed = [
        await measure_worker(say, orders=orders, records_per_entry=30, is_keyed=is_keyed)
        for is_keyed in (False, True)
    ]
    keyed.name, keyed.what = "worker_keyed", "worker, 30 records an entry, each with a key"
    keyed.ceiling, keyed.ceiling_is = plain.value, "the same orders without keys, just before"
    keyed.goal = ""
    keyed.notes["worker_cpu_us_per_order_without"] = plain.notes["worker_cpu_us_per_order"]
    return with_ratio(keyed)


async def measure_worker(
    say: Progress, *, orders: int, records_per_entry: int, is_keyed: bool = False
) -> Figure:
    """Orders a second from the log into PostgreSQL, ledger and the deltas of both views included."""
    is_single = records_per_entry == 1
    with Stack() as stack:
        pool = await prepare_store(stack.postgres.url)
        say(f"worker: filling the log with {orders} orders, {records_per_entry} an entry")
        keys = LogKeys(NAMESPACE, stack.shards)
        total = await fill_log(
            stack.valkey.url,
            keys,
            orders=orders,
            records_per_entry=records_per_entry,
            now_ms=int(time.time() * 1000),
            is_keyed=is_keyed,
        )
        say("worker: draining it")
        worker = stack.process("worker", COFFEE_RT_NAMESPACE=NAMESPACE)
        rate = await _drain_rate(pool, total)
        cpu_us = worker.cpu_seconds / total * 1e6
        memory = worker.memory_bytes
        stack.end(worker)
        say("worker: the ceiling, COPY of rows encoded beforehand")
        ceiling = await _copy_rate(pool, orders=min(orders, 500_000))
        await pool.close()
    figure = Figure(
        name="worker_single" if is_single else "worker",
        what=f"worker, {records_per_entry} records an entry, ledger and deltas of both views",
        value=round(rate),
        unit="orders/s",
        ceiling=round(ceiling),
        ceiling_is="pre-encoded binary COPY into the same table",
        goal=">= 25000 orders/s" if is_single else ">= 90000 orders/s and >= 0.25",
        notes={
            "worker_cpu_us_per_order": round(cpu_us, 2),
            "worker_memory_mb": round(memory / 1e6),
            "orders": total,
        },
    )
    return with_ratio(figure)


async def _drain_rate(pool: Pool, total: int) -> float:
    """Orders a second between the first tenth and the last: start-up and tail don't count."""
    low, high = total // 10, total * 9 // 10
    deadline = time.monotonic() + DRAIN_SECONDS_MAX
    first: tuple[float, int] | None = None
    while time.monotonic() < deadline:
        stored = int(await pool.fetchval("SELECT coalesce(sum(stored), 0) FROM stream_entries"))
        now = time.perf_counter()
        if first is None and stored >= low:
            first = (now, stored)
        if first is not None and stored >= high and stored > first[1]:
            await _wait_until_all(pool, total, deadline)
            return (stored - first[1]) / (now - first[0])
        await asyncio.sleep(0.05)
    raise RuntimeError(f"the worker did not drain {total} orders in {DRAIN_SECONDS_MAX:.0f} s")


async def _wait_until_all(pool: Pool, total: int, deadline: float) -> None:
    while time.monotonic() < deadline:
        if int(await pool.fetchval("SELECT count(*) FROM orders")) == total:
            return
        await asyncio.sleep(0.2)
    raise RuntimeError("orders are missing after the drain")


async def _copy_rate(pool: Pool, *, orders: int) -> float:
    """COPY of rows like the worker's, encoded before the clock starts, one transaction a batch."""
    minter, encoder = IdMinter(), RowEncoder()
    now_ms = int(time.time() * 1000)
    payloads = []
    for _ in range(max(1, orders // COPY_RECORDS)):
        batch = make_orders(COPY_RECORDS, now_ms, minter)
        payloads.append(encoder.encode([(order.order_id, order, bytes(16)) for order in batch]))
    connection: asyncpg.Connection[Any]
    async with pool.connection() as connection:
        began = time.perf_counter()
        for payload in payloads:
            await copy_into(connection, "orders", COLUMNS, payload)
        spent = time.perf_counter() - began
    return len(payloads) * COPY_RECORDS / spent
