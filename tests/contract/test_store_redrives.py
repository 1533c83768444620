"""Dead letters sent again: each record is stored once, and the sums account for each once."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from coffee_rt.domain.orders import Order
from coffee_rt.domain.wire import INTAKE_SHARD, WIRE_VERSION, encode_record
from coffee_rt.store.contract import DeadRecord, EntryWrite
from coffee_rt.store.intake_contract import IntakeWrite, KeyedRecord
from coffee_rt.store.letter_desk import PostgresLetterDesk
from coffee_rt.store.redrives import LetterSelection, Outcome
from tests.builders import NOW_MS, a_view, an_order
from tests.store_harness import WriteStore, an_entry

ALL = LetterSelection()


def a_dead(order: Order | bytes, code: str = "unstorable-entry", index: int = 0) -> DeadRecord:
    """A record that was parked, perhaps one that is good today."""
    if isinstance(order, bytes):
        return DeadRecord(index, order, code, "parked")
    return DeadRecord(index, encode_record(order), code, "parked", order.tenant, order.order_id)


def dead_entry(*orders: Order | bytes, code: str = "unstorable-entry") -> EntryWrite:
    letters = [a_dead(order, code, index) for index, order in enumerate(orders)]
    return an_entry(dead=letters, counter=len(orders))


async def sums(store: WriteStore) -> tuple[int, int, int, int]:
    found = await store.keeper.ledger_sums(0, None)
    return found["records"], found["stored"], found["duplicates"], found["dead"]


async def send_all(
    store: WriteStore, selection: LetterSelection = ALL, name: str = "r1"
) -> dict[Outcome, int]:
    while await store.redriver.send(selection, name, letters_max=2):
        pass
    return {o: n for o, n in (await store.redriver.results(name)).items() if n}


async def test_a_dead_letter_that_is_good_today_is_stored_and_counted_once(
    store: WriteStore,
) -> None:
    await store.add_view(a_view())
    orders = [an_order() for _ in range(3)]
    entry = dead_entry(*orders)
    await store.commit(entry)
    assert await sums(store) == (3, 0, 0, 3)
    assert await store.redriver.count(ALL, "r1") == 3
    assert await send_all(store) == {Outcome.STORED: 3}
    assert await sums(store) == (3, 3, 0, 0)
    assert await store.delta_sums("sales", "orders") == 3
    for order in orders:
        found = await store.reader.find_order(0, order.order_id)
        assert found is not None
        assert (found.order, found.batch_id) == (order, entry.batch_id)
        assert await store.reader.find_dead_letter(0, order.order_id) is None
    assert await store.reader.dead_letters(None, 10, None) == []
    # Nothing is left for anybody.
    assert await send_all(store, name="r2") == {}
    assert await sums(store) == (3, 3, 0, 0)


async def test_the_entry_delivered_again_after_its_redrive_is_still_seen(store: WriteStore) -> None:
    entry = dead_entry(an_order(), an_order())
    await store.commit(entry)
    await send_all(store)
    committed = await store.commit(entry)
    assert committed.outcomes[0].seen_before
    assert await sums(store) == (2, 2, 0, 0)


async def test_a_compacted_entrys_letters_move_in_the_sums(store: WriteStore) -> None:
    await store.commit(dead_entry(an_order(), an_order()), an_entry(an_order()))
    await store.keeper.compact_ledger(0, (NOW_MS + 1, 0))
    assert await send_all(store) == {Outcome.STORED: 2}
    assert await sums(store) == (3, 3, 0, 0)


async def test_sums_below_an_entry_stay_exact(store: WriteStore) -> None:
    await store.commit(replace(dead_entry(an_order()), entry=(NOW_MS, 1)))
    await store.commit(replace(dead_entry(an_order(), an_order()), entry=(NOW_MS + 5, 1)))
    await send_all(store)
    below = await store.keeper.ledger_sums(0, (NOW_MS + 5, 0))
    assert (below["records"], below["stored"], below["dead"]) == (1, 1, 0)


async def test_what_is_still_bad_stays_with_its_newest_reason(store: WriteStore) -> None:
    bad = msgspec.structs.replace(an_order(), price_minor=0)
    await store.commit(dead_entry(b"\xc1", bad, an_order()))
    assert await send_all(store) == {Outcome.STORED: 1, Outcome.STILL_BAD: 2}
    assert await sums(store) == (3, 1, 0, 2)
    letters = await store.reader.dead_letters(None, 10, None)
    assert [letter.code for letter in letters] == ["bad-price", "unreadable-record"]
    assert "/price" in letters[0].detail
    # Another redrive tries them again, and changes no sum.
    assert await send_all(store, name="r2") == {Outcome.STILL_BAD: 2}
    assert await sums(store) == (3, 1, 0, 2)


async def test_an_order_stored_meanwhile_is_a_duplicate(store: WriteStore) -> None:
    await store.add_view(a_view())
    order = an_order()
    await store.commit(dead_entry(order))
    await store.commit(an_entry(order))
    assert await send_all(store) == {Outcome.DUPLICATE: 1}
    assert await sums(store) == (2, 1, 1, 0)
    assert await store.delta_sums("sales", "orders") == 1


async def test_another_order_under_a_taken_id_stays_dead(store: WriteStore) -> None:
    order = an_order()
    other = an_order(order_id=order.order_id, drink="tea")
    await store.commit(an_entry(order))
    await store.commit(an_entry(other))
    assert await send_all(store) == {Outcome.STILL_BAD: 1}
    [letter] = await store.reader.dead_letters(None, 10, None)
    assert letter.code == "order-id-conflict"
    assert await sums(store) == (2, 1, 0, 1)


async def test_the_same_record_in_two_letters_is_stored_once(store: WriteStore) -> None:
    order = an_order()
    await store.commit(dead_entry(order), dead_entry(order))
    assert await send_all(store) == {Outcome.STORED: 1, Outcome.DUPLICATE: 1}
    assert await sums(store) == (2, 1, 1, 0)


async def test_the_loser_of_a_key_is_stored_only_when_named(store: WriteStore) -> None:
    first = an_order(key_hash=b"k" * 16)
    second = an_order(key_hash=b"k" * 16, drink="tea")
    await store.commit(an_entry(first, second))
    [letter] = await store.reader.dead_letters(None, 10, None)
    assert await send_all(store) == {Outcome.SKIPPED: 1}
    assert await sums(store) == (2, 1, 0, 1)
    named = LetterSelection(ids=(letter.id,))
    assert await send_all(store, named, "r2") == {Outcome.STORED: 1}
    assert await sums(store) == (2, 2, 0, 0)


def retry_of(order: Order, **changes: object) -> Order:
    """The same request once more, as another process takes it: an id of its own."""
    return msgspec.structs.replace(order, **({"order_id": an_order().order_id} | changes))


async def test_a_redriven_orders_key_is_its_own(store: WriteStore) -> None:
    """A repetition that did not come by the log, which would have known it: by the intake, while the log was away."""
    order = an_order(key_hash=b"k" * 16)
    await store.commit(dead_entry(order))
    assert await send_all(store) == {Outcome.STORED: 1}
    retry = retry_of(order)
    committed = await store.commit(an_entry(retry))
    assert committed.outcomes[0].duplicates == 1
    found = await store.reader.find_order(0, retry.order_id)
    assert found is not None
    assert found.order.order_id == order.order_id
    assert await sums(store) == (2, 1, 1, 0)


async def test_a_letter_whose_repetition_is_stored_is_a_duplicate(store: WriteStore) -> None:
    order = an_order(key_hash=b"k" * 16)
    retry, other = retry_of(order), retry_of(order, drink="tea", body_hash=b"o" * 16)
    await store.commit(dead_entry(order), dead_entry(other))
    await store.commit(an_entry(retry))
    assert await send_all(store) == {Outcome.DUPLICATE: 1, Outcome.STILL_BAD: 1}
    found = await store.reader.find_order(0, order.order_id)
    assert found is not None
    assert found.order.order_id == retry.order_id
    assert await sums(store) == (3, 1, 1, 1)
    # That this one is meant too, somebody has to say.
    [letter] = await store.reader.dead_letters(None, 10, None)
    assert letter.code == "idempotency-key-conflict"
    assert await send_all(store, name="r2") == {Outcome.SKIPPED: 1}
    assert await send_all(store, LetterSelection(ids=(letter.id,)), "r3") == {Outcome.STORED: 1}
    assert await sums(store) == (3, 2, 1, 0)


async def test_of_two_letters_of_one_key_the_one_that_has_it_is_stored(store: WriteStore) -> None:
    """The first from the log, its repetition from the intake, which took the key; both fell dead."""
    order = an_order(key_hash=b"k" * 16)
    retry = retry_of(order)
    keyed = KeyedRecord(retry.order_id, encode_record(retry), retry.body_hash, b"k" * 16, False)
    batch = IntakeWrite(an_entry().batch_id, WIRE_VERSION, [], [keyed])
    await store.intake.append(batch)
    await store.commit(dead_entry(order))
    parked = replace(dead_entry(retry), batch_id=batch.batch_id, shard=INTAKE_SHARD)
    await store.commit(parked)
    assert await send_all(store) == {Outcome.DUPLICATE: 1, Outcome.STORED: 1}
    for each in (order, retry):
        found = await store.reader.find_order(0, each.order_id)
        assert found is not None
        assert found.order.order_id == retry.order_id
    assert await sums(store) == (1, 0, 1, 0)


async def test_an_order_that_lost_its_id_after_it_took_its_key_is_no_rival_of_itself(
    store: WriteStore,
) -> None:
    taken = an_order()
    loser = an_order(order_id=taken.order_id, drink="tea", key_hash=b"k" * 16)
    await store.commit(an_entry(taken))
    await store.commit(an_entry(loser))
    [letter] = await store.reader.dead_letters(None, 10, None)
    assert letter.code == "order-id-conflict"
    amended = retry_of(loser, body_hash=b"a" * 16)
    await amend(store, letter.id, amended)
    assert await send_all(store) == {Outcome.STORED: 1}
    found = await store.reader.find_order(0, amended.order_id)
    assert found is not None
    assert found.order.order_id == amended.order_id


async def amend(store: WriteStore, letter_id: int, order: Order) -> None:
    """As LetterDesk does."""
    if store.pool is not None:
        desk = PostgresLetterDesk(store.pool)
        await desk.amend(None, letter_id, lambda _: order, "somebody")
        return
    assert store.database is not None
    letters = store.database.dead_letters
    [index] = [at for at, letter in enumerate(letters) if letter.id == letter_id]
    letters[index] = replace(letters[index], amended=encode_record(order))


async def test_a_selection_takes_only_what_matches_all_of_it(store: WriteStore) -> None:
    await store.commit(dead_entry(an_order(tenant=1)), dead_entry(an_order(tenant=2)))
    await store.commit(dead_entry(an_order(tenant=2), code="bad-data"))
    letters = await store.reader.dead_letters(None, 10, None)
    second = letters[0].created_at_us // 1_000_000
    for selection, number in (
        (LetterSelection(tenant=2), 2),
        (LetterSelection(tenant=2, code="bad-data"), 1),
        (LetterSelection(ids=(letters[0].id, letters[1].id)), 2),
        (LetterSelection(ids=(letters[0].id,), tenant=1), 0),
        (LetterSelection(start=second - 60, end=second + 60), 3),
        (LetterSelection(end=second - 60), 0),
        (LetterSelection(start=second + 60), 0),
    ):
        assert await store.redriver.count(selection, "r") == number
    assert await send_all(store, LetterSelection(tenant=2, code="bad-data")) == {Outcome.STORED: 1}
    assert await sums(store) == (3, 1, 0, 2)


async def test_a_dry_run_says_what_would_become_and_changes_nothing(store: WriteStore) -> None:
    await store.add_view(a_view())
    await store.commit(dead_entry(an_order(), b"\xc1"))
    before = await store.reader.dead_letters(None, 10, None)
    tried = await store.redriver.send(ALL, "r1", is_dry_run=True)
    assert [each.outcome for each in tried] == [Outcome.STORED, Outcome.STILL_BAD]
    after = tried[-1].id
    assert await store.redriver.send(ALL, "r1", is_dry_run=True, after=after) == []
    assert await store.reader.dead_letters(None, 10, None) == before
    assert await sums(store) == (2, 0, 0, 2)
    assert await store.delta_sums("sales", "orders") == 0
    assert await store.reader.recent_orders(None, 10) == []


async def test_an_order_of_a_retired_day_stays_dead(store: WriteStore) -> None:
    old = an_order(accepted_at_us=(NOW_MS - 50 * 86_400_000) * 1000)
    await store.keeper.ensure_partitions(NOW_MS - 50 * 86_400_000, 1)
    await store.commit(dead_entry(old, an_order()))
    await store.keeper.apply_retention(NOW_MS, 10)
    assert await send_all(store) == {Outcome.STORED: 1, Outcome.STILL_BAD: 1}
    assert await sums(store) == (2, 1, 0, 1)
