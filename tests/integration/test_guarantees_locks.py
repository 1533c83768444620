"""Workers that meet on the same entries wait for each other; they never deadlock."""

from __future__ import annotations

import asyncio

import pytest

from coffee_rt.runtime.settings import DatabaseSettings
from coffee_rt.store.orders import PostgresOrderWriter
from coffee_rt.store.pool import create_pool
from tests.builders import an_order
from tests.store_harness import an_entry

pytestmark = pytest.mark.integration

ROUNDS = 12
ENTRIES = 400


async def test_two_workers_take_the_same_entries_in_any_order_without_deadlock(
    database_url: str,
) -> None:
    """Ledger rows are taken in the order of their ids, however the entries came. Without that, two workers
    that hold each other's next row would wait for ever, and PostgreSQL would end one of them: its commit would raise."""
    pool = await create_pool(DatabaseSettings(url=database_url))
    try:
        for _ in range(ROUNDS):
            entries = [an_entry(an_order()) for _ in range(ENTRIES)]
            writers = PostgresOrderWriter(pool), PostgresOrderWriter(pool)
            batches = writers[0].prepare(entries), writers[1].prepare(entries[::-1])
            first, second = await asyncio.gather(
                writers[0].commit(batches[0]), writers[1].commit(batches[1])
            )
            seen = sum(outcome.seen_before for outcome in (*first.outcomes, *second.outcomes))
            assert seen == ENTRIES
    finally:
        await pool.close()
