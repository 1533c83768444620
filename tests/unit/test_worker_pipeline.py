"""The worker over memory: every accepted order is stored once, whatever fails, and nothing is acknowledged
before it is committed."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from coffee_rt.channels.messages import decode_recent_orders, decode_stored
from coffee_rt.domain.wire import encode_record
from coffee_rt.errors import Retryable
from coffee_rt.store.contract import BadData, Committed, EntryWrite, PreparedBatch
from coffee_rt.store.memory import MemoryOrderWriter
from coffee_rt.store.memory_database import MemoryDatabase
from coffee_rt.streams.memory_groups import MemoryKeeper
from coffee_rt.worker import metrics
from coffee_rt.worker.storing import StoreLimits
from tests.workers import GROUP, LIMITS, MemoryShop, entry_fields, now_order, until


class FussyWriter(MemoryOrderWriter):
    """Refuses batches with certain drinks: `bad` as data, `poison` as if the server broke on it."""

    def __init__(self, database: MemoryDatabase) -> None:
        super().__init__(database)
        self.refused_sizes: list[int] = []
        self.claimed_sizes: list[int] = []

    async def commit(self, batch: PreparedBatch, *, is_claimed: bool = False) -> Committed:
        drinks = {order.drink for entry in batch.entries for order in entry.orders}
        if is_claimed:
            self.claimed_sizes.append(len(batch.entries))
        if "bad" in drinks:
            self.refused_sizes.append(len(batch.entries))
            raise BadData("22003: out of range")
        if "poison" in drinks:
            self.refused_sizes.append(len(batch.entries))
            raise Retryable("PostgreSQL 57P02: crash of another server process")
        return await super().commit(batch, is_claimed=is_claimed)

    async def store_single(self, entry: EntryWrite) -> Committed:
        good = [order for order in entry.orders if order.drink != "bad"]
        return await super().store_single(replace(entry, orders=good))


@pytest.fixture
async def shop() -> MemoryShop:
    return MemoryShop()


async def append_many(shop: MemoryShop, entries: int, records: int = 3) -> set[bytes]:
    ids: set[bytes] = set()
    for number in range(entries):
        orders = [now_order() for _ in range(records)]
        ids.update(shop.append(orders, shard=number % len(shop.log.shards)))
    return ids


async def test_everything_appended_is_stored_then_acknowledged(shop: MemoryShop) -> None:
    ids = await append_many(shop, 40)
    shop.start()
    await until(shop.is_settled)
    assert shop.stored_ids() == ids
    ids |= await append_many(shop, 5)
    await until(lambda: shop.stored_ids() == ids)
    await shop.drain()
    assert shop.is_settled()
    assert all(not group.consumers for s in shop.log.shards for group in s.groups.values())


async def test_commit_is_published_before_it_is_acknowledged(shop: MemoryShop) -> None:
    pending_when_told: list[int] = []
    publish = shop.channels.publish

    async def watch(topic: str, *bodies: bytes) -> None:
        pending_when_told.append(shop.pending())
        await publish(topic, *bodies)

    shop.channels.publish = watch  # type: ignore[method-assign]
    async with shop.channels.subscribe("stored", "orders") as messages:
        orders = [now_order() for _ in range(30)]
        shop.append(orders)
        shop.start()
        heard: dict[str, bytes] = {}
        async for message in messages:
            assert message is not None
            heard[message[0]] = message[1]
            if len(heard) == 2:
                break
    stored = decode_stored(heard["stored"])
    assert [entry.shard for entry in stored.entries] == [0]
    assert stored.entries[0].entry == str(shop.log.shards[0].ids[0])
    recent = decode_recent_orders(heard["orders"])
    assert recent.stored == 30
    assert len(recent.orders) == 20
    assert recent.orders[0].price == "4.50"
    assert pending_when_told == [1, 1]
    await shop.drain()


async def test_unstored_batch_stays_pending(shop: MemoryShop) -> None:
    def away(step: str) -> None:
        if step == "commit":
            raise Retryable("PostgreSQL is away")

    shop.database.fault_hook = away
    ids = await append_many(shop, 4)
    shop.start()
    await until(lambda: shop.pending() == 4)
    await shop.kill()
    assert shop.pending() == 4
    assert not shop.stored_ids()
    shop.database.fault_hook = None
    shop.start("w1")
    await until(shop.is_settled)
    assert shop.stored_ids() == ids
    await shop.drain()


async def test_crash_after_commit_before_acknowledgement_stores_once(shop: MemoryShop) -> None:
    seen_before = metrics.ENTRIES.labels("seen")._value.get()
    lost = 0

    async def lose_acknowledgement(point: str, _shard: int) -> None:
        nonlocal lost
        if point == "acknowledge.send" and lost < 3:
            lost += 1
            raise Retryable("the connection broke")

    shop.log.faults = lose_acknowledgement
    ids = await append_many(shop, 10)
    shop.start()
    await until(lambda: lost == 3 and shop.is_settled())
    assert shop.stored_ids() == ids
    assert metrics.ENTRIES.labels("seen")._value.get() > seen_before
    await shop.drain()


async def test_commit_with_unknown_outcome_is_repeated_and_stored_once(shop: MemoryShop) -> None:
    failures = 3

    def lose_answer(step: str) -> None:
        nonlocal failures
        if step == "committed" and failures:
            failures -= 1
            raise Retryable("no answer to COMMIT")

    shop.database.fault_hook = lose_answer
    ids = await append_many(shop, 10)
    shop.start()
    await until(shop.is_settled)
    assert shop.stored_ids() == ids
    assert failures == 0
    await shop.drain()


async def test_reconnect_drops_acknowledgements_and_reads_the_entries_again(
    shop: MemoryShop,
) -> None:
    ids = await append_many(shop, 10)

    def restart_log_once(step: str) -> None:
        if step == "committed":
            shop.database.fault_hook = None
            shop.log.restart()

    shop.database.fault_hook = restart_log_once
    shop.start()
    await until(lambda: shop.is_settled() and shop.stored_ids() == ids)
    ids |= await append_many(shop, 3)
    await until(lambda: shop.is_settled() and shop.stored_ids() == ids)
    await shop.drain()


async def test_unreadable_record_is_a_dead_letter_and_its_neighbours_are_stored(
    shop: MemoryShop,
) -> None:
    good = [now_order(), now_order()]
    shop.append_raw([encode_record(good[0]), b"\xc0", encode_record(good[1])])
    ids = {order.order_id for order in good} | await append_many(shop, 5)
    shop.start()
    await until(shop.is_settled)
    assert shop.stored_ids() == ids
    [letter] = shop.database.dead_letters
    assert (letter.index, letter.raw) == (1, b"\xc0")
    await shop.drain()


async def test_bad_data_is_found_by_bisecting_and_the_rest_is_stored(shop: MemoryShop) -> None:
    writer = FussyWriter(shop.database)
    ids = await append_many(shop, 20)
    good = now_order()
    ids.add(good.order_id)
    shop.append([now_order(drink="bad"), good])
    ids |= await append_many(shop, 11)
    shop.start(writer=writer)
    await until(shop.is_settled)
    assert shop.stored_ids() == ids
    assert writer.refused_sizes[-1] == 1
    assert len(writer.refused_sizes) <= 7
    await shop.drain()


async def test_entry_that_breaks_the_server_is_parked_only_while_others_are_stored(
    shop: MemoryShop,
) -> None:
    writer = FussyWriter(shop.database)
    poison = now_order(drink="poison")
    shop.append([poison])
    limits = replace(
        LIMITS,
        store=StoreLimits(suspect_attempts_min=3, park_failures=3, backoff_seconds_max=0.003),
    )
    shop.start(writer=writer, limits=limits)
    # Alone in the log, however often it fails: no verdict.
    await until(lambda: len(writer.refused_sizes) > 30)
    assert not shop.database.dead_letters
    ids: set[bytes] = set()
    for _ in range(400):
        if shop.database.dead_letters:
            break
        ids |= await append_many(shop, 1)
        await asyncio.sleep(0.005)
    await until(shop.is_settled)
    [letter] = shop.database.dead_letters
    assert letter.raw == encode_record(poison)
    assert shop.stored_ids() == ids
    await shop.drain()


async def test_delivery_count_is_never_a_verdict(shop: MemoryShop) -> None:
    ids = await append_many(shop, 6)
    shop.start("dying")

    def away(_step: str) -> None:
        raise Retryable("PostgreSQL is away")

    shop.database.fault_hook = away
    await until(lambda: shop.pending() == 6)
    await shop.kill("dying")
    for shard in shop.log.shards:
        for pending in shard.groups[GROUP].pending.values():
            pending.attempts = 1000
    shop.database.fault_hook = None
    writer = FussyWriter(shop.database)
    shop.start("dying", writer=writer)
    await until(shop.is_settled)
    assert shop.stored_ids() == ids
    assert not shop.database.dead_letters
    assert writer.claimed_sizes == [1] * 6
    await shop.drain("dying")


async def test_unknown_wire_version_stays_pending_and_is_not_ready(shop: MemoryShop) -> None:
    fields = entry_fields([now_order()], counter=1) | {b"v": b"99"}
    shop.log.insert_raw(0, fields)
    ids = await append_many(shop, 4)
    shop.start()
    await until(lambda: shop.stored_ids() == ids and shop.pending() == 1)
    await until(lambda: metrics.ENTRIES_UNKNOWN._value.get() == 1)
    await until(lambda: not shop.health.report()["components"]["wire-version"]["ready"])
    assert not shop.health.is_ready
    assert not shop.database.dead_letters
    # A newer release takes it over, stores and acknowledges it.
    for shard in shop.log.shards:
        shard.groups[GROUP].pending.clear()
    await until(lambda: shop.health.is_ready)
    await shop.drain()


async def test_entries_of_a_dead_worker_are_claimed_and_stored_apart(shop: MemoryShop) -> None:
    blocked = FussyWriter(shop.database)
    ids = set(shop.append([now_order(drink="poison")])) | set(shop.append([now_order()], shard=1))
    shop.start("dead", writer=blocked)
    await until(lambda: shop.pending() == 2)
    await shop.kill("dead")
    writer = MemoryOrderWriter(shop.database)
    limits = replace(LIMITS, read=replace(LIMITS.read, claim_idle_seconds_min=0.1))
    shop.start("heir", limits=limits, writer=writer)
    await until(shop.is_settled)
    assert shop.stored_ids() == ids
    await shop.drain("heir")


async def test_nothing_is_claimed_while_the_breaker_is_open(shop: MemoryShop) -> None:
    shop.start("dead", writer=FussyWriter(shop.database))
    shop.append([now_order(drink="poison")])
    await until(lambda: shop.pending() == 1)
    await shop.kill("dead")
    shop.start(
        "heir", limits=replace(LIMITS, read=replace(LIMITS.read, claim_idle_seconds_min=0.0))
    )
    shop.store_breaker = shop.make_breaker("postgresql", failures=1)
    await shop.kill("heir")
    shop.store_breaker._open_seconds = 60.0
    shop.store_breaker.record_failure()
    limits = replace(LIMITS, read=replace(LIMITS.read, claim_idle_seconds_min=0.0))
    claims: list[str] = []

    async def watch(point: str, _shard: int) -> None:
        if point == "claim.answer":
            claims.append(point)

    shop.log.faults = watch
    shop.start("heir", limits=limits)
    await asyncio.sleep(0.2)
    assert not claims
    assert not shop.health.is_ready
    shop.store_breaker.record_success()
    await until(lambda: bool(claims))
    await until(shop.is_settled)
    await shop.drain("heir")


async def test_outage_of_the_store_is_ridden_out_from_memory(shop: MemoryShop) -> None:
    is_away = True

    def away(step: str) -> None:
        if is_away and step == "commit":
            raise Retryable("PostgreSQL is away")

    shop.database.fault_hook = away
    shop.store_breaker = shop.make_breaker("postgresql", failures=3)
    ids = await append_many(shop, 30)
    shop.start()
    await until(lambda: shop.store_breaker.is_open)
    await until(lambda: not shop.health.is_ready)
    is_away = False
    await until(shop.is_settled)
    assert shop.stored_ids() == ids
    await until(lambda: shop.health.is_ready)
    await shop.drain()


async def test_readers_stop_at_the_stated_limit_while_the_store_is_away(shop: MemoryShop) -> None:
    def away(step: str) -> None:
        if step == "commit":
            raise Retryable("PostgreSQL is away")

    shop.database.fault_hook = away
    limits = replace(LIMITS, batch_records_max=10)
    await append_many(shop, 400, records=1)
    shop.start(limits=limits)
    await until(lambda: shop.pending() >= 20)
    await asyncio.sleep(0.2)
    assert shop.pending() <= 10 * 6 + 2 * 16
    await shop.kill()


async def test_drain_commits_and_acknowledges_what_was_read(shop: MemoryShop) -> None:
    limits = replace(LIMITS, linger_seconds=30.0)
    ids = await append_many(shop, 6)
    shop.start(limits=limits)
    await until(lambda: shop.pending() == 6)
    await shop.drain()
    assert shop.stored_ids() == ids
    assert shop.is_settled()


async def test_drain_during_an_outage_leaves_entries_pending_and_ends(shop: MemoryShop) -> None:
    def away(_step: str) -> None:
        raise Retryable("PostgreSQL is away")

    shop.database.fault_hook = away
    await append_many(shop, 6)
    shop.start()
    await until(lambda: shop.pending() == 6)
    await shop.drain()
    assert shop.pending() == 6


async def test_drain_does_not_sleep_through_a_long_backoff(shop: MemoryShop) -> None:
    def away(step: str) -> None:
        if step == "commit":
            raise Retryable("PostgreSQL is away")

    shop.database.fault_hook = away
    await append_many(shop, 2)
    slow = StoreLimits(suspect_attempts_min=1000, backoff_seconds_max=1000.0)
    shop.start(limits=replace(LIMITS, store=slow, drain_seconds_max=60.0))
    await until(lambda: shop.pending() == 2)
    shop.store_breaker._open_seconds = 1000.0
    for _ in range(1000):
        shop.store_breaker.record_failure()
    await shop.drain()
    assert shop.pending() == 2


async def test_second_group_gets_every_entry_however_slow_it_is(shop: MemoryShop) -> None:
    archive = MemoryDatabase()
    ids = await append_many(shop, 10)
    shop.start("slow", group="archive", writer=MemoryOrderWriter(archive))
    await until(lambda: set(archive.orders) == ids)
    await shop.drain("slow")
    limits = replace(LIMITS, care=replace(LIMITS.care, trim_keep_seconds=0.0))
    shop.start("fast", limits=limits)
    ids |= await append_many(shop, 10)
    await until(lambda: shop.stored_ids() == ids and shop.is_settled())
    await asyncio.sleep(0.15)  # Several trims go by.
    assert sum(len(shard.ids) for shard in shop.log.shards) >= 10
    shop.start("slow", group="archive", writer=MemoryOrderWriter(archive))
    await until(lambda: set(archive.orders) == ids)
    await until(lambda: sum(len(shard.ids) for shard in shop.log.shards) == 0)
    await shop.drain("slow")
    await shop.drain("fast")


async def test_conservation_is_zero_when_all_is_well_and_says_what_is_missing(
    shop: MemoryShop,
) -> None:
    def imbalance(shard: str) -> float:
        return float(metrics.CONSERVATION.labels(shard)._value.get())

    await append_many(shop, 10)
    shop.log.insert_raw(0, {b"hello": b"stranger"})
    shop.append_raw([b"\xc0"], shard=1)
    metrics.CONSERVATION.labels("0").set(99)
    metrics.CONSERVATION.labels("1").set(99)
    shop.start()
    await until(lambda: shop.is_settled() and imbalance("0") == imbalance("1") == 0)
    # A record that was acknowledged by mistake, without being stored.
    shop.database.ledger.popitem()
    await until(lambda: imbalance("0") + imbalance("1") > 0)
    await shop.drain()


async def test_lost_group_is_made_again_and_the_replay_is_absorbed(shop: MemoryShop) -> None:
    ids = await append_many(shop, 10)
    shop.start()
    await until(shop.is_settled)
    for shard in shop.log.shards:
        shard.groups.clear()
    ids |= await append_many(shop, 2)
    await until(lambda: shop.is_settled() and shop.stored_ids() == ids)
    await shop.drain()


async def test_a_commit_that_a_promotion_took_back_is_not_acknowledged_after_it(
    shop: MemoryShop,
) -> None:
    standby = shop.database.snapshot()
    promoted = asyncio.Event()

    async def hold(point: str, _shard: int) -> None:
        if point == "acknowledge.send":
            await promoted.wait()

    shop.log.faults = hold
    shop.start()
    await until(lambda: all(GROUP in shard.timelines for shard in shop.log.shards))
    ids = set(shop.append([now_order()]))
    await until(lambda: shop.stored_ids() == ids)
    shop.database.promote(standby)
    # Another worker tells the log, and this one is given again what it still holds.
    state = shop.log.shards[0]
    await MemoryKeeper(shop.log).follow_timeline(GROUP, shop.database.timeline, 600.0)
    await until(lambda: state.groups[GROUP].delivered >= state.ids[-1])
    promoted.set()
    await until(lambda: shop.stored_ids() == ids and shop.is_settled())
    await shop.drain()


async def test_bug_ends_the_worker_loudly_and_entries_stay_pending(shop: MemoryShop) -> None:
    def broken(step: str) -> None:
        if step == "commit":
            raise RuntimeError("an invariant is broken")

    shop.database.fault_hook = broken
    await append_many(shop, 2)
    shop.start()
    _worker, task = shop.running["w1"]
    with pytest.raises(RuntimeError, match="invariant"):
        await asyncio.wait_for(task, 10)
    assert shop.pending() == 2
