"""Commits on a real PostgreSQL beside whatever else goes on in it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import asyncpg
import pytest

from coffee_rt.domain.orders import Order
from coffee_rt.errors import Bug, Retryable
from coffee_rt.store import copy
from coffee_rt.store.contract import BadData
from coffee_rt.store.memory import MemoryOrderWriter
from coffee_rt.store.memory_database import MemoryDatabase
from coffee_rt.store.orders import PostgresOrderWriter
from coffee_rt.store.pool import Pool
from coffee_rt.store.view_tables import CATALOGUE_LOCK
from tests.builders import a_view, an_order
from tests.store_harness import WriteStore, a_write_store, an_entry

pytestmark = pytest.mark.integration


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[WriteStore]:
    async with a_write_store(database_url) as made:
        yield made


def the_pool(store: WriteStore) -> Pool:
    assert store.pool is not None
    return store.pool


async def wait_until_blocked(pool: Pool) -> None:
    """Until some backend of this database waits for a lock."""
    for _ in range(1000):
        if await pool.fetchval(
            """SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'"""
        ):
            return
        await asyncio.sleep(0.01)
    pytest.fail("nothing waits for a lock")


async def test_view_made_after_prepare_gets_the_batch_too(store: WriteStore) -> None:
    await store.writer.refresh_catalogue()
    prepared = store.writer.prepare([an_entry(an_order(), an_order())])
    await store.add_view(a_view())
    await store.writer.commit(prepared)
    assert await store.delta_sums("sales", "orders") == 2


async def test_catalogue_change_that_holds_its_lock_is_waited_for(
    store: WriteStore, database_url: str
) -> None:
    changing = await asyncpg.connect(database_url)
    await changing.execute(f"BEGIN; SELECT pg_advisory_xact_lock({CATALOGUE_LOCK})")
    commit = asyncio.create_task(store.commit(an_entry(an_order())))
    await wait_until_blocked(the_pool(store))
    await changing.execute("COMMIT")
    assert (await commit).outcomes[0].stored == 1
    await changing.close()


async def test_batch_wholly_seen_still_makes_a_write(store: WriteStore) -> None:
    entry = an_entry(an_order())
    await store.commit(entry)
    await store.commit(entry)
    assert await the_pool(store).fetchval("SELECT redeliveries FROM stream_entries") == 1


async def test_two_workers_with_the_same_entries_store_each_once(store: WriteStore) -> None:
    await store.add_view(a_view())
    pool = the_pool(store)
    writers = [PostgresOrderWriter(pool) for _ in range(3)]
    chance = random.Random(5)
    entries = [an_entry(*(an_order() for _ in range(20))) for _ in range(40)]

    async def work(writer: PostgresOrderWriter) -> int:
        mine = chance.sample(entries, len(entries))
        stored = 0
        for start in range(0, len(mine), 5):
            batch = writer.prepare(mine[start : start + 5])
            committed = await writer.commit(batch)
            stored += sum(each.stored for each in committed.outcomes)
        return stored

    assert sum(await asyncio.gather(*map(work, writers))) == 800
    assert await pool.fetchval("SELECT count(*) FROM orders") == 800
    assert await store.delta_sums("sales", "orders") == 800


async def test_two_workers_with_the_same_order_in_two_entries_store_it_once(
    store: WriteStore, database_url: str
) -> None:
    await store.commit(an_entry(an_order()))
    order = an_order()
    other = await asyncpg.connect(database_url)
    await other.execute(
        f"""BEGIN; INSERT INTO orders SELECT '{order.order_id.hex()}', batch_id,
        '\\x{order.body_hash.hex()}', price_minor, ordered_at, accepted_at, tenant, quantity,
        is_late, store, drink FROM orders"""
    )
    commit = asyncio.create_task(store.commit(an_entry(order, an_order())))
    await wait_until_blocked(the_pool(store))
    await other.execute("COMMIT")
    [outcome] = (await commit).outcomes
    assert (outcome.stored, outcome.duplicates, outcome.dead) == (1, 1, 0)
    await other.close()


async def a_frozen_worker(database_url: str, batch_id: bytes) -> asyncpg.Connection:
    """A backend whose client stopped inside its transaction, its ledger row written."""
    frozen = await asyncpg.connect(database_url)
    await frozen.execute(
        f"""BEGIN; INSERT INTO stream_entries
        (batch_id, shard, entry_ms, entry_seq, counter, records, stored, dead)
        VALUES ('{batch_id.hex()}', 0, 1, 1, 1, 1, 1, 0)"""
    )
    return frozen


async def stop_in_copy(frozen: asyncpg.Connection) -> None:
    """A COPY whose client never sends the rest; no time-out of the server ends it."""

    async def first_bytes_only() -> AsyncIterator[bytes]:
        yield copy.HEADER
        await asyncio.Event().wait()

    await frozen.copy_to_table("orders", source=first_bytes_only(), format="binary")


async def test_claimed_entry_is_freed_from_a_worker_frozen_in_copy(
    store: WriteStore, database_url: str
) -> None:
    entry = an_entry(an_order())
    frozen = await a_frozen_worker(database_url, entry.batch_id)
    copying = asyncio.create_task(stop_in_copy(frozen))
    writer = PostgresOrderWriter(the_pool(store), blocker_seconds_max=0)
    committed = await writer.commit(writer.prepare([entry]), is_claimed=True)
    assert committed.outcomes[0].stored == 1
    copying.cancel()
    with pytest.raises((asyncio.CancelledError, asyncpg.PostgresError, OSError)):
        await copying
    frozen.terminate()


async def test_claimed_entry_of_a_living_worker_is_left_to_it(
    store: WriteStore, database_url: str
) -> None:
    entry = an_entry(an_order())
    living = await a_frozen_worker(database_url, entry.batch_id)
    with pytest.raises(Retryable):
        await store.writer.commit(store.writer.prepare([entry]), is_claimed=True)
    await living.execute("COMMIT")
    assert (await store.commit(entry)).outcomes[0].seen_before
    await living.close()


async def test_cancelled_commit_leaves_nothing_and_the_pool_whole(
    store: WriteStore, database_url: str
) -> None:
    await store.add_view(a_view())
    await store.commit(an_entry(an_order()))
    pool = the_pool(store)
    locker = await asyncpg.connect(database_url)
    await locker.execute("BEGIN; LOCK TABLE orders IN EXCLUSIVE MODE")
    entry = an_entry(an_order())
    commit = asyncio.create_task(store.commit(entry))
    await wait_until_blocked(pool)
    commit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await commit
    await locker.execute("ROLLBACK")
    await locker.close()
    assert await pool.fetchval("SELECT count(*) FROM stream_entries") == 1
    assert (await store.commit(entry)).outcomes[0].stored == 1


async def test_killed_backend_is_retryable_and_leaves_nothing(
    store: WriteStore, database_url: str
) -> None:
    await store.commit(an_entry(an_order()))
    pool = the_pool(store)
    locker = await asyncpg.connect(database_url)
    await locker.execute("BEGIN; LOCK TABLE orders IN EXCLUSIVE MODE")
    entry = an_entry(an_order())
    commit = asyncio.create_task(store.commit(entry))
    await wait_until_blocked(pool)
    await pool.fetch(
        """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'"""
    )
    with pytest.raises(Retryable):
        await commit
    await locker.execute("ROLLBACK")
    await locker.close()
    assert (await store.commit(entry)).outcomes[0].stored == 1


async def set_for_new_sessions(database_url: str, setting: str) -> None:
    admin = await asyncpg.connect(database_url)
    name = await admin.fetchval("SELECT current_database()")
    await admin.execute(f"ALTER DATABASE {name} SET {setting}")
    await admin.close()


async def test_read_only_database_is_retryable(database_url: str) -> None:
    await set_for_new_sessions(database_url, "default_transaction_read_only = on")
    async with a_write_store(database_url) as store:
        with pytest.raises(Retryable, match="25006"):
            await store.commit(an_entry(an_order()))


async def test_commit_is_durable_whatever_the_database_prefers(database_url: str) -> None:
    await set_for_new_sessions(database_url, "synchronous_commit = off")
    async with a_write_store(database_url) as store:
        pool = the_pool(store)
        await pool.execute("CREATE TABLE seen (setting text)")
        await pool.execute(
            """CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NEW; END $$"""
        )
        await pool.execute(
            """CREATE TRIGGER look BEFORE INSERT ON stream_entries
            FOR EACH STATEMENT EXECUTE FUNCTION look()"""
        )
        await store.commit(an_entry(an_order()))
        assert await pool.fetchval("SELECT setting FROM seen") == "on"
        assert await pool.fetchval("SHOW synchronous_commit") == "off"


async def test_many_bad_orders_are_all_found_and_the_others_stored(store: WriteStore) -> None:
    orders: list[Order] = [an_order(drink="x" * 200 if n % 7 == 0 else "tea") for n in range(100)]
    committed = await store.writer.store_single(an_entry(*orders))
    assert (committed.outcomes[0].stored, committed.outcomes[0].dead) == (85, 15)
    assert await the_pool(store).fetchval("SELECT count(*) FROM orders") == 85


async def test_text_that_postgres_refuses_is_bad_data(store: WriteStore) -> None:
    with pytest.raises(BadData):
        await store.commit(an_entry(an_order(note="nul \x00")))
    with pytest.raises(BadData):
        await store.commit(an_entry(an_order(attributes=b'{"a": 1e999999}')))


async def test_batch_of_another_store_is_a_bug(store: WriteStore) -> None:
    strange = MemoryOrderWriter(MemoryDatabase()).prepare([an_entry(an_order())])
    with pytest.raises(Bug):
        await store.writer.commit(strange)
