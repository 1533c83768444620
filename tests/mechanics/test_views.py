"""What a lane's lock and floor are for, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

from coffee_rt.domain.orders import Order
from coffee_rt.domain.views import compute_deltas
from coffee_rt.store.pool import copy_into
from coffee_rt.store.view_contract import LaneKey
from coffee_rt.store.view_fold import PostgresViewFolder
from coffee_rt.store.view_tables import LiveView, delta_copy_target, encode_deltas
from tests.builders import an_order
from tests.view_writing import (
    a_live_view,
    a_pool,
    expected_rows,
    fold_all,
    some_orders,
    stored_rows,
    write_deltas,
)

pytestmark = pytest.mark.integration

FOLDS = 40


async def _index_entries_read(connection: Any, index: str) -> int:
    """Entries of an index that scans have looked at, dead ones included."""
    await connection.execute("SELECT pg_stat_force_next_flush()")
    return int(
        await connection.fetchval(
            "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = $1", index
        )
    )


async def test_folds_beside_an_old_snapshot_read_no_more_each_time(database_url: str) -> None:
    """An old snapshot keeps every folded delta in the index: a fold must not walk over them again."""
    async with a_pool(database_url, connections=1) as pool:
        view = await a_live_view(pool, lanes=1)
        folder = PostgresViewFolder(pool)
        reporting = await asyncpg.connect(database_url)
        await reporting.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT 1")
        orders = some_orders(20)
        folded = 0
        for _ in range(FOLDS):
            await write_deltas(pool, view, orders)
            fold = await folder.fold_lane(LaneKey(view.internal, 0), 1_000, 1_000)
            assert fold is not None
            folded += fold.folded_deltas
        async with pool.connection() as connection:
            read = await _index_entries_read(connection, f"mv_{view.internal}_deltas_unfolded")
        await reporting.close()
    assert folded <= read <= 4 * folded


async def _copy_deltas(connection: Any, view: LiveView, orders: Sequence[Order]) -> None:
    table, columns = delta_copy_target(view)
    payload = encode_deltas(view, compute_deltas(view.definition, list(orders)))
    await copy_into(connection, table, columns, payload)


async def test_a_fold_that_begins_before_the_last_one_ends_leaves_nothing_behind(
    database_url: str,
) -> None:
    """A fold that had looked for deltas before it had the lane would find some that are gone already, take
    the rest for all there are, and raise the floor above those that it had no room for."""
    early = [an_order(store=f"early-{number}") for number in range(3)]
    late = [an_order(store=f"late-{number}") for number in range(10)]
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool, lanes=1)
        folder, key = PostgresViewFolder(pool), LaneKey(view.internal, 0)
        async with pool.transaction() as folding:
            async with pool.transaction() as slow:
                await _copy_deltas(slow, view, early)
                await write_deltas(pool, view, late)
                await folding.fetch(f"SELECT * FROM mv_{view.internal}_fold($1, 7, 100)", [0])
            beginning = asyncio.create_task(folder.fold_lane(key, 7, 100))
            # Long enough for it to have begun; what it finds is right in any case.
            await asyncio.sleep(0.1)
        await beginning
        await fold_all(folder, view, deltas_max=7)
        assert await stored_rows(pool, view) == expected_rows(view.definition, [*early, *late])
