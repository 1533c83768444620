"""What a commit's locks, a pooler's rules and the trim's single call are for, on real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from coffee_rt.runtime.settings import DatabaseSettings
from coffee_rt.store.orders import PostgresOrderWriter
from coffee_rt.store.pool import Pool, create_pool
from coffee_rt.store.view_catalogue import PostgresViewCatalogue, _create, _raise_generation
from tests.builders import NOW_MS, a_view, an_order
from tests.store_harness import WriteStore, a_write_store, an_entry
from tests.streams_bed import RedisBed, an_append

pytestmark = pytest.mark.integration

ORDERS = 300


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[WriteStore]:
    async with a_write_store(database_url) as made:
        yield made


@pytest.fixture
async def bed(valkey_url: str, redis_namespace: str) -> AsyncIterator[RedisBed]:
    made = RedisBed(valkey_url, redis_namespace)
    yield made
    await made.close()


def the_pool(store: WriteStore) -> Pool:
    assert store.pool is not None
    return store.pool


async def test_the_same_orders_in_two_entries_are_stored_once_without_deadlock(
    store: WriteStore, database_url: str
) -> None:
    """As after a lost answer without a key, or a log that was restored beside its later entries. A third
    transaction holds an id in the middle, so that both workers stand half-way when it goes."""
    pool = the_pool(store)
    await store.commit(an_entry(an_order()))
    orders = [an_order() for _ in range(ORDERS)]
    middle = orders[ORDERS // 2]
    other = await asyncpg.connect(database_url)
    await other.execute(
        f"""BEGIN; INSERT INTO orders SELECT '{middle.order_id.hex()}', batch_id,
        '\\x{middle.body_hash.hex()}', price_minor, ordered_at, accepted_at, tenant, quantity,
        is_late, store, drink FROM orders"""
    )
    commits = []
    for number, entry in enumerate((an_entry(*orders), an_entry(*orders[::-1])), start=1):
        writer = PostgresOrderWriter(pool)
        commits.append(asyncio.create_task(writer.commit(writer.prepare([entry]))))
        async with asyncio.timeout(20):
            while await _waiting_for_locks(pool) < number:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    await other.execute("ROLLBACK")
    outcomes = [outcome for each in await asyncio.gather(*commits) for outcome in each.outcomes]
    assert sum(outcome.stored for outcome in outcomes) == ORDERS
    assert sum(outcome.duplicates for outcome in outcomes) == ORDERS
    await other.close()


async def _waiting_for_locks(pool: Pool) -> int:
    return int(
        await pool.fetchval(
            """SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'"""
        )
    )


async def test_a_commit_that_waited_for_a_new_view_carries_its_deltas(store: WriteStore) -> None:
    """The commit begins before the view is there, and gets its snapshot for the views after."""
    pool = the_pool(store)
    await store.writer.refresh_catalogue()
    await store.keeper.ensure_partitions(NOW_MS, 1)
    batch = store.writer.prepare([an_entry(an_order(), an_order())])
    is_made, may_end = asyncio.Event(), asyncio.Event()

    async def make(connection: Any) -> None:
        generation = await _raise_generation(connection)
        await _create(connection, a_view(), generation, "file", is_current=True)
        is_made.set()
        await may_end.wait()

    changing = asyncio.create_task(PostgresViewCatalogue(pool)._change(make))
    await is_made.wait()
    commit = asyncio.create_task(store.writer.commit(batch))
    async with asyncio.timeout(20):
        while not (commit.done() or await _is_somebody_waiting(pool)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    may_end.set()
    await changing
    await commit
    assert await store.delta_sums("sales", "orders") == 2


async def _is_somebody_waiting(pool: Pool) -> bool:
    waiting = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    return bool(await pool.fetchval(waiting))


async def test_a_poolers_session_is_left_as_it_was(database_url: str) -> None:
    """What a transaction pooler can't carry from one server to another: settings and named statements."""
    pool = await create_pool(DatabaseSettings(url=database_url, statement_cache_size=0))
    try:
        async with pool.transaction() as connection:
            for number in range(3):
                assert await connection.fetchval("SELECT $1::int + 1", number) == number + 1
            assert (
                await connection.fetch("SELECT name, statement FROM pg_prepared_statements") == []
            )
            changed = await connection.fetch(
                "SELECT name FROM pg_settings WHERE source IN ('client', 'session')"
            )
            assert {row["name"] for row in changed} <= {"application_name", "client_encoding"}
    finally:
        await pool.close()


async def test_entries_delivered_during_trims_are_never_trimmed(bed: RedisBed) -> None:
    """A reader takes entries and acknowledges none while the trim runs as often as it can."""
    keeper, reader, producer = bed.keeper(), bed.reader(), bed.producer()
    await keeper.ensure_group("workers")
    for _ in range(200):
        await producer.append(0, an_append(producer))
    stopping = asyncio.Event()

    async def trim() -> int:
        removed = 0
        while not stopping.is_set():
            removed += await keeper.trim(0, 0.0)
        return removed

    trimming = asyncio.create_task(trim())
    delivered = 0
    while entries := await reader.read(0, 1, 0.01):
        delivered += len(entries)
    stopping.set()
    assert (delivered, await trimming) == (200, 0)


async def test_asking_for_what_is_pending_first_would_trim_a_delivered_entry(
    bed: RedisBed,
) -> None:
    """A negative control: in two calls, in the other order, what is delivered in between looks
    acknowledged. So the trim is one call."""
    keeper, reader, producer = bed.keeper(), bed.reader(), bed.producer()
    await keeper.ensure_group("workers")
    stream = bed.log.keys.streams[0]
    await producer.append(0, an_append(producer))
    [count, *_] = await bed.command("XPENDING", stream, "workers")
    assert count == 0
    [entry] = await reader.read(0, 1, 1.0)
    [facts] = await bed.command("XINFO", "GROUPS", stream)
    delivered = dict(zip(facts[::2], facts[1::2], strict=True))[b"last-delivered-id"].decode()
    ms, _, seq = delivered.partition("-")
    # Nothing was pending, so all up to the last delivered one seems done.
    assert await bed.command("XTRIM", stream, "MINID", f"{ms}-{int(seq) + 1}") == 1
    assert delivered == str(entry.entry_id)
    assert await bed.command("XLEN", stream) == 0
