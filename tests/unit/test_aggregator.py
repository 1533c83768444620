"""The aggregator's own knowledge, over stores and channels in memory and a clock that a test moves."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest

from coffee_rt.aggregator.backfill import Backfiller
from coffee_rt.aggregator.core import SETTLE_SECONDS, FoldLimits, FoldLoop
from coffee_rt.aggregator.lanes import LaneShare
from coffee_rt.aggregator.publishing import Publisher
from coffee_rt.channels.memory import MemoryChannels
from coffee_rt.channels.messages import Stored, decode_beacon, decode_view_change
from coffee_rt.domain.orders import Order
from coffee_rt.domain.views import compute_deltas, lane_of
from coffee_rt.errors import BreakerOpen, Retryable
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.logs import get_log
from coffee_rt.store.contract import BadData, EntryWrite
from coffee_rt.store.memory import MemoryOrderWriter
from coffee_rt.store.memory_database import MemoryDatabase
from coffee_rt.store.memory_views import MemoryViewCatalogue, MemoryViewFolder, MemoryViewRepairer
from coffee_rt.store.view_contract import LaneKey
from tests.builders import NOW_MS, a_view, an_order
from tests.clocks import StoppedClock

HOUR = 3600


class ManualClock(StoppedClock):
    """Whoever sleeps lets the others work first."""

    def __init__(self) -> None:
        super().__init__(NOW_MS / 1000)

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        await asyncio.sleep(0)


@dataclass
class Bed:
    """Instances on one memory database."""

    clock: ManualClock = field(default_factory=ManualClock)
    database: MemoryDatabase = field(default_factory=MemoryDatabase)
    channels: MemoryChannels = field(default_factory=MemoryChannels)
    published: list[tuple[str, bytes]] = field(default_factory=list)
    commits: int = 0

    def __post_init__(self) -> None:
        self.folder = MemoryViewFolder(self.database, self.clock)
        self.catalogue = MemoryViewCatalogue(self.database, self.clock)
        self.breaker = CircuitBreaker("test-postgresql", clock=self.clock)
        publish = self.channels.publish

        async def remember(topic: str, *bodies: bytes) -> None:
            await publish(topic, *bodies)
            self.published.extend((topic, body) for body in bodies)

        self.channels.publish = remember  # type: ignore[method-assign]

    def loop(self, instance: str = "one", **limits: Any) -> tuple[FoldLoop, LaneShare]:
        share = LaneShare(instance, steal_seconds=1.0)
        redis = CircuitBreaker("test-redis", clock=self.clock, failures=2)
        folds = FoldLoop(
            instance=instance,
            folder=self.folder,
            catalogue=self.catalogue,
            channels=self.channels,
            publisher=Publisher(self.channels, redis),
            share=share,
            database=self.breaker,
            clock=self.clock,
            log=get_log("test"),
            limits=FoldLimits(**limits),
        )
        return folds, share

    async def commit(self, *orders: Order) -> Stored:
        self.commits += 1
        entry = EntryWrite(
            shard=0,
            entry=(NOW_MS, self.commits),
            batch_id=self.commits.to_bytes(16, "big"),
            counter=0,
            records=len(orders),
            orders=orders,
        )
        writer = MemoryOrderWriter(self.database)
        committed = await writer.commit(writer.prepare([entry]))
        return Stored(committed.xid, [], committed.touched_lanes)

    def changes(self) -> list[Any]:
        return [decode_view_change(body) for topic, body in self.published if topic != "beacon"]

    def beacons(self) -> list[Any]:
        return [decode_beacon(body) for topic, body in self.published if topic == "beacon"]

    def backfiller(self, **options: Any) -> Backfiller:
        return Backfiller(
            catalogue=self.catalogue,
            repairer=MemoryViewRepairer(self.database, self.clock),
            publisher=Publisher(self.channels, CircuitBreaker("test-redis", clock=self.clock)),
            share=LaneShare("one", 1.0),
            database=self.breaker,
            clock=self.clock,
            log=get_log("test"),
            **options,
        )


@pytest.fixture
async def bed() -> Bed:
    made = Bed()
    await made.catalogue.ensure_views([a_view(retention_days=36_500)])
    return made


async def test_a_poked_lane_is_folded_and_published(bed: Bed) -> None:
    folds, _ = bed.loop()
    await folds.fold_round()
    order = an_order()
    folds.mark(await bed.commit(order))
    assert await folds.fold_round() == 1
    [change] = bed.changes()
    assert (change.view, change.previous, change.version, len(change.rows)) == ("sales", 0, 1, 1)
    assert change.rows[0]["revenue"] == order.revenue_minor
    assert await folds.fold_round() == 0


async def test_an_untold_commit_is_found_by_the_next_poll(bed: Bed) -> None:
    folds, _ = bed.loop(poll_seconds=0.5)
    await folds.fold_round()
    await bed.commit(an_order())
    assert await folds.fold_round() == 0
    bed.clock.at += 0.5
    assert await folds.fold_round() == 1


async def test_a_gap_in_the_messages_asks_for_a_poll(bed: Bed) -> None:
    folds, _ = bed.loop()
    await folds.fold_round()
    listening = asyncio.create_task(folds.listen())
    await asyncio.sleep(0)
    await bed.commit(an_order())
    bed.channels.interrupt()
    for _ in range(5):
        await asyncio.sleep(0)
    assert await folds.fold_round() == 1
    listening.cancel()


@pytest.mark.parametrize("body", [b"nonsense", b'{"xid":"\xff"}', b"[]"])
async def test_a_message_that_makes_no_sense_asks_for_a_poll(bed: Bed, body: bytes) -> None:
    folds, _ = bed.loop()
    await folds.fold_round()
    listening = asyncio.create_task(folds.listen())
    await asyncio.sleep(0)
    await bed.commit(an_order())
    await bed.channels.publish("stored", body)
    for _ in range(5):
        await asyncio.sleep(0)
    assert await folds.fold_round() == 1
    assert not listening.done()
    listening.cancel()


async def test_two_instances_fold_each_lane_once(bed: Bed) -> None:
    one, one_share = bed.loop("one")
    two, two_share = bed.loop("two")
    for share in (one_share, two_share):
        share.set_members(["one", "two"])
    for folds in (one, two):
        await folds.fold_round()
    orders = [an_order(store=f"s{number}") for number in range(60)]
    stored = await bed.commit(*orders)
    one.mark(stored)
    two.mark(stored)
    first = await one.fold_round()
    second = await two.fold_round()
    assert 0 < first < 8
    assert first + second == 8


async def test_a_fold_too_large_for_one_round_goes_on_in_the_next(bed: Bed) -> None:
    folds, _ = bed.loop(deltas_max=2)
    await folds.fold_round()
    groups = [an_order(store=f"s{number}") for number in range(400)]
    lane = lane_of(next(iter(compute_deltas(a_view(), groups[:1]))), 8)
    same = [o for o in groups if lane_of(next(iter(compute_deltas(a_view(), [o]))), 8) == lane][:5]
    folds.mark(await bed.commit(*same))
    assert [await folds.fold_round() for _ in range(4)] == [1, 1, 1, 0]
    assert [change.version for change in bed.changes()] == [1, 2, 3]


async def test_folding_goes_on_while_channels_are_away(bed: Bed) -> None:
    folds, _ = bed.loop()
    await folds.fold_round()
    bed.channels.is_away = True
    for number in range(4):
        folds.mark(await bed.commit(an_order(store=f"s{number}")))
        assert await folds.fold_round() == 1
    assert bed.changes() == []


async def test_a_failed_fold_stays_marked(bed: Bed) -> None:
    folds, _ = bed.loop()
    await folds.fold_round()
    folds.mark(await bed.commit(an_order()))

    def fail(step: str) -> None:
        if step == "fold":
            raise Retryable("away")

    bed.database.fault_hook = fail
    with pytest.raises(Retryable):
        await folds.fold_round()
    bed.database.fault_hook = None
    assert await folds.fold_round() == 1


async def test_folds_stop_asking_a_database_that_keeps_failing(bed: Bed) -> None:
    folds, _ = bed.loop()
    await folds.fold_round()
    folds.mark(await bed.commit(an_order()))

    def fail(step: str) -> None:
        raise Retryable("away")

    bed.database.fault_hook = fail
    for _ in range(5):
        with pytest.raises(Retryable):
            await folds.fold_round()
    with pytest.raises(BreakerOpen):
        await folds.fold_round()


async def test_deltas_that_are_bad_data_are_put_away(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds, _ = bed.loop()
    await folds.fold_round()
    folds.mark(await bed.commit(an_order()))
    asked: list[LaneKey] = []

    async def refuse(view: str, lanes: list[int], deltas_max: int, rows_max: int) -> None:
        raise BadData("22003")

    async def quarantine(key: LaneKey, deltas_max: int) -> int:
        asked.append(key)
        return 1

    with monkeypatch.context() as patched:
        patched.setattr(bed.folder, "fold_lanes", refuse)
        patched.setattr(bed.folder, "quarantine", quarantine)
        assert await folds.fold_round() == 0
    assert len(asked) == 1
    assert await folds.fold_round() == 1


async def test_a_floor_left_behind_is_told_by_an_extra_beacon(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds, _ = bed.loop(poll_seconds=10.0)
    await folds.fold_round()
    stored = await bed.commit(an_order())
    folds.mark(Stored(stored.xid + 2, [], stored.lanes))
    await folds.fold_round()
    assert bed.beacons() == []
    bed.clock.at += SETTLE_SECONDS
    await folds.fold_round()
    [beacon] = bed.beacons()
    [lane] = stored.lanes["sales"]
    assert beacon.lanes["sales"][lane].version == 1
    while bed.database.next_xid() <= stored.xid + 2:
        pass
    bed.clock.at += SETTLE_SECONDS
    await folds.fold_round()
    bed.clock.at += SETTLE_SECONDS
    await folds.fold_round()
    assert len(bed.beacons()) == 2


async def test_lanes_that_are_folded_all_the_time_need_no_extra_beacon(bed: Bed) -> None:
    folds, _ = bed.loop(poll_seconds=10.0)
    await folds.fold_round()
    for _ in range(20):
        stored = await bed.commit(an_order())
        # The newest commit known is always one whose fold is still to come.
        folds.mark(Stored(stored.xid + 1000, [], stored.lanes))
        assert await folds.fold_round() == 1
        bed.clock.at += SETTLE_SECONDS / 4
    assert bed.beacons() == []


async def test_nobody_is_told_for_ever_of_a_view_that_is_gone(bed: Bed) -> None:
    folds, _ = bed.loop(poll_seconds=0.5)
    await folds.fold_round()
    stored = await bed.commit(an_order())
    folds.mark(Stored(stored.xid + 1000, [], stored.lanes))
    await folds.fold_round()
    await bed.catalogue.drop_view("sales")
    for _ in range(10):
        bed.clock.at += SETTLE_SECONDS
        await folds.fold_round()
    assert len(bed.beacons()) == 1


async def test_telling_makes_instances_known_to_each_other(bed: Bed) -> None:
    one, one_share = bed.loop("one")
    two, two_share = bed.loop("two")
    await one.tell_once()
    await two.tell_once()
    await one.tell_once()
    assert [one_share.members, two_share.members] == [("one", "two")] * 2
    assert [len(beacon.lanes["sales"]) for beacon in bed.beacons()] == [8, 8, 8]
    await one.withdraw()
    await two.tell_once()
    assert list(two_share.members) == ["two"]


async def test_rounds_keep_their_distance(bed: Bed) -> None:
    folds, _ = bed.loop(interval_seconds=0.05)
    started: list[float] = []
    inner = folds.fold_round

    async def fold_round() -> int:
        started.append(bed.clock.at)
        folds.mark(await bed.commit(an_order()))
        folds._wake.set()
        return await inner()

    folds.fold_round = fold_round  # type: ignore[method-assign]
    task = asyncio.create_task(folds.fold())
    for _ in range(200):
        await asyncio.sleep(0)
    task.cancel()
    assert len(started) > 3
    gaps = [later - earlier for earlier, later in itertools.pairwise(started)]
    assert min(gaps) >= 0.0499


async def test_an_instance_with_nothing_to_fold_starts_no_round(bed: Bed) -> None:
    """A round without work would only put off the next: rounds keep their distance."""
    folds, _ = bed.loop(interval_seconds=0.05, poll_seconds=1000.0)
    rounds: list[int] = []
    inner, sleep = folds.fold_round, bed.clock.sleep

    async def fold_round() -> int:
        rounds.append(await inner())
        return rounds[-1]

    async def sleep_short(seconds: float) -> None:
        if seconds > 1:
            await asyncio.Event().wait()
        if len(rounds) < 3:
            # A commit is told of while the loop keeps its distance.
            folds.mark(await bed.commit(an_order()))
            folds._wake.set()
        await sleep(seconds)

    folds.fold_round = fold_round  # type: ignore[method-assign]
    bed.clock.sleep = sleep_short  # type: ignore[method-assign]
    task = asyncio.create_task(folds.fold())
    for _ in range(200):
        await asyncio.sleep(0)
    assert rounds == [0, 1, 1]
    # What belongs to others wakes it in vain.
    for _ in range(5):
        folds._wake.set()
        for _ in range(20):
            await asyncio.sleep(0)
    assert rounds == [0, 1, 1]
    task.cancel()


async def fill_and_stop(bed: Bed, chunks: int) -> None:
    """Backfill until so many chunks are done, then fail."""
    done = 0

    def stop(step: str) -> None:
        nonlocal done
        if step == "rebuild":
            if done == chunks:
                raise Retryable("stopped")
            done += 1

    bed.database.fault_hook = stop
    with pytest.raises(Retryable):
        await bed.backfiller().fill_all()
    bed.database.fault_hook = None


def hourly_orders(hours: int) -> list[Order]:
    return [an_order(ordered_at_us=(NOW_MS - hour * HOUR * 1000) * 1000) for hour in range(hours)]


async def test_a_stopped_backfill_goes_on_where_it_was() -> None:
    bed = Bed()
    orders = hourly_orders(10)
    await bed.commit(*orders)
    await bed.catalogue.ensure_views([a_view(retention_days=36_500)])
    await fill_and_stop(bed, 4)
    [state] = await bed.catalogue.views()
    assert state.backfilled_to == NOW_MS // 1000 // HOUR * HOUR - 5 * HOUR
    shown: list[tuple[int, int]] = []

    def show(view: str, done: int, total: int) -> None:
        shown.append((done, total))

    assert await bed.backfiller(progress=show).fill_all() == ["sales_1"]
    assert shown == [(number, 6) for number in range(7)]
    [state] = await bed.catalogue.views()
    assert state.is_live
    rows = {group: row.measures for group, row in bed.database.views["sales_1"].rows.items()}
    expected = compute_deltas(a_view(), orders)
    assert rows == {group: delta.measures for group, delta in expected.items()}
    assert ("catalogue", b"{}") in bed.published
    assert await bed.backfiller().fill_all() == []


async def test_a_replacement_is_compared_before_it_takes_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bed = Bed()
    await bed.catalogue.ensure_views([a_view(retention_days=36_500)])
    await bed.commit(*hourly_orders(3))
    await bed.catalogue.ensure_views([a_view(retention_days=36_500, dimensions=["drink"])])
    compared: list[str] = []
    inner = MemoryViewRepairer.audit_chunk

    async def audit_chunk(repairer: MemoryViewRepairer, chunk: Any) -> list[Any]:
        compared.append(chunk.view)
        if len(compared) == 1:
            rows = bed.database.views["sales_2"].rows
            next(iter(rows.values())).measures[0] += 1
        return await inner(repairer, chunk)

    monkeypatch.setattr(MemoryViewRepairer, "audit_chunk", audit_chunk)
    await bed.backfiller().fill_all()
    assert set(compared) == {"sales_2"}
    assert len(compared) >= 4
    [state] = await bed.catalogue.views()
    assert (state.internal, state.is_current, state.is_live) == ("sales_2", True, True)


async def test_a_backfill_on_a_promoted_database_fills_again_what_that_one_lacks() -> None:
    bed = Bed()
    orders = hourly_orders(6)
    await bed.commit(*orders)
    await bed.catalogue.ensure_views([a_view(retention_days=36_500)])
    await fill_and_stop(bed, 2)
    standby = bed.database.snapshot()
    chunks = 0

    def promote(step: str) -> None:
        nonlocal chunks
        chunks += step == "rebuild"
        if step == "rebuild" and chunks == 3:
            bed.database.promote(standby)

    bed.database.fault_hook = promote
    with pytest.raises(Retryable):
        await bed.backfiller().fill_all()
    await bed.backfiller().fill_all()
    [state] = await bed.catalogue.views()
    assert (state.is_live, state.epoch) == (True, "1.0.2")
    rows = {group: row.measures for group, row in bed.database.views["sales_1"].rows.items()}
    expected = compute_deltas(a_view(), orders)
    assert rows == {group: delta.measures for group, delta in expected.items()}


async def test_a_filled_replacement_takes_over_though_its_filler_died_before_the_exchange(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bed = Bed()
    await bed.catalogue.ensure_views([a_view(retention_days=36_500)])
    await bed.commit(*hourly_orders(3))
    await bed.catalogue.ensure_views([a_view(retention_days=36_500, dimensions=["drink"])])

    async def die(catalogue: MemoryViewCatalogue, internal: str) -> None:
        raise Retryable("the connection broke")

    with monkeypatch.context() as patched:
        patched.setattr(MemoryViewCatalogue, "make_current", die)
        with pytest.raises(Retryable):
            await bed.backfiller().fill_all()
    await bed.backfiller().fill_all()
    [state] = await bed.catalogue.views()
    assert (state.internal, state.is_current, state.is_live) == ("sales_2", True, True)
