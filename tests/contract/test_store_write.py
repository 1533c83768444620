"""The write side of the store: what every implementation does with entries, ids and care."""

from __future__ import annotations

import msgspec
import pytest

from coffee_rt.domain.wire import decode_record
from coffee_rt.errors import Rejected
from coffee_rt.store.contract import (
    ApiKey,
    BadData,
    DeadRecord,
    RetentionPolicy,
    ViewsTooNew,
)
from tests.builders import NOW_MS, a_view, an_order
from tests.store_harness import WriteStore, an_entry, order_at

DAY_MS = 86_400_000


async def test_entry_committed_twice_is_stored_once(store: WriteStore) -> None:
    await store.add_view(a_view())
    entry = an_entry(an_order(), an_order())
    first = await store.commit(entry)
    second = await store.commit(entry)
    assert [(each.stored, each.seen_before) for each in first.outcomes] == [(2, False)]
    assert [(each.stored, each.seen_before) for each in second.outcomes] == [(0, True)]
    assert len(await store.reader.recent_orders(None, 10)) == 2
    assert await store.delta_sums("sales", "orders") == 2


async def test_stored_order_is_read_back_whole(store: WriteStore) -> None:
    order = an_order(
        store="Łódź ☕", customer_id="c-1", note="", attributes=b'{"a":"b"}', quantity=3
    )
    entry = an_entry(order)
    await store.commit(entry)
    found = await store.reader.find_order(0, order.order_id)
    assert found is not None
    assert found.batch_id == entry.batch_id
    spaced = msgspec.structs.replace(found.order, attributes=order.attributes)
    assert spaced == order
    assert msgspec.json.decode(found.order.attributes or b"") == {"a": "b"}


async def test_only_entries_not_seen_before_are_stored(store: WriteStore) -> None:
    await store.add_view(a_view())
    seen, fresh = an_entry(an_order()), an_entry(an_order(), an_order())
    await store.commit(seen)
    committed = await store.commit(seen, fresh)
    assert [each.seen_before for each in committed.outcomes] == [True, False]
    assert await store.delta_sums("sales", "orders") == 3
    sums = await store.keeper.ledger_sums(0, None)
    assert (sums["entries"], sums["stored"], sums["duplicates"]) == (2, 3, 0)


async def test_entry_given_twice_in_a_batch_is_stored_once(store: WriteStore) -> None:
    entry = an_entry(an_order())
    again = an_entry(*entry.orders, batch_id=entry.batch_id)
    committed = await store.commit(entry, again)
    assert [each.seen_before for each in committed.outcomes] == [False, True]
    assert (await store.keeper.ledger_sums(0, None))["stored"] == 1


@pytest.mark.parametrize("is_one_batch", [True, False])
async def test_repeated_order_is_a_duplicate_and_counts_once(
    store: WriteStore, is_one_batch: bool
) -> None:
    await store.add_view(a_view())
    order = an_order()
    first, second = an_entry(order, an_order()), an_entry(an_order(), order)
    if is_one_batch:
        committed = await store.commit(first, second)
        outcomes = committed.outcomes
    else:
        [outcome] = (await store.commit(first)).outcomes
        committed = await store.commit(second)
        outcomes = [outcome, *committed.outcomes]
    assert [(each.stored, each.duplicates, each.dead) for each in outcomes] == [
        (2, 0, 0),
        (1, 1, 0),
    ]
    assert list(committed.duplicate_order_ids) == [order.order_id]
    assert await store.delta_sums("sales", "orders") == 3
    sums = await store.keeper.ledger_sums(0, None)
    assert (sums["stored"], sums["duplicates"], sums["dead"]) == (3, 1, 0)


@pytest.mark.parametrize("is_one_batch", [True, False])
@pytest.mark.parametrize("changes", [{"body_hash": b"x" * 16}, {"tenant": 7}])
async def test_other_order_under_a_stored_id_is_a_dead_letter(
    store: WriteStore, is_one_batch: bool, changes: dict[str, object]
) -> None:
    await store.add_view(a_view())
    order = an_order()
    other = msgspec.structs.replace(order, price_minor=999, **changes)
    if is_one_batch:
        committed = await store.commit(an_entry(order), an_entry(an_order(), other))
    else:
        await store.commit(an_entry(order))
        committed = await store.commit(an_entry(an_order(), other))
    last = committed.outcomes[-1]
    assert (last.stored, last.duplicates, last.dead) == (1, 0, 1)
    assert list(committed.dead_order_ids) == [order.order_id]
    letter = await store.reader.find_dead_letter(other.tenant, order.order_id)
    assert letter is not None
    assert (letter.code, letter.index) == ("order-id-conflict", 1)
    assert decode_record(letter.raw) == other
    found = await store.reader.find_order(0, order.order_id)
    assert found is not None
    assert found.order.price_minor == order.price_minor
    assert await store.delta_sums("sales", "orders") == 2


async def test_slow_way_leaves_the_neighbours_whole(store: WriteStore) -> None:
    repeated = an_order()
    await store.commit(an_entry(repeated))
    neighbours = [an_entry(an_order(), an_order()) for _ in range(5)]
    committed = await store.commit(*neighbours, an_entry(an_order(), repeated))
    assert [each.stored for each in committed.outcomes] == [2, 2, 2, 2, 2, 1]
    assert [each.duplicates for each in committed.outcomes] == [0, 0, 0, 0, 0, 1]


async def test_loser_of_a_key_race_resolves_to_the_order_stored(store: WriteStore) -> None:
    winner = an_order(key_hash=b"k" * 16)
    loser = msgspec.structs.replace(winner, order_id=an_order().order_id)
    other = msgspec.structs.replace(
        winner, order_id=an_order().order_id, body_hash=b"other body hash!"
    )
    committed = await store.commit(an_entry(winner), an_entry(loser), an_entry(other))
    assert [(each.stored, each.duplicates, each.dead) for each in committed.outcomes] == [
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
    ]
    found = await store.reader.find_order(0, loser.order_id)
    assert found is not None
    assert found.order.order_id == winner.order_id
    assert await store.reader.find_order(1, loser.order_id) is None
    letter = await store.reader.find_dead_letter(0, other.order_id)
    assert letter is not None
    assert letter.code == "idempotency-key-conflict"


async def test_dead_records_are_kept_beside_the_good_ones(store: WriteStore) -> None:
    record = DeadRecord(1, b"\x00\xff raw", "unreadable-record", "at NUL \x00 and \ud800", 3)
    entry = an_entry(an_order(), dead=[record], shard=2)
    committed = await store.commit(entry)
    assert (committed.outcomes[0].stored, committed.outcomes[0].dead) == (1, 1)
    [letter] = await store.reader.dead_letters(3, 10, None)
    assert (letter.shard, letter.entry, letter.batch_id) == (2, entry.entry, entry.batch_id)
    assert (letter.index, letter.raw, letter.code) == (1, record.raw, record.code)
    assert await store.reader.dead_letters(4, 10, None) == []


async def test_unreadable_frame_counts_all_its_records_dead(store: WriteStore) -> None:
    entry = an_entry(dead=[DeadRecord(0, b"?", "unreadable-entry", "no frame")], records=30)
    await store.commit(entry)
    assert (await store.keeper.ledger_sums(0, None))["dead"] == 30


async def test_entries_without_a_batch_id_are_told_apart_by_their_place(store: WriteStore) -> None:
    strangers = [an_entry(an_order(), batch_id=bytes(16)) for _ in range(2)]
    first = await store.commit(*strangers)
    again = await store.commit(*strangers)
    assert [each.seen_before for each in first.outcomes] == [False, False]
    assert [each.seen_before for each in again.outcomes] == [True, True]


async def test_bad_order_stores_nothing_and_alone_becomes_a_dead_letter(store: WriteStore) -> None:
    await store.add_view(a_view())
    bad = an_order(store="x" * 200)
    entry = an_entry(an_order(), bad, an_order())
    with pytest.raises(BadData):
        await store.commit(entry)
    assert await store.reader.recent_orders(None, 10) == []
    committed = await store.writer.store_single(entry)
    assert (committed.outcomes[0].stored, committed.outcomes[0].dead) == (2, 1)
    letter = await store.reader.find_dead_letter(0, bad.order_id)
    assert letter is not None
    assert (letter.code, letter.index) == ("bad-data", 1)
    assert decode_record(letter.raw) == bad
    assert await store.delta_sums("sales", "orders") == 2
    assert (await store.writer.store_single(entry)).outcomes[0].seen_before


async def test_order_with_an_impossible_id_becomes_a_dead_letter(store: WriteStore) -> None:
    bad = msgspec.structs.replace(an_order(), order_id=b"short", tenant=2**40)
    committed = await store.writer.store_single(an_entry(an_order(), bad))
    assert (committed.outcomes[0].stored, committed.outcomes[0].dead) == (1, 1)
    [letter] = await store.reader.dead_letters(None, 10, None)
    assert decode_record(letter.raw) == bad


async def test_entry_that_claims_impossible_numbers_is_stored(store: WriteStore) -> None:
    entry = an_entry(an_order(), counter=2**70, records=2**40)
    gap = an_entry(counter=-5, gap=(-3, 2**80))
    committed = await store.commit(entry, gap)
    assert [each.stored for each in committed.outcomes] == [1, 0]


async def test_view_that_needs_a_newer_worker_stops_the_commit(store: WriteStore) -> None:
    await store.add_view(a_view(), feature_level=999)
    with pytest.raises(ViewsTooNew):
        await store.commit(an_entry(an_order()))
    assert await store.reader.recent_orders(None, 10) == []


async def test_lanes_touched_are_those_of_the_deltas(store: WriteStore) -> None:
    await store.add_view(a_view(lanes=1))
    committed = await store.commit(an_entry(an_order()))
    assert committed.touched_lanes == {"sales": [0]}
    assert committed.xid > 0


async def test_what_was_stored_before_may_have_touched_any_lane(store: WriteStore) -> None:
    """Its deltas may not be folded yet: whoever waits to see it must wait for every lane."""
    await store.add_view(a_view(lanes=3))
    order = an_order()
    entry = an_entry(order)
    await store.commit(entry)
    again = await store.commit(entry)
    assert again.touched_lanes == {"sales": [0, 1, 2]}
    beside = await store.commit(entry, an_entry(an_order()))
    assert beside.touched_lanes == {"sales": [0, 1, 2]}
    elsewhere = await store.commit(an_entry(order))
    assert elsewhere.touched_lanes == {"sales": [0, 1, 2]}


async def test_a_commit_names_the_timeline_that_the_epochs_end_with(store: WriteStore) -> None:
    entry = an_entry(an_order())
    first, again = await store.commit(entry), await store.commit(entry)
    assert first.timeline == again.timeline
    if store.pool is None:
        assert store.database is not None
        assert store.database.epoch_of("1") == f"1.{first.timeline}"
    else:
        assert await store.keeper.timeline() == first.timeline


async def test_recent_orders_page_backwards_by_tenant_and_store(store: WriteStore) -> None:
    orders = [an_order(store="uptown" if n % 2 else "harbour") for n in range(6)]
    await store.commit(an_entry(*orders, an_order(tenant=9)))
    newest = await store.reader.recent_orders(0, 4)
    assert [each.order for each in newest] == orders[:1:-1]
    rest = await store.reader.recent_orders(0, 4, before=newest[-1].order.order_id)
    assert [each.order for each in rest] == orders[1::-1]
    uptown = await store.reader.recent_orders(0, 10, store="uptown")
    assert [each.order for each in uptown] == orders[::-2]
    assert len(await store.reader.recent_orders(None, 10)) == 7
    assert await store.reader.find_order(0, an_order().order_id) is None


async def test_dead_letters_page_backwards(store: WriteStore) -> None:
    dead = [DeadRecord(n, b"", "unreadable-record", str(n)) for n in range(3)]
    await store.commit(an_entry(dead=dead))
    newest = await store.reader.dead_letters(None, 2, None)
    rest = await store.reader.dead_letters(None, 2, newest[-1].id)
    assert [each.detail for each in (*newest, *rest)] == ["2", "1", "0"]


async def test_partitions_are_made_ahead_once(store: WriteStore) -> None:
    made = await store.keeper.ensure_partitions(NOW_MS, 2)
    assert made == [
        "orders_y2025m11d12",
        "orders_y2025m11d13",
        "orders_y2025m11d14",
        "orders_y2025m11d15",
    ]
    assert await store.keeper.ensure_partitions(NOW_MS, 2) == []
    partitions = await store.keeper.partitions()
    assert [each.name for each in partitions] == made
    assert all(each.end_ms - each.start_ms == DAY_MS for each in partitions)
    assert partitions[1].start_ms <= NOW_MS < partitions[1].end_ms


async def test_retention_detaches_in_one_call_and_drops_in_the_next(store: WriteStore) -> None:
    old = order_at(NOW_MS)
    await store.commit(an_entry(old))
    await store.keeper.ensure_partitions(NOW_MS + 5 * DAY_MS, 0)
    later = NOW_MS + 5 * DAY_MS
    assert await store.keeper.apply_retention(later, 4) == ["detached orders_y2025m11d13"]
    assert await store.reader.find_order(0, old.order_id) is None
    assert await store.keeper.apply_retention(later, 4) == ["dropped orders_y2025m11d13"]
    assert await store.keeper.apply_retention(later, 4) == []
    assert [each.name for each in await store.keeper.partitions()] == [
        "orders_y2025m11d17",
        "orders_y2025m11d18",
    ]


async def test_order_of_a_retired_day_is_bad_data_and_its_day_stays_away(store: WriteStore) -> None:
    await store.commit(an_entry(order_at(NOW_MS)))
    await store.keeper.apply_retention(NOW_MS + 5 * DAY_MS, 4)
    with pytest.raises(BadData):
        await store.commit(an_entry(order_at(NOW_MS)))
    assert await store.keeper.ensure_partitions(NOW_MS, 0) == []


async def test_retention_of_a_few_days_is_refused(store: WriteStore) -> None:
    with pytest.raises(Rejected):
        await store.keeper.apply_retention(NOW_MS, 2)


async def test_a_policy_of_the_installation_goes_before_each_process_own(store: WriteStore) -> None:
    await store.keeper.ensure_partitions(NOW_MS, 0)
    later = NOW_MS + 4 * DAY_MS
    await store.keeper.set_retention_policy(RetentionPolicy(400, is_dropped=True))
    assert await store.keeper.apply_retention(later, 4) == []
    await store.keeper.set_retention_policy(None)
    assert await store.keeper.apply_retention(later, 4) == ["detached orders_y2025m11d12"]


async def test_detached_partitions_are_kept_for_whoever_archives_them(store: WriteStore) -> None:
    await store.keeper.ensure_partitions(NOW_MS, 0)
    later = NOW_MS + 4 * DAY_MS
    await store.keeper.set_retention_policy(RetentionPolicy(4, is_dropped=False))
    assert await store.keeper.apply_retention(later, 300) == ["detached orders_y2025m11d12"]
    # A worker that knows of 4 days, and of dropping.
    assert await store.keeper.apply_retention(later, 4) == []
    kept = [each.name for each in await store.keeper.detached_partitions()]
    assert kept == ["orders_y2025m11d12"]
    await store.keeper.set_retention_policy(RetentionPolicy(4, is_dropped=True))
    assert await store.keeper.apply_retention(later, 300) == ["dropped orders_y2025m11d12"]
    assert await store.keeper.detached_partitions() == []


async def test_a_policy_of_a_few_days_is_refused(store: WriteStore) -> None:
    with pytest.raises(Rejected):
        await store.keeper.set_retention_policy(RetentionPolicy(2, is_dropped=True))


async def test_number_of_shards_is_fixed_at_install(store: WriteStore) -> None:
    await store.keeper.ensure_shards(4)
    await store.keeper.ensure_shards(4)
    with pytest.raises(Rejected, match="4 shards"):
        await store.keeper.ensure_shards(8)


async def test_heartbeat_may_come_again(store: WriteStore) -> None:
    await store.keeper.heartbeat("worker", "w1", 1)
    await store.keeper.heartbeat("worker", "w1", 2)


async def test_api_key_is_kept_until_it_is_revoked(store: WriteStore) -> None:
    key = ApiKey("abc", 3, "till", b"\x01" * 32, frozenset({"read", "ingest"}), 600, False)
    await store.keys.add_api_key(key)
    assert await store.keys.api_keys() == [key]
    with pytest.raises(Rejected):
        await store.keys.add_api_key(key)
    assert await store.keys.revoke_api_key("abc")
    assert not await store.keys.revoke_api_key("abc")
    assert not await store.keys.revoke_api_key("nobody")
    assert [each.is_revoked for each in await store.keys.api_keys()] == [True]
