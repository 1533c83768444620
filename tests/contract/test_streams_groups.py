"""What a consumer group promises: nothing delivered is lost, nothing is acknowledged by mistake."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import REGISTRY

from coffee_rt.errors import Retryable
from coffee_rt.streams.contract import ENTRY_ID_ZERO, Delivery, EntryId, GroupReader
from coffee_rt.streams.producer import GroupProducer
from tests.streams_bed import Bed, an_append


async def append_entries(producer: GroupProducer, count: int, shard: int = 0) -> list[EntryId]:
    """That many entries of one record each."""
    return [
        (await producer.append(shard, an_append(producer, shard))).position.entry_id
        for _ in range(count)
    ]


async def read_some(reader: GroupReader, entries_max: int = 100) -> list[Delivery]:
    return await reader.read(0, entries_max, 0)


def metric(name: str, shard: int = 0) -> float:
    return REGISTRY.get_sample_value(name, {"shard": str(shard)}) or 0.0


async def test_entries_come_oldest_first_and_once(bed: Bed) -> None:
    ids = await append_entries(bed.producer(), 5)
    await bed.keeper().ensure_group("workers")
    first, second = bed.reader(consumer="a"), bed.reader(consumer="b")
    one, two = await read_some(first, 3), await read_some(second, 3)
    assert [entry.entry_id for entry in one] == ids[:3]
    assert [entry.entry_id for entry in two] == ids[3:]
    assert {entry.attempts for entry in one + two} == {1}
    assert await read_some(first) == []


async def test_a_waiting_read_gets_what_is_appended_meanwhile(bed: Bed) -> None:
    producer, reader = bed.producer(), bed.reader()
    await bed.keeper().ensure_group("workers")
    waiting = asyncio.ensure_future(reader.read(0, 10, 30.0))
    await asyncio.sleep(0.05)
    [entry_id] = await append_entries(producer, 1)
    assert [entry.entry_id for entry in await waiting] == [entry_id]


async def test_acknowledging_does_not_wait_for_a_blocked_read(bed: Bed) -> None:
    producer, reader = bed.producer(), bed.reader()
    await append_entries(producer, 1)
    await bed.keeper().ensure_group("workers")
    entries = await read_some(reader)
    waiting = asyncio.ensure_future(reader.read(0, 10, 30.0))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        assert await reader.acknowledge(0, entries) == 1
    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_entries_in_hand_can_be_acknowledged_after_a_read_was_cancelled(bed: Bed) -> None:
    await append_entries(bed.producer(), 2)
    await bed.keeper().ensure_group("workers")
    reader = bed.reader()
    entries = await read_some(reader)
    waiting = asyncio.ensure_future(reader.read(0, 10, 30.0))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await reader.acknowledge(0, entries) == 2
    await reader.leave()
    assert await bed.consumers(0, "workers") == set()


async def test_unacknowledged_entries_stay_ours_until_acknowledged(bed: Bed) -> None:
    await append_entries(bed.producer(), 3)
    await bed.keeper().ensure_group("workers")
    reader = bed.reader()
    entries = await read_some(reader)
    again = await reader.read_own_pending(0, 10, ENTRY_ID_ZERO)
    assert [entry.entry_id for entry in again] == [entry.entry_id for entry in entries]
    assert {entry.attempts for entry in again} == {2}
    assert again[0].data == entries[0].data
    after = await reader.read_own_pending(0, 10, entries[0].entry_id)
    assert [entry.entry_id for entry in after] == [entry.entry_id for entry in entries[1:]]
    assert await reader.acknowledge(0, entries) == 3
    assert await reader.acknowledge(0, entries) == 0
    assert await reader.read_own_pending(0, 10, ENTRY_ID_ZERO) == []


async def test_entries_of_a_dead_consumer_are_claimed_when_idle(bed: Bed) -> None:
    ids = await append_entries(bed.producer(), 4)
    await bed.keeper().ensure_group("workers")
    dead, living = bed.reader(consumer="dead"), bed.reader(consumer="living")
    await read_some(dead)
    assert await living.claim(0, 60.0, 10) == []
    first = await living.claim(0, 0.0, 3)
    second = await living.claim(0, 0.0, 3)
    claimed = {entry.entry_id: entry for entry in first + second}
    assert sorted(claimed) == ids
    assert first[0].attempts == 2
    assert await living.acknowledge(0, list(claimed.values())) == 4
    assert await dead.read_own_pending(0, 10, ENTRY_ID_ZERO) == []


async def test_entries_read_on_an_earlier_connection_are_not_acknowledged(bed: Bed) -> None:
    await append_entries(bed.producer(), 2)
    await bed.keeper().ensure_group("workers")
    reader = bed.reader()
    entries = await read_some(reader)
    dropped = metric("coffee_rt_log_acknowledgements_dropped_total")
    await bed.break_connections()
    with pytest.raises(Retryable):  # noqa: PT012
        for _ in range(50):
            assert await reader.acknowledge(0, entries) == 0
            await reader.read(0, 1, 0.001)
            if (await reader.read_own_pending(0, 1, ENTRY_ID_ZERO))[0].reader_epoch > 1:
                raise Retryable("reconnected")
    assert await reader.acknowledge(0, entries) == 0
    assert metric("coffee_rt_log_acknowledgements_dropped_total") > dropped
    again = await reader.read_own_pending(0, 10, ENTRY_ID_ZERO)
    assert again[0].reader_epoch > entries[0].reader_epoch
    assert await reader.acknowledge(0, again) == 2


async def test_a_lost_group_is_made_again_from_the_first_entry(bed: Bed) -> None:
    ids = await append_entries(bed.producer(), 3)
    await bed.keeper().ensure_group("workers")
    reader = bed.reader()
    await reader.acknowledge(0, await read_some(reader))
    await bed.destroy_group(0, "workers")
    entries: list[Delivery] = []
    for _ in range(3):
        entries += await read_some(reader)
    assert [entry.entry_id for entry in entries] == ids


async def test_everything_lost_is_survived(bed: Bed) -> None:
    producer, reader = bed.producer(), bed.reader()
    await bed.keeper().ensure_group("workers")
    await append_entries(producer, 2)
    await reader.acknowledge(0, await read_some(reader))
    await bed.lose_everything()
    await append_entries(producer, 1)
    entries: list[Delivery] = []
    for _ in range(3):
        entries += await read_some(reader)
    assert [entry.gap for entry in entries] == [(0, 2), None]
    assert await reader.acknowledge(0, entries) == 2


async def test_entries_deleted_while_pending_are_counted(bed: Bed) -> None:
    ids = await append_entries(bed.producer(), 3)
    await bed.keeper().ensure_group("workers")
    reader, other = bed.reader(consumer="a"), bed.reader(consumer="b")
    await read_some(reader)
    vanished = metric("coffee_rt_log_entries_vanished_total")
    await bed.delete_entry(0, ids[0])
    own = await reader.read_own_pending(0, 10, ENTRY_ID_ZERO)
    assert [entry.entry_id for entry in own] == ids[1:]
    await bed.delete_entry(0, ids[1])
    claimed = await other.claim(0, 0.0, 10)
    assert [entry.entry_id for entry in claimed] == ids[2:]
    assert metric("coffee_rt_log_entries_vanished_total") == vanished + 2


async def test_leaving_removes_a_consumer_only_when_it_holds_nothing(bed: Bed) -> None:
    await append_entries(bed.producer(), 2)
    await bed.keeper().ensure_group("workers")
    holding, idle = bed.reader(consumer="holding"), bed.reader(consumer="idle")
    await read_some(holding, 1)
    await idle.acknowledge(0, await read_some(idle))
    await holding.leave()
    await idle.leave()
    assert await bed.consumers(0, "workers") == {"holding"}
    assert len(await bed.reader(consumer="next").claim(0, 0.0, 10)) == 1


async def test_a_second_group_that_is_slow_never_loses_an_entry(bed: Bed) -> None:
    producer, keeper = bed.producer(), bed.keeper()
    await keeper.ensure_group("workers")
    await keeper.ensure_group("slow")
    ids = await append_entries(producer, 6)
    fast, slow = bed.reader("workers", "a"), bed.reader("slow", "s")
    await fast.acknowledge(0, await read_some(fast))
    await slow.acknowledge(0, await read_some(slow, 2))
    assert await keeper.trim(0, 0.0) == 2
    rest = await read_some(slow)
    assert [entry.entry_id for entry in rest] == ids[2:]
    await slow.acknowledge(0, rest)
    assert await keeper.trim(0, 0.0) == 4


async def test_an_entry_of_a_newer_version_is_delivered_without_a_fault(bed: Bed) -> None:
    await bed.keeper().ensure_group("workers")
    await bed.insert_raw(0, {b"v": b"99", b"b": b"B" * 16, b"x": b"?"})
    [entry] = await read_some(bed.reader())
    assert (entry.version, entry.batch_id, entry.fault) == (99, b"B" * 16, None)


@pytest.mark.parametrize(
    "fields",
    [
        {b"hello": b"world"},
        {b"v": b"one", b"b": b"B" * 16},
        {b"v": b"1", b"b": b"short", b"c": b"1", b"n": b"1", b"d": b"?"},
        {b"v": b"1", b"b": b"B" * 16, b"c": b"x", b"n": b"1", b"d": b"?"},
        {b"v": b"1", b"b": b"B" * 16, b"c": b"1", b"n": b"-1", b"d": b"?"},
        {b"v": b"1", b"b": b"B" * 16, b"c": b"1", b"n": b"0", b"g": b"9-4"},
        {b"v": b"1", b"b": b"B" * 16, b"c": b"1", b"n": b"1", b"d": b"?", b"t": b"\xff"},
    ],
)
async def test_a_strangers_entry_is_delivered_with_its_fault_and_raw_fields(
    bed: Bed, fields: dict[bytes, bytes]
) -> None:
    await bed.keeper().ensure_group("workers")
    await bed.insert_raw(0, fields)
    [entry] = await read_some(bed.reader())
    assert entry.fault
    assert entry.raw == fields
    assert entry.data == b""
