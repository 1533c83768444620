"""What a store remembers of entries it forgets, and what it counts: sums, gaps, numbers."""

from __future__ import annotations

import pytest

from coffee_rt.store.contract import DeadRecord, accounted_records
from tests.builders import NOW_MS, an_order
from tests.store_harness import WriteStore, an_entry

END = (2**62, 0)
"""Behind every entry."""


async def test_compaction_keeps_every_sum(store: WriteStore) -> None:
    order = an_order()
    entries = [
        an_entry(order, an_order(), shard=1, ms=NOW_MS),
        an_entry(order, shard=1, ms=NOW_MS + 90_000),
        an_entry(shard=1, ms=NOW_MS + 100_000, dead=[DeadRecord(0, b"", "unreadable-record", "")]),
        an_entry(an_order(), shard=2),
    ]
    await store.commit(*entries)
    before = await store.keeper.ledger_sums(1, None)
    assert (before["stored"], before["duplicates"], before["dead"]) == (2, 1, 1)
    assert (await store.keeper.ledger_sums(1, entries[1].entry))["stored"] == 2
    assert await store.keeper.compact_ledger(1, entries[2].entry) == 2
    assert await store.keeper.compact_ledger(1, entries[2].entry) == 0
    assert await store.keeper.ledger_sums(1, None) == before
    assert await store.reader.is_entry_stored(1, entries[0].batch_id)
    assert await store.reader.is_entry_stored(1, entries[2].batch_id)
    assert await store.reader.is_entry_stored(2, entries[3].batch_id)
    assert not await store.reader.is_entry_stored(1, an_entry(ms=NOW_MS + 100_000).batch_id)


@pytest.mark.parametrize("is_compacted", [False, True])
async def test_gap_counts_only_records_that_were_not_stored(
    store: WriteStore, is_compacted: bool
) -> None:
    kept = an_entry(an_order(), an_order(), counter=2)
    stored_then_lost = an_entry(an_order(), counter=3)
    gap = an_entry(counter=10, gap=(2, 10))
    last = an_entry(an_order(), counter=11)
    await store.commit(kept, stored_then_lost)
    await store.commit(gap, last)
    if is_compacted:
        await store.keeper.compact_ledger(0, last.entry)
    sums = await store.keeper.ledger_sums(0, None)
    assert (sums["gap_records"], sums["lost"]) == (8, 7)
    assert sums["stored"] + sums["duplicates"] + sums["dead"] + sums["lost"] == last.counter
    assert (await store.keeper.ledger_sums(0, gap.entry))["gap_records"] == 0


async def test_what_was_stored_and_compacted_before_a_log_was_emptied_is_not_lost(
    store: WriteStore,
) -> None:
    stored = [an_entry(an_order(), an_order(), counter=2), an_entry(an_order(), counter=3)]
    gap = an_entry(counter=4, gap=(0, 4))
    last = an_entry(an_order(), counter=5)
    await store.commit(*stored)
    await store.keeper.compact_ledger(0, gap.entry)
    await store.commit(gap, last)
    sums = await store.keeper.ledger_sums(0, None)
    assert (sums["gap_records"], sums["lost"]) == (4, 1)
    assert await store.keeper.uncounted_records(0, END, 5) == 0


@pytest.mark.parametrize("compacted", [0, 2, 5, 7])
async def test_numbers_given_twice_are_not_taken_for_missing_or_double_records(
    store: WriteStore, compacted: int
) -> None:
    """Two producers tell a log that went back from 7 to 3 what they know of it, one after the other."""
    entries = [
        an_entry(*(an_order() for _ in range(3)), counter=3),
        an_entry(an_order(), an_order(), counter=5),
        an_entry(an_order(), counter=6),
        an_entry(an_order(), counter=7),
        an_entry(counter=5, gap=(3, 5)),
        an_entry(an_order(), counter=6),
        an_entry(counter=7, gap=(6, 7)),
        an_entry(an_order(), counter=8),
    ]
    await store.commit(*entries)
    await store.keeper.compact_ledger(0, entries[compacted].entry)
    sums = await store.keeper.ledger_sums(0, None)
    assert 8 - accounted_records(sums) == -1
    assert await store.keeper.uncounted_records(0, END, 8) == 0
    assert await store.keeper.uncounted_records(0, entries[7].entry, 8) == 1
    assert await store.keeper.uncounted_records(0, END, 11) == 3


async def test_a_strangers_entry_that_claims_records_has_no_numbers(store: WriteStore) -> None:
    dead = [DeadRecord(0, b"", "foreign-entry", "")]
    entries = [
        an_entry(an_order(), an_order(), counter=2),
        an_entry(dead=dead, records=1),
        an_entry(an_order(), counter=3),
        an_entry(dead=dead, records=1, counter=2**63 - 1),
        an_entry(dead=dead, records=1, gap=(2**63 - 1, 0)),
    ]
    for entry in entries:
        await store.commit(entry)
    for _ in range(2):
        assert await store.keeper.uncounted_records(0, END, 3) == 0
        assert await store.keeper.uncounted_records(0, END, 4) == 1
        await store.keeper.compact_ledger(0, END)


@pytest.mark.parametrize("is_compacted", [False, True])
async def test_a_count_below_what_is_stored_is_told(store: WriteStore, is_compacted: bool) -> None:
    await store.commit(an_entry(an_order(), an_order(), an_order(), counter=3))
    if is_compacted:
        await store.keeper.compact_ledger(0, END)
    assert await store.keeper.uncounted_records(0, END, 1) == -2


async def test_a_count_below_nothing_is_told_too(store: WriteStore) -> None:
    """What strangers' entries claim to hold, and is in flight, is taken off the log's count."""
    assert await store.keeper.uncounted_records(0, END, -2) == -2
    await store.commit(an_entry(an_order(), counter=1))
    assert await store.keeper.uncounted_records(0, END, -2) == -3
