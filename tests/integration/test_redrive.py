"""Dead letters sent again on a real PostgreSQL, beside workers and beside each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from coffee_rt.domain.orders import Order
from coffee_rt.domain.wire import encode_record
from coffee_rt.errors import Retryable
from coffee_rt.operator.redrive_command import run_redrive
from coffee_rt.operator.redrive_plan import read_request
from coffee_rt.runtime.settings import DatabaseSettings
from coffee_rt.store.contract import DeadRecord, EntryWrite, accounted_records
from coffee_rt.store.letter_redriver import PostgresLetterRedriver
from coffee_rt.store.orders import PostgresOrderWriter
from coffee_rt.store.pool import Pool
from coffee_rt.store.redrives import LetterSelection, Outcome
from tests.builders import NOW_MS, a_view, an_order
from tests.store_harness import WriteStore, a_write_store, an_entry
from tests.workers import now_order

pytestmark = pytest.mark.integration

ALL = LetterSelection()


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[WriteStore]:
    async with a_write_store(database_url, pool_size_max=12) as made:
        await made.add_view(a_view(retention_days=36_500))
        yield made


def the_pool(store: WriteStore) -> Pool:
    assert store.pool is not None
    return store.pool


def dead_entry(*orders: Order, code: str = "unstorable-entry") -> EntryWrite:
    letters = [
        DeadRecord(index, encode_record(order), code, "parked", order.tenant, order.order_id)
        for index, order in enumerate(orders)
    ]
    return an_entry(dead=letters)


async def send_all(redriver: PostgresLetterRedriver, name: str, letters_max: int = 20) -> None:
    while await redriver.send(ALL, name, letters_max=letters_max):
        pass


async def test_many_senders_and_redeliveries_at_once_store_each_record_once(
    store: WriteStore,
) -> None:
    pool = the_pool(store)
    orders = [an_order() for _ in range(400)]
    entries = [dead_entry(*orders[start : start + 8]) for start in range(0, 400, 8)]
    # Every tenth record also comes by another way, before or while its letter is sent.
    others = [an_entry(order) for order in orders[::10]]
    await store.commit(*entries)
    is_over = asyncio.Event()

    async def watch() -> None:
        """Whatever moves, every record is accounted for once, at every moment and below every entry."""
        while not is_over.is_set():
            for below in (None, entries[10].entry, entries[30].entry):
                sums = await store.keeper.ledger_sums(0, below)
                assert accounted_records(sums) == sums["records"]
            await asyncio.sleep(0)

    async def redeliver() -> None:
        writer = PostgresOrderWriter(pool)
        for entry in [*entries[40:], *others]:
            await writer.commit(writer.prepare([entry]))

    async def compact() -> None:
        for entry in entries[:40:5]:
            await store.keeper.compact_ledger(0, entry.entry)

    watching = asyncio.create_task(watch())
    redrivers = [PostgresLetterRedriver(pool, id_age_days_max=36_500) for _ in range(3)]
    senders = [send_all(each, f"r{number}", 7) for number, each in enumerate(redrivers)]
    await asyncio.gather(*senders, redeliver(), compact())
    is_over.set()
    await watching
    sums = await store.keeper.ledger_sums(0, None)
    assert (sums["records"], sums["stored"], sums["duplicates"]) == (440, 400, 40)
    assert sums["dead"] == 0
    assert await pool.fetchval("SELECT count(*) FROM orders") == 400
    assert await store.delta_sums("sales", "orders") == 400
    assert await pool.fetchval("SELECT count(*) FROM dead_letters WHERE redriven_at IS NULL") == 0


async def test_a_connection_lost_on_the_way_leaves_nothing_and_is_tried_again(
    store: WriteStore,
) -> None:
    pool = the_pool(store)
    await store.commit(dead_entry(*[an_order() for _ in range(50)]))
    redriver = PostgresLetterRedriver(pool, id_age_days_max=36_500)
    # Its statements wait for this lock, where its connection is ended.
    async with pool.transaction() as blocker:
        await blocker.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        sending = asyncio.create_task(redriver.send(ALL, "r"))
        ended = False
        async with asyncio.timeout(10):
            while not ended:
                ended = bool(
                    await pool.fetchval(
                        """SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_stat_activity
                        WHERE wait_event_type = 'Lock' AND datname = current_database()"""
                    )
                )
                await asyncio.sleep(0.01)
    with pytest.raises(Retryable):
        await sending
    assert (await redriver.results("r"))[Outcome.STORED] == 0
    assert len(await redriver.send(ALL, "r")) == 50
    sums = await store.keeper.ledger_sums(0, None)
    assert (sums["stored"], sums["dead"]) == (50, 0)


async def test_data_that_postgresql_refuses_is_found_and_holds_up_no_other(
    store: WriteStore,
) -> None:
    pool = the_pool(store)
    orders = [an_order(drink="mocha" if number == 13 else "latte") for number in range(21)]
    await pool.execute("ALTER TABLE orders ADD CONSTRAINT no_mocha CHECK (drink <> 'mocha')")
    await store.commit(dead_entry(*orders))
    done = await store.redriver.send(ALL, "r1")
    assert [each.id for each in done if each.outcome is Outcome.STILL_BAD] == [done[13].id]
    [letter] = await store.reader.dead_letters(None, 50, None)
    assert (letter.order_id, letter.code) == (orders[13].order_id, "bad-data")
    assert "no_mocha" in letter.detail
    sums = await store.keeper.ledger_sums(0, None)
    assert (sums["stored"], sums["dead"]) == (20, 1)
    # The cause is mended, and the letter sent again.
    await pool.execute("ALTER TABLE orders DROP CONSTRAINT no_mocha")
    assert [each.outcome for each in await store.redriver.send(ALL, "r2")] == [Outcome.STORED]
    sums = await store.keeper.ledger_sums(0, None)
    assert (sums["stored"], sums["dead"]) == (21, 0)


async def test_a_day_without_partition_gets_one(store: WriteStore) -> None:
    order = an_order(accepted_at_us=(NOW_MS - 3 * 86_400_000) * 1000)
    await store.commit(dead_entry(order))
    [done] = await store.redriver.send(ALL, "r")
    assert done.outcome is Outcome.STORED
    assert await store.reader.find_order(0, order.order_id) is not None


async def test_a_view_made_later_gets_the_orders_of_letters(store: WriteStore) -> None:
    await store.commit(dead_entry(an_order(), an_order()))
    await store.redriver.count(ALL, "r")
    await store.add_view(a_view("other", dimensions=[], retention_days=36_500))
    await store.redriver.send(ALL, "r")
    assert await store.delta_sums("other", "orders") == 2
    assert await store.delta_sums("sales", "orders") == 2


async def test_the_command_tells_what_it_did(store: WriteStore, database_url: str) -> None:
    await store.commit(dead_entry(now_order(), now_order()), an_entry(dead=[a_bad()]))
    database = DatabaseSettings(url=database_url)
    said: list[str] = []

    async def run(**spec: object) -> int:
        said.clear()
        return await run_redrive(read_request(spec), database, said.append)

    everything = {"all": True}
    assert await run(letters=everything, dryRun=True) == 1
    assert said[-1] == "2 would be stored, 1 still bad."
    assert await run(letters={"code": "unstorable-entry"}) == 0
    assert said == ["2 stored, 0 still bad."]
    assert await run(letters=everything) == 1
    assert "unreadable-record" in said[0]
    assert await run(letters={"tenant": 99}) == 0
    assert said == ["No dead letter matches."]


def a_bad() -> DeadRecord:
    return DeadRecord(0, b"\xc1", "unreadable-record", "?")
