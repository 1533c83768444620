"""Care of the log: trim, backlog, horizon, look-ups."""

from __future__ import annotations

import asyncio

from coffee_rt.domain.ids import IdMinter, format_id
from coffee_rt.domain.wire import decode_record
from coffee_rt.streams.contract import ENTRY_ID_ZERO, EntryId, Position
from coffee_rt.streams.flush import ProducerLimits
from tests.contract.test_streams_groups import append_entries, read_some
from tests.streams_bed import Bed, RedisBed, an_append


async def test_only_what_every_group_acknowledged_is_trimmed(bed: Bed) -> None:
    producer, keeper, reader = bed.producer(), bed.keeper(), bed.reader()
    await keeper.ensure_group("workers")
    await append_entries(producer, 5)
    assert await keeper.trim(0, 0.0) == 0  # Nothing is delivered.
    entries = await read_some(reader, 4)
    assert await keeper.trim(0, 0.0) == 0  # Nothing is acknowledged.
    await reader.acknowledge(0, [entries[0], entries[2], entries[3]])
    assert await keeper.trim(0, 0.0) == 1  # The second is the lowest pending one.
    await reader.acknowledge(0, [entries[1]])
    assert await keeper.trim(0, 0.0) == 3
    assert (await keeper.horizon(0)).first_entry is not None  # The fifth was never delivered.


async def test_acknowledged_entries_are_kept_for_a_while(bed: Bed) -> None:
    producer, keeper, reader = bed.producer(), bed.keeper(), bed.reader()
    await keeper.ensure_group("workers")
    await append_entries(producer, 3)
    await reader.acknowledge(0, await read_some(reader))
    assert await keeper.trim(0, 600.0) == 0
    assert await keeper.trim(0, 600.0) == 0
    assert await keeper.trim(0, 0.0) == 3


async def test_a_group_set_back_keeps_what_it_wants_again(bed: Bed) -> None:
    producer, keeper, reader = bed.producer(), bed.keeper(), bed.reader()
    await keeper.ensure_group("workers")
    ids = await append_entries(producer, 4)
    await reader.acknowledge(0, await read_some(reader))
    await bed.set_group_back(0, "workers", ids[1])
    assert await keeper.trim(0, 0.0) == 2
    assert [entry.entry_id for entry in await read_some(reader)] == ids[2:]


async def test_a_mark_left_before_a_group_was_set_back_frees_nothing_above_it(bed: Bed) -> None:
    producer, keeper, reader = bed.producer(), bed.keeper(), bed.reader()
    await keeper.ensure_group("workers")
    ids = await append_entries(producer, 4)
    await reader.acknowledge(0, await read_some(reader))
    assert await keeper.trim(0, 600.0) == 0  # Leaves a mark: all four were acknowledged by now.
    await asyncio.sleep(0.06)
    await bed.set_group_back(0, "workers", ids[1])
    assert await keeper.trim(0, 0.05) == 2
    assert [entry.entry_id for entry in await read_some(reader)] == ids[2:]


async def test_a_missing_registered_group_stops_the_trim(bed: Bed) -> None:
    producer, keeper, reader = bed.producer(), bed.keeper(), bed.reader()
    await keeper.ensure_group("workers")
    await keeper.ensure_group("second")
    ids = await append_entries(producer, 3)
    await reader.acknowledge(0, await read_some(reader))
    await bed.destroy_group(0, "second")
    assert await keeper.trim(0, 0.0) == 0
    second = await read_some(bed.reader("second", "s"))
    assert [entry.entry_id for entry in second] == ids


async def test_nothing_is_trimmed_without_a_registered_group(bed: Bed) -> None:
    await append_entries(bed.producer(), 3)
    assert await bed.keeper().trim(0, 0.0) == 0


async def test_a_foreign_group_pins_entries_and_is_named(bed: Bed) -> None:
    producer, keeper, reader = bed.producer(), bed.keeper(), bed.reader()
    await keeper.ensure_group("workers")
    await append_entries(producer, 3)
    await bed.create_foreign_group(0, "stranger")
    await reader.acknowledge(0, await read_some(reader))
    assert await keeper.trim(0, 0.0) == 0
    assert await keeper.foreign_groups() == {"stranger": [0]}
    await bed.destroy_group(0, "stranger")
    assert await keeper.foreign_groups() == {}
    assert await keeper.trim(0, 0.0) == 3


async def test_a_server_that_does_not_keep_what_it_answered_is_named(bed: Bed) -> None:
    """The tests' server writes nothing to disk; memory is as safe as it can be."""
    expected = ["append-only"] if isinstance(bed, RedisBed) else []
    assert await bed.keeper().unsafe_reasons() == expected


async def test_backlog_counts_records_by_the_counters(bed: Bed) -> None:
    producer, keeper, reader = bed.producer(), bed.keeper(), bed.reader()
    await keeper.ensure_group("workers")
    for count in (3, 4, 5):
        await producer.append_many(0, [an_append(producer) for _ in range(count)])
    one, *_, empty = await keeper.backlog("workers")
    assert (one.records, one.undelivered_records, one.pending_entries) == (12, 12, 0)
    assert (one.length_entries, one.counter, one.settled_counter) == (3, 12, 0)
    assert one.oldest_entry is not None
    assert 0 <= one.oldest_seconds < 5
    assert one.memory_bytes > 0
    assert (empty.records, empty.oldest_entry, empty.oldest_seconds) == (0, None, 0)
    entries = await read_some(reader, 2)
    [one, *_] = await keeper.backlog("workers")
    assert (one.records, one.undelivered_records, one.pending_entries) == (12, 5, 2)
    await reader.acknowledge(0, entries[:1])
    [one, *_] = await keeper.backlog("workers")
    assert (one.records, one.settled_counter) == (9, 3)
    assert one.oldest_entry == entries[1].entry_id
    # One stuck entry must not make everything after it count as undelivered.
    await reader.acknowledge(0, await read_some(reader))
    [one, *_] = await keeper.backlog("workers")
    assert (one.records, one.undelivered_records, one.pending_entries) == (9, 0, 1)
    await reader.acknowledge(0, entries[1:])
    [one, *_] = await keeper.backlog("workers")
    assert (one.records, one.settled_counter, one.oldest_entry) == (0, 12, None)


async def test_the_counter_below_a_gap_is_where_the_gap_begins(bed: Bed) -> None:
    producer, keeper, reader = bed.producer(), bed.keeper(), bed.reader()
    await keeper.ensure_group("workers")
    await producer.append_many(0, [an_append(producer) for _ in range(10)])
    await reader.acknowledge(0, await read_some(reader))
    await bed.set_counter(0, 4)
    await append_entries(producer, 1)
    [one, *_] = await keeper.backlog("workers")
    assert (one.counter, one.settled_counter, one.records) == (11, 4, 7)
    # The lost records wait for nobody: they must not stop the intake.
    assert one.undelivered_records == 1
    gap, entry = await read_some(reader)
    await reader.acknowledge(0, [gap])
    [one, *_] = await keeper.backlog("workers")
    assert (one.settled_counter, one.records, one.oldest_entry) == (10, 1, entry.entry_id)


async def test_a_strangers_entry_counts_nothing_wherever_it_waits(bed: Bed) -> None:
    producer, keeper, reader = bed.producer(), bed.keeper(), bed.reader()
    await keeper.ensure_group("workers")
    await append_entries(producer, 3)
    await reader.acknowledge(0, await read_some(reader))
    await bed.insert_raw(0, {b"what": b"ever"})
    await bed.insert_raw(0, {b"c": b"minus one", b"n": b"many"})
    [one, *_] = await keeper.backlog("workers")
    assert (one.settled_counter, one.records, one.undelivered_records) == (3, 0, 0)
    await append_entries(producer, 2)
    [one, *_] = await keeper.backlog("workers")
    assert (one.settled_counter, one.records, one.undelivered_records) == (3, 2, 2)
    strangers = await read_some(reader, 2)
    [one, *_] = await keeper.backlog("workers")
    assert one.oldest_entry == strangers[0].entry_id
    assert (one.settled_counter, one.records, one.undelivered_records) == (3, 2, 2)


async def test_backlog_of_a_missing_group_is_everything_there_is(bed: Bed) -> None:
    producer, keeper, reader = bed.producer(), bed.keeper(), bed.reader()
    await append_entries(producer, 2)
    [one, *_, empty] = await keeper.backlog("nobody")
    assert (one.records, one.undelivered_records, one.settled_counter) == (2, 2, 0)
    assert (empty.records, empty.oldest_entry) == (0, None)
    await keeper.ensure_group("workers")
    await reader.acknowledge(0, await read_some(reader))
    await append_entries(producer, 3)
    assert await keeper.trim(0, 0.0) == 2
    # What was trimmed waits for nobody: a group that is made again starts at the first entry left.
    [one, *_] = await keeper.backlog("nobody")
    assert (one.records, one.undelivered_records, one.settled_counter) == (3, 3, 2)


async def test_horizon_tells_first_lowest_and_last(bed: Bed) -> None:
    producer, keeper, reader = bed.producer(), bed.keeper(), bed.reader()
    assert await keeper.horizon(0) == (await keeper.horizon(0))
    assert (await keeper.horizon(0)).first_entry is None
    await keeper.ensure_group("workers")
    ids = await append_entries(producer, 3)
    await reader.acknowledge(0, await read_some(reader, 1))
    horizon = await keeper.horizon(0)
    assert horizon.first_entry == ids[0]
    assert horizon.lowest_unacknowledged == ids[1]
    assert (horizon.counter, horizon.last_entry) == (3, ids[2])
    await reader.acknowledge(0, await read_some(reader))
    assert (await keeper.horizon(0)).lowest_unacknowledged is None


async def test_an_order_is_found_by_id_until_it_is_trimmed(bed: Bed) -> None:
    producer, keeper, reader = bed.producer(), bed.keeper(), bed.reader()
    await keeper.ensure_group("workers")
    minter = IdMinter()
    for _ in range(3):
        await append_entries(producer, 40)  # More than a page of entries around it.
        order_id = minter.mint(producer.now_ms(), 0)
        append = an_append(producer, order_id=order_id)
        appended = await producer.append(0, append)
        found = await keeper.find_order(order_id)
        assert found is not None
        assert found[0] == appended.position
        assert found[1] == append.record
        assert format_id(decode_record(found[1]).order_id) == format_id(order_id)
    assert await keeper.find_order(minter.mint(producer.now_ms(), 0)) is None
    assert await keeper.find_order(minter.mint(producer.now_ms(), 900)) is None
    while entries := await read_some(reader):
        await reader.acknowledge(0, entries)
    await keeper.trim(0, 0.0)
    assert await keeper.find_order(order_id) is None


async def test_a_clients_own_id_is_found_on_whatever_shard_it_is(bed: Bed) -> None:
    producer, keeper, reader = bed.producer(), bed.keeper(), bed.reader()
    await keeper.ensure_group("workers")
    hour_ago = producer.now_ms() - 3_600_000
    order_id = IdMinter().mint(hour_ago, 1)
    append = an_append(producer, 2, order_id=order_id, is_client_id=True, key=b"K")
    appended = await producer.append(2, append)
    assert await keeper.find_order(order_id) == (
        appended.position,
        append.record,
    )
    await reader.acknowledge(2, await reader.read(2, 10, 0.01))
    await keeper.trim(2, 0.0)
    assert await keeper.find_order(order_id) is None


async def test_settled_means_delivered_and_acknowledged(bed: Bed) -> None:
    producer, keeper, reader = bed.producer(), bed.keeper(), bed.reader()
    await keeper.ensure_group("workers")
    first = (await producer.append(0, an_append(producer))).position
    assert not await keeper.is_settled("workers", first)
    entries = await read_some(reader)
    assert not await keeper.is_settled("workers", first)
    await reader.acknowledge(0, entries)
    assert await keeper.is_settled("workers", first)
    assert not await keeper.is_settled("nobody", first)
    later = Position(0, EntryId(first.entry_id.ms, first.entry_id.seq + 1), first.batch_id)
    assert not await keeper.is_settled("workers", later)
    assert not await keeper.is_settled("workers", first._replace(batch_id=bytes(15) + b"1"))
    assert await keeper.is_settled("workers", first._replace(batch_id=bytes(16)))
    await append_entries(producer, 1)
    await reader.acknowledge(0, await read_some(reader))
    assert await keeper.trim(0, 0.0) == 2
    assert await keeper.is_settled("workers", first)


async def test_an_entry_that_was_lost_is_not_settled_by_those_after_it(bed: Bed) -> None:
    producer, keeper, reader = bed.producer(), bed.keeper(), bed.reader()
    await keeper.ensure_group("workers")
    await append_entries(producer, 1)
    lost = (await producer.append(0, an_append(producer))).position
    await bed.delete_entry(0, lost.entry_id)
    await append_entries(producer, 1)
    await reader.acknowledge(0, await read_some(reader))
    assert not await keeper.is_settled("workers", lost)


async def test_idle_consumers_are_removed_unless_they_hold_entries(bed: Bed) -> None:
    producer, keeper = bed.producer(), bed.keeper()
    await keeper.ensure_group("workers")
    await append_entries(producer, 2)
    await read_some(bed.reader(consumer="holding"), 1)
    idle = bed.reader(consumer="idle")
    await idle.acknowledge(0, await read_some(idle))
    assert await keeper.remove_idle_consumers("workers", 3600.0) == 0
    assert await keeper.remove_idle_consumers("workers", 0.0) == 1
    assert await bed.consumers(0, "workers") == {"holding"}


async def test_registering_a_group_twice_moves_nothing(bed: Bed) -> None:
    producer, keeper, reader = bed.producer(), bed.keeper(), bed.reader()
    await append_entries(producer, 2)
    await keeper.ensure_group("workers")
    await reader.acknowledge(0, await read_some(reader))
    await keeper.ensure_group("workers")
    assert await read_some(reader) == []
    assert await keeper.registered_groups() == ["workers"]


async def test_memory_is_told(bed: Bed) -> None:
    producer = bed.producer(ProducerLimits())
    await append_entries(producer, 1)
    used, maximum = await bed.keeper().memory()
    assert used > 0
    assert maximum >= 0


async def test_a_group_follows_the_timeline_of_its_store(bed: Bed) -> None:
    producer, keeper, reader = bed.producer(), bed.keeper(), bed.reader()
    await keeper.ensure_group("workers")
    ids = await append_entries(producer, 3)
    await reader.acknowledge(0, await read_some(reader))
    assert await keeper.follow_timeline("workers", "7.1", 600.0) == []  # The first it hears of.
    assert await keeper.follow_timeline("workers", "7.1", 600.0) == []
    assert await read_some(reader) == []
    assert await keeper.follow_timeline("workers", "7.2", 600.0) == [0]  # The others are empty.
    again = await read_some(reader)
    assert [entry.entry_id for entry in again] == ids
    await reader.acknowledge(0, again)
    assert await keeper.follow_timeline("workers", "7.2", 600.0) == []
    assert await read_some(reader) == []


async def test_what_was_committed_to_another_timeline_is_not_acknowledged(bed: Bed) -> None:
    producer, keeper, reader = bed.producer(), bed.keeper(), bed.reader()
    await keeper.ensure_group("workers")
    await append_entries(producer, 3)
    first, *others = await read_some(reader)
    assert await reader.acknowledge(0, [first], "7.1") == 1  # Nobody told the log of any.
    await keeper.follow_timeline("workers", "7.1", 600.0)
    await keeper.follow_timeline("workers", "7.2", 600.0)
    assert [entry.entry_id for entry in await read_some(reader)][1:] == [
        entry.entry_id for entry in others
    ]
    # Of the first delivery, told late: what came with it is pending again, and stays so.
    assert await reader.acknowledge(0, others, "7.1") == 0
    assert len(await reader.read_own_pending(0, 10, ENTRY_ID_ZERO)) == 3
    assert await reader.acknowledge(0, [first, *others], "7.2") == 3


async def test_a_timeline_sets_a_group_back_no_further_than_what_is_kept(bed: Bed) -> None:
    producer, keeper, reader = bed.producer(), bed.keeper(), bed.reader()
    await keeper.ensure_group("workers")
    await append_entries(producer, 2)
    await reader.acknowledge(0, await read_some(reader))
    assert await keeper.trim(0, 600.0) == 0  # Leaves a mark: both were acknowledged by now.
    await asyncio.sleep(0.02)
    await keeper.follow_timeline("workers", "7.1", 0.01)
    later = await append_entries(producer, 2)
    await reader.acknowledge(0, await read_some(reader))
    assert await keeper.follow_timeline("workers", "7.2", 0.01) == [0]
    again = await read_some(reader)
    assert [entry.entry_id for entry in again if entry.entry_id >= later[0]] == later
    assert len(again) < 4


async def test_a_timeline_never_moves_a_group_forward(bed: Bed) -> None:
    producer, keeper, reader = bed.producer(), bed.keeper(), bed.reader()
    await keeper.ensure_group("workers")
    await keeper.follow_timeline("workers", "7.1", 600.0)
    ids = await append_entries(producer, 2)
    assert await keeper.follow_timeline("workers", "7.2", 0.0) == []
    assert await keeper.follow_timeline("nobody", "7.1", 0.0) == []
    assert await keeper.follow_timeline("nobody", "7.2", 0.0) == []
    assert [entry.entry_id for entry in await read_some(reader)] == ids
