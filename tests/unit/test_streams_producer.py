"""The producer over a log in memory whose answers are lost, late, refused or broken."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from coffee_rt.domain.wire import decode_batch
from coffee_rt.errors import Bug, NotExecuted, Overload, Retryable
from coffee_rt.runtime.clock import SystemClock
from coffee_rt.streams.contract import ENTRY_ID_ZERO, Appended, Outcome
from coffee_rt.streams.flush import ProducerLimits
from coffee_rt.streams.memory import MemoryLog, MemoryTarget
from coffee_rt.streams.memory_groups import MemoryKeeper, MemoryReader
from coffee_rt.streams.producer import GroupProducer
from tests.streams_bed import WrongClock, an_append

SHARDS = 2


def a_producer(log: MemoryLog, limits: ProducerLimits | None = None) -> GroupProducer:
    return GroupProducer(MemoryTarget(log, SHARDS, limits), log.clock, limits)


def failing(point: str, make: Callable[[], Exception], times: int = 1) -> MemoryLog:
    """A log that fails at a point so many times."""
    left = times

    async def fault(at: str, shard: int) -> None:
        nonlocal left
        if at == point and left:
            left -= 1
            raise make()

    return MemoryLog(SystemClock(), SHARDS, faults=fault)


def logged(log: MemoryLog, shard: int = 0) -> list[bytes]:
    return [
        order.order_id
        for entry_id in log.shards[shard].ids
        if (data := log.shards[shard].entries[entry_id].get(b"d"))
        for order in decode_batch(1, data)
    ]


@pytest.mark.parametrize("point", ["append.send", "append.answer"])
async def test_a_retry_after_a_failure_finds_one_order(point: str) -> None:
    log = failing(point, lambda: Retryable("lost"))
    producer = a_producer(log)
    first = an_append(producer, key=b"K", body=b"b")
    with pytest.raises(Retryable):
        await producer.append(0, first)
    again = await producer.append(0, an_append(producer, key=b"K", body=b"b"))
    assert logged(log) == [again.order_id]
    was_logged = point == "append.answer"
    assert again.outcome is (Outcome.DUPLICATE if was_logged else Outcome.NEW)
    await producer.close()


@pytest.mark.parametrize("seconds", [3.0, -90.0])
async def test_ids_of_a_clock_that_is_off_are_not_logged_before_the_logs_is_known(
    seconds: float,
) -> None:
    log = MemoryLog(SystemClock(), SHARDS)
    clock = WrongClock(seconds)
    producer = GroupProducer(MemoryTarget(log, SHARDS, clock=clock), clock)
    # Redis was away when the process started: nobody has told it the time.
    early = [producer.append(shard, an_append(producer)) for shard in range(SHARDS)]
    for answer in await asyncio.gather(*early, return_exceptions=True):
        assert isinstance(answer, NotExecuted)
    assert not any(shard.ids for shard in log.shards)
    order = an_append(producer)
    position = (await producer.append(0, order)).position
    found = await MemoryKeeper(log).find_order(order.order_id)
    assert found is not None
    assert found[0] == position
    await producer.close()


async def test_each_caller_gets_a_failure_of_its_own_with_its_kind() -> None:
    for kind in (NotExecuted("never sent"), Overload("log-full", "full", 5.0), Retryable("lost")):
        log = failing("append.send", lambda kind=kind: kind)  # type: ignore[misc]
        producer = a_producer(log)
        answers = await asyncio.gather(
            *(producer.append(0, an_append(producer)) for _ in range(3)), return_exceptions=True
        )
        assert {type(answer) for answer in answers} == {type(kind)}
        assert len({id(answer) for answer in answers}) == 3
        assert {str(answer) for answer in answers} == {str(kind)}
        await producer.close()


async def test_a_request_logged_in_part_is_unknown_not_unexecuted() -> None:
    failures = iter([None, NotExecuted("never sent"), None])

    async def fault(point: str, shard: int) -> None:
        if point == "append.send" and (error := next(failures)) is not None:
            raise error

    log = MemoryLog(SystemClock(), SHARDS, faults=fault)
    producer = a_producer(log, ProducerLimits(flush_records_max=2))
    with pytest.raises(Retryable) as caught:
        await producer.append_many(0, [an_append(producer) for _ in range(6)])
    assert not isinstance(caught.value, NotExecuted)
    assert len(logged(log)) == 4
    await producer.close()


async def test_records_that_arrive_together_share_one_flush() -> None:
    log = MemoryLog(SystemClock(), SHARDS)
    producer = a_producer(log, ProducerLimits(flush_records_max=4))

    async def append() -> Appended:
        shard = producer.choose_shard()
        return await producer.append(shard, an_append(producer, shard))

    for count, entries in ((3, 1), (1, 1), (8, 2)):
        appended = await asyncio.gather(*(append() for _ in range(count)))
        assert len({one.position for one in appended}) == entries
    assert {shard.counter for shard in log.shards} == {5, 7}
    await producer.close()


async def test_a_request_refused_whole_says_so() -> None:
    log = failing("append.send", lambda: NotExecuted("never sent"), times=3)
    producer = a_producer(log, ProducerLimits(flush_records_max=2))
    with pytest.raises(NotExecuted):
        await producer.append_many(0, [an_append(producer) for _ in range(6)])
    assert logged(log) == []
    await producer.close()


async def test_a_request_too_large_for_the_queue_takes_no_place_in_it() -> None:
    log = MemoryLog(SystemClock(), SHARDS)
    producer = a_producer(log, ProducerLimits(flush_records_max=2, queue_records_max=4))
    waiting = asyncio.ensure_future(producer.append(0, an_append(producer)))
    await asyncio.sleep(0)
    with pytest.raises(Overload):
        await producer.append_many(0, [an_append(producer) for _ in range(4)])
    assert (await waiting).outcome is Outcome.NEW
    assert len(logged(log)) == 1
    await producer.close()


@pytest.mark.parametrize("kind", [Bug, ZeroDivisionError])
async def test_a_bug_in_a_flush_leaves_nobody_waiting_and_is_seen(kind: type[Exception]) -> None:
    producer = a_producer(failing("append.send", lambda: kind("broken")))
    watch = asyncio.ensure_future(producer.join())
    with pytest.raises(Retryable):
        await producer.append(0, an_append(producer))
    with pytest.raises(kind):
        await watch
    with pytest.raises(NotExecuted):
        await producer.append(0, an_append(producer))
    with pytest.raises(kind):
        await producer.close()


async def test_cancelling_the_watch_stops_no_flush() -> None:
    log = MemoryLog(SystemClock(), SHARDS)
    producer = a_producer(log)
    watch = asyncio.ensure_future(producer.join())
    await asyncio.sleep(0)
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch
    assert (await producer.append(0, an_append(producer))).outcome is Outcome.NEW
    await producer.close()


async def test_records_wait_for_the_flush_under_way_and_then_go_together() -> None:
    gate = asyncio.Event()

    async def slow(point: str, shard: int) -> None:
        if point == "append.answer":
            await gate.wait()

    log = MemoryLog(SystemClock(), SHARDS, faults=slow)
    producer = a_producer(log)
    waits = [asyncio.ensure_future(producer.append(0, an_append(producer)))]
    await asyncio.sleep(0.01)
    waits += [asyncio.ensure_future(producer.append(0, an_append(producer))) for _ in range(50)]
    await asyncio.sleep(0.01)
    assert len(log.shards[0].ids) == 1
    gate.set()
    appended = await asyncio.gather(*waits)
    assert len({one.position for one in appended}) == 2
    await producer.close()


@pytest.mark.parametrize("seed", range(20))
async def test_no_accepted_order_is_missing_and_none_is_twice(seed: int) -> None:
    """Random faults before and after every effect, readers that die, clients that retry by key."""
    dice = random.Random(seed)

    async def fault(point: str, shard: int) -> None:
        if dice.random() < 0.25:
            raise Retryable(point)
        if dice.random() < 0.5:
            await asyncio.sleep(0)

    log = MemoryLog(SystemClock(), SHARDS, faults=fault)
    producer = a_producer(log, ProducerLimits(flush_records_max=3, keyed_records_max=2))

    async def client(name: int) -> bytes:
        body, key = b"%d" % name, b"k%d" % name
        while True:
            try:
                shard = name % SHARDS
                append = an_append(producer, shard, key=key, body=body)
                return (await producer.append(shard, append)).order_id
            except Retryable:
                await asyncio.sleep(0)

    accepted = await asyncio.gather(*(client(name) for name in range(30)))
    stored: set[bytes] = set()
    for shard in range(SHARDS):
        stored |= await drain(log, shard, dice)
    assert set(accepted) <= stored
    everything = [order_id for shard in range(SHARDS) for order_id in logged(log, shard)]
    assert len(everything) == len(set(everything)) == len(accepted)
    await producer.close()


async def drain(log: MemoryLog, shard: int, dice: random.Random) -> set[bytes]:
    """Read a shard to its end with consumers that die now and then."""
    stored: set[bytes] = set()
    number = 0
    while True:
        reader = MemoryReader(log, "workers", f"consumer-{number}")
        try:
            entries = await reader.read_own_pending(shard, 10, ENTRY_ID_ZERO)
            entries += await reader.claim(shard, 0.0, 10)
            entries += await reader.read(shard, 2, 0.0)
            for entry in entries:
                stored |= {order.order_id for order in decode_batch(1, entry.data)}
            await reader.acknowledge(shard, entries)
        except Retryable:
            number += dice.randrange(2)
            continue
        group = log.shards[shard].groups["workers"]
        if not entries and not group.pending:
            return stored


def test_appended_and_append_are_cheap_structs() -> None:
    """The hot path makes one of each for every order: no dictionary, nothing for the collector."""
    append = Appended(Outcome.NEW, b"", None)  # type: ignore[arg-type]
    assert not hasattr(append, "__dict__")


class HandClock(SystemClock):
    """A clock that goes on when told to."""

    def __init__(self) -> None:
        self.moment = 100.0

    def monotonic(self) -> float:
        return self.moment


def a_stalling_producer(clock: HandClock) -> tuple[GroupProducer, asyncio.Event]:
    """Shard 0 is answered when the event is set, shard 1 at once."""
    answering = asyncio.Event()

    async def fault(point: str, shard: int) -> None:
        if point == "append.answer" and shard == 0:
            await answering.wait()

    log = MemoryLog(SystemClock(), SHARDS, faults=fault)
    limits = ProducerLimits(wait_seconds_max=0.5)
    return GroupProducer(MemoryTarget(log, SHARDS, limits), clock, limits), answering


async def test_a_shard_that_stalls_takes_no_more_and_the_others_do() -> None:
    clock = HandClock()
    producer, answering = a_stalling_producer(clock)
    assert producer.look() == 0
    stuck = asyncio.ensure_future(producer.append(0, an_append(producer)))
    await asyncio.sleep(0.01)
    clock.moment += 0.2
    assert producer.look() == 0
    waiting = asyncio.ensure_future(producer.append(0, an_append(producer)))
    await asyncio.sleep(0)
    clock.moment += 0.1
    # As long again as it has taken already, and then the flush of those who come now.
    producer.look()
    with pytest.raises(Overload, match="log-slow"):
        await producer.append(0, an_append(producer))
    with pytest.raises(Overload, match="log-slow"):
        await producer.append_plain(0, [b"record"])
    # Orders without a key go elsewhere.
    assert [producer.choose_shard() for _ in range(4)] == [1] * 4
    assert (await producer.append(1, an_append(producer, 1))).outcome is Outcome.NEW
    answering.set()
    await asyncio.gather(stuck, waiting)
    # Idle now: only trying can show that it is fast again.
    assert producer.look() == 0
    assert (await producer.append(0, an_append(producer))).outcome is Outcome.NEW
    await producer.close()


async def test_the_log_is_as_slow_as_its_fastest_shard() -> None:
    clock = HandClock()
    answering = asyncio.Event()

    async def fault(point: str, shard: int) -> None:
        if point == "append.answer":
            await answering.wait()

    log = MemoryLog(SystemClock(), SHARDS, faults=fault)
    producer = GroupProducer(MemoryTarget(log, SHARDS), clock)
    asked = [
        asyncio.ensure_future(producer.append(shard, an_append(producer, shard)))
        for shard in range(SHARDS)
    ]
    await asyncio.sleep(0.01)
    clock.moment += 0.4
    assert producer.look() == pytest.approx(0.8)
    answering.set()
    await asyncio.gather(*asked)
    assert producer.look() == 0
    await producer.close()
