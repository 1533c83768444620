"""A worker's commit in small, for tests of views: orders and deltas in one transaction, step by step.

The steps are open, so that a test can stand between them: hold a commit back, let others overtake it.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from coffee_rt.domain.orders import Order
from coffee_rt.domain.views import ViewDefinition, compute_deltas
from coffee_rt.runtime.settings import DatabaseSettings
from coffee_rt.store.order_rows import COLUMNS, RowEncoder
from coffee_rt.store.pool import Pool, copy_into, create_pool
from coffee_rt.store.view_catalogue import PostgresViewCatalogue
from coffee_rt.store.view_contract import LaneKey
from coffee_rt.store.view_fold import PostgresViewFolder
from coffee_rt.store.view_tables import (
    CATALOGUE_LOCK,
    Catalogue,
    LiveView,
    delta_copy_target,
    encode_deltas,
    load_catalogue,
    read_generation,
)
from tests.builders import NOW_MS, a_view, an_order


@asynccontextmanager
async def a_pool(database_url: str, connections: int = 12) -> AsyncIterator[Pool]:
    pool = await create_pool(DatabaseSettings(url=database_url, pool_size_max=connections))
    try:
        yield pool
    finally:
        await pool.close()


async def ensure_partition(pool: Pool) -> None:
    """One partition for every id there can be."""
    await pool.execute(
        "CREATE TABLE IF NOT EXISTS orders_all PARTITION OF orders"
        " FOR VALUES FROM (MINVALUE) TO (MAXVALUE)"
    )


async def write_orders(connection: Any, catalogue: Catalogue, orders: Sequence[Order]) -> None:
    """What a commit does after it knows the catalogue."""
    rows = sorted(((order.order_id, order, bytes(16)) for order in orders), key=lambda row: row[0])
    await copy_into(connection, "orders", COLUMNS, RowEncoder().encode(rows))
    for view in catalogue.views:
        deltas = compute_deltas(view.definition, list(orders))
        table, columns = delta_copy_target(view)
        await copy_into(connection, table, columns, encode_deltas(view, deltas))


async def commit_orders(
    pool: Pool, orders: Sequence[Order], *, cached: Catalogue | None = None
) -> None:
    """One commit: lock, generation in a new statement, catalogue, rows, deltas. With `cached` it behaves
    as a worker that knows that catalogue already and reloads it only when the generation differs."""
    async with pool.transaction() as connection:
        await connection.execute(f"SELECT pg_advisory_xact_lock_shared({CATALOGUE_LOCK})")
        if cached is None or await read_generation(connection) != cached.generation:
            cached = await load_catalogue(connection)
        await write_orders(connection, cached, orders)


async def write_deltas(pool: Pool, view: LiveView, orders: Sequence[Order]) -> None:
    """Deltas alone: for what must not depend on orders."""
    async with pool.connection() as connection:
        table, columns = delta_copy_target(view)
        payload = encode_deltas(view, compute_deltas(view.definition, list(orders)))
        await copy_into(connection, table, columns, payload)


async def live_view(pool: Pool, name: str = "sales") -> LiveView:
    async with pool.connection() as connection:
        catalogue = await load_catalogue(connection)
    return next(v for v in catalogue.views if v.definition.name == name and v.is_current)


async def fold_all(folder: PostgresViewFolder, view: LiveView, deltas_max: int = 10_000) -> int:
    """Fold every lane until nothing waits; how many folds it took."""
    folds = 0
    for lane in range(view.definition.lanes):
        while await folder.fold_lane(LaneKey(view.internal, lane), deltas_max, 10_000) is not None:
            folds += 1
    return folds


async def stored_rows(pool: Pool, view: LiveView) -> dict[tuple[Any, ...], list[int | None]]:
    """The view's folded rows: group -> measures."""
    definition = view.definition
    names = [measure.name for measure in definition.measures]
    rows = await pool.fetch(f"SELECT * FROM mv_{view.internal}")
    return {
        (
            row["tenant"],
            int(row["bucket"].timestamp()),
            *(row[name] for name in definition.dimension_columns),
        ): [None if row[name] is None else int(row[name]) for name in names]
        for row in rows
    }


def expected_rows(
    definition: ViewDefinition, orders: Sequence[Order]
) -> dict[tuple[Any, ...], list[int | None]]:
    deltas = compute_deltas(definition, list(orders))
    return {group: list(delta.measures) for group, delta in deltas.items()}


async def a_live_view(pool: Pool, **changes: object) -> LiveView:
    """A view made as the aggregator makes it, that keeps orders of any age."""
    await ensure_partition(pool)
    lasting: dict[str, object] = {"retention_days": 36_500}
    await PostgresViewCatalogue(pool).ensure_views([a_view("sales", **(lasting | changes))])
    return await live_view(pool)


def some_orders(number: int, seed: int = 1, hours: int = 3) -> list[Order]:
    """Orders of a few tenants, stores and drinks over the hours before NOW_MS."""
    chance = random.Random(seed)
    return [
        an_order(
            tenant=chance.randrange(2),
            store=chance.choice(("uptown", "harbour", "Łódź ☕")),
            drink=chance.choice(("latte", "mocha", "tea")),
            price_minor=chance.randrange(1, 10**12),
            quantity=chance.randrange(1, 10_000),
            ordered_at_us=NOW_MS * 1000 - chance.randrange(0, hours * 3600 * 1_000_000),
        )
        for _ in range(number)
    ]
