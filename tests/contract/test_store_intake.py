"""Orders that wait in the database while the log is away: taken once, stored once, in memory and PostgreSQL."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from coffee_rt.domain.ids import IdMinter, id_time_ms
from coffee_rt.domain.orders import Order
from coffee_rt.domain.wire import INTAKE_SHARD, WIRE_VERSION, decode_batch, encode_record
from coffee_rt.store.contract import Committed, EntryWrite
from coffee_rt.store.intake_contract import IntakeWrite, KeyedRecord, Known
from tests.builders import NOW_MS, a_view, an_order
from tests.store_harness import WriteStore, an_entry

KEY = b"k" * 16
_minter = IdMinter()


def a_flush(
    *keyed: Order, plain: tuple[Order, ...] = (), is_client_id: bool = False
) -> IntakeWrite:
    """A flush of keyed orders (by their key_hash, or by their own id) and plain ones."""
    return IntakeWrite(
        _minter.mint(NOW_MS),
        WIRE_VERSION,
        [encode_record(order) for order in plain],
        [
            KeyedRecord(
                order.order_id,
                encode_record(order),
                order.body_hash,
                order.key_hash,
                is_client_id,
                order.tenant,
            )
            for order in keyed
        ],
    )


async def entries(store: WriteStore) -> list[EntryWrite]:
    """What waits, as a worker reads it."""
    return [
        EntryWrite(
            shard=INTAKE_SHARD,
            entry=(id_time_ms(batch.batch_id), 0),
            batch_id=batch.batch_id,
            counter=0,
            records=batch.records,
            orders=decode_batch(batch.version, batch.data),
        )
        for batch in await store.intake.waiting(100, 1 << 20)
    ]


async def drain(store: WriteStore) -> Committed:
    return await store.commit(*await entries(store))


def retry_of(order: Order, **changes: object) -> Order:
    """The same request once more, as another process takes it: an id of its own."""
    return msgspec.structs.replace(order, **({"order_id": an_order().order_id} | changes))


async def resolved(store: WriteStore, order: Order, tenant: int = 0) -> bytes | None:
    found = await store.reader.find_order(tenant, order.order_id)
    return None if found is None else found.order.order_id


async def test_what_waits_is_stored_once_and_leaves_in_the_same_commit(store: WriteStore) -> None:
    await store.add_view(a_view())
    orders = [an_order() for _ in range(3)]
    assert await store.intake.append(a_flush(plain=tuple(orders[:2]))) == []
    await store.intake.append(a_flush(plain=(orders[2],)))
    state = await store.intake.state()
    assert (state.batches, state.records, state.accepted, state.accounted) == (2, 3, 3, 0)
    assert state.imbalance == 0
    waiting = await entries(store)
    committed = await store.commit(*waiting)
    assert [each.stored for each in committed.outcomes] == [2, 1]
    again = await store.commit(*waiting)
    assert all(each.seen_before for each in again.outcomes)
    assert await store.delta_sums("sales", "orders") == 3
    state = await store.intake.state()
    assert (state.batches, state.accepted, state.accounted, state.imbalance) == (0, 3, 3, 0)
    assert await store.reader.is_entry_stored(INTAKE_SHARD, waiting[0].batch_id)


async def test_a_batch_that_another_worker_took_is_left_out_of_a_commit(store: WriteStore) -> None:
    await store.intake.append(a_flush(plain=(an_order(), an_order())))
    first = await entries(store)
    await store.intake.append(a_flush(plain=(an_order(),)))
    both = await entries(store)
    await store.commit(*first)
    committed = await store.commit(*both)
    assert [each.seen_before for each in committed.outcomes] == [True, False]
    assert len(await store.reader.recent_orders(0, 10)) == 3
    assert (await store.intake.state()).imbalance == 0


async def test_ledger_rows_of_the_intake_are_in_no_shards_sums(store: WriteStore) -> None:
    await store.commit(an_entry(an_order(), counter=1))
    await store.intake.append(a_flush(plain=(an_order(), an_order())))
    await drain(store)
    assert (await store.keeper.ledger_sums(0, None))["stored"] == 1
    assert (await store.keeper.ledger_sums(INTAKE_SHARD, None))["stored"] == 2
    assert await store.keeper.compact_ledger(INTAKE_SHARD, (NOW_MS * 2, 0)) == 1
    await store.intake.sweep(1e9)
    state = await store.intake.state()
    assert (state.accepted, state.accounted, state.imbalance) == (2, 2, 0)


async def test_the_oldest_batches_come_first_and_no_more_than_fit(store: WriteStore) -> None:
    for _ in range(4):
        await store.intake.append(a_flush(plain=(an_order(), an_order())))
    everything = await store.intake.waiting(100, 1 << 20)
    assert [batch.batch_id for batch in everything] == sorted(b.batch_id for b in everything)
    assert await store.intake.waiting(2, 1 << 20) != everything
    assert [b.batch_id for b in await store.intake.waiting(3, 1)] == [everything[0].batch_id]


async def test_a_batch_of_a_newer_release_waits_for_a_worker_that_reads_it(
    store: WriteStore,
) -> None:
    newer = a_flush(plain=(an_order(),))
    await store.intake.append(
        IntakeWrite(newer.batch_id, WIRE_VERSION + 1, newer.plain, newer.keyed)
    )
    assert await store.intake.waiting(10, 1 << 20) == []
    assert (await store.intake.state()).records == 1


async def test_a_key_is_taken_once_by_the_intake(store: WriteStore) -> None:
    first = an_order(key_hash=KEY)
    write = a_flush(first)
    assert await store.intake.append(write) == [None]
    again = await store.intake.append(a_flush(retry_of(first)))
    other = await store.intake.append(a_flush(retry_of(first, body_hash=b"other body hash!")))
    assert again == [Known(first.order_id, write.batch_id, True)]
    assert other == [Known(first.order_id, write.batch_id, False)]
    assert (await store.intake.state()).records == 1
    await drain(store)
    late = await store.intake.append(a_flush(retry_of(first)))
    assert late == [Known(first.order_id, write.batch_id, True)]


async def test_keys_of_one_flush_are_told_from_each_other(store: WriteStore) -> None:
    first = an_order(key_hash=KEY)
    write = a_flush(first, retry_of(first), retry_of(first, key_hash=b"l" * 16))
    assert await store.intake.append(write) == [
        None,
        Known(first.order_id, write.batch_id, True),
        None,
    ]
    assert (await store.intake.state()).records == 2


async def test_a_retry_in_the_intake_of_what_was_stored_from_the_log_is_known(
    store: WriteStore,
) -> None:
    first = an_order(key_hash=KEY)
    entry = an_entry(first)
    await store.commit(entry)
    assert await store.intake.append(a_flush(retry_of(first))) == [
        Known(first.order_id, entry.batch_id, True)
    ]


@pytest.mark.parametrize("is_drained_first", [True, False])
async def test_one_key_taken_by_log_and_intake_makes_one_order_and_both_ids_resolve(
    store: WriteStore, is_drained_first: bool
) -> None:
    await store.add_view(a_view())
    logged = an_order(key_hash=KEY)
    waiting = retry_of(logged)
    assert await store.intake.append(a_flush(waiting)) == [None]
    if is_drained_first:
        await drain(store)
    committed = await store.commit(an_entry(logged, an_order()))
    assert (committed.outcomes[0].stored, committed.outcomes[0].duplicates) == (1, 1)
    if not is_drained_first:
        found = await store.intake.find(0, logged.order_id)
        assert found is not None
        assert await store.intake.find(1, logged.order_id) is None
        await drain(store)
    assert await resolved(store, logged) == await resolved(store, waiting) == waiting.order_id
    assert await store.delta_sums("sales", "orders") == 2
    assert (await store.intake.state()).imbalance == 0


async def test_another_body_found_only_by_the_worker_is_a_dead_letter(store: WriteStore) -> None:
    logged = an_order(key_hash=KEY)
    waiting = retry_of(logged, body_hash=b"other body hash!")
    await store.intake.append(a_flush(waiting))
    committed = await store.commit(an_entry(logged))
    assert (committed.outcomes[0].stored, committed.outcomes[0].dead) == (0, 1)
    await drain(store)
    letter = await store.reader.find_dead_letter(0, logged.order_id)
    assert letter is not None
    assert letter.code == "idempotency-key-conflict"
    assert await resolved(store, waiting) == waiting.order_id


async def test_losers_of_a_loser_stand_for_the_order_that_is_stored(store: WriteStore) -> None:
    waiting = an_order(key_hash=KEY)
    await store.intake.append(a_flush(waiting))
    losers = [retry_of(waiting), retry_of(waiting)]
    await store.commit(*[an_entry(loser) for loser in losers])
    await drain(store)
    for loser in losers:
        assert await resolved(store, loser) == waiting.order_id


async def test_alias_of_an_order_that_died_leads_to_its_dead_letter(store: WriteStore) -> None:
    waiting = an_order(key_hash=KEY, store="x" * 200)
    await store.intake.append(a_flush(waiting))
    logged = retry_of(waiting, store="uptown")
    await store.commit(an_entry(logged))
    [entry] = await entries(store)
    await store.writer.store_single(entry)
    letter = await store.reader.find_dead_letter(0, logged.order_id)
    assert letter is not None
    assert letter.order_id == waiting.order_id
    assert (await store.intake.state()).imbalance == 0


async def test_a_clients_own_id_is_taken_once_by_the_intake(store: WriteStore) -> None:
    order = an_order()
    write = a_flush(order, is_client_id=True)
    assert await store.intake.append(write) == [None]
    known = Known(order.order_id, write.batch_id, True)
    assert await store.intake.append(a_flush(order, is_client_id=True)) == [known]
    # A new key over a known id means that order too; over an id of another body it means nothing.
    keyed = msgspec.structs.replace(order, key_hash=KEY)
    assert await store.intake.append(a_flush(keyed, is_client_id=True)) == [known]
    assert await store.intake.append(a_flush(retry_of(keyed))) == [known]
    other = retry_of(order, order_id=order.order_id, body_hash=b"other body hash!")
    taken = msgspec.structs.replace(other, key_hash=b"l" * 16)
    for each in (other, taken):
        assert await store.intake.append(a_flush(each, is_client_id=True)) == [
            known._replace(is_same=False)
        ]
    assert await store.intake.append(a_flush(retry_of(order, key_hash=b"l" * 16))) == [None]


async def test_a_clients_own_id_stored_from_the_log_is_known_to_the_intake(
    store: WriteStore,
) -> None:
    order = an_order(tenant=3)
    entry = an_entry(order)
    await store.commit(entry)
    same = await store.intake.append(a_flush(order, is_client_id=True))
    assert same == [Known(order.order_id, entry.batch_id, True)]
    theirs = msgspec.structs.replace(order, tenant=4)
    assert await store.intake.append(a_flush(theirs, is_client_id=True)) == [
        Known(order.order_id, entry.batch_id, False)
    ]


async def test_a_clients_own_id_in_log_and_intake_makes_one_order(store: WriteStore) -> None:
    order = an_order(key_hash=KEY)
    await store.intake.append(a_flush(order, is_client_id=True))
    await store.commit(an_entry(order))
    committed = await drain(store)
    assert (committed.outcomes[0].stored, committed.outcomes[0].duplicates) == (0, 1)
    assert await resolved(store, order) == order.order_id


async def test_an_order_that_waits_is_found_by_its_tenant_only(store: WriteStore) -> None:
    order = an_order(tenant=7)
    write = a_flush(plain=(an_order(), order))
    await store.intake.append(write)
    found = await store.intake.find(7, order.order_id)
    assert found == (write.batch_id, encode_record(order))
    assert await store.intake.find(0, order.order_id) is None
    assert await store.intake.find(7, an_order().order_id) is None


async def test_keys_older_than_the_window_are_forgotten(store: WriteStore) -> None:
    first = an_order(key_hash=KEY)
    await store.intake.append(a_flush(first))
    assert await store.intake.sweep(36_500 * 86_400) == 0
    # The clock of the store in memory stands at NOW_MS; PostgreSQL's batches are that old.
    assert await store.intake.sweep(-1) == 1
    assert await store.intake.append(a_flush(retry_of(first))) == [None]


async def test_keys_are_swept_once_by_all_who_try(store: WriteStore) -> None:
    await store.intake.append(a_flush(an_order(key_hash=KEY)))
    assert await store.intake.sweep(36_500 * 86_400, 3_000) == 0
    assert await store.intake.sweep(-1, 3_000) == 0
    assert await store.intake.sweep(-1) == 1


async def test_keys_noted_and_not_noted_are_told(store: WriteStore) -> None:
    assert (await store.intake.state()).keys_since == 0
    await store.intake.note_keys(True)
    assert (await store.intake.state()).keys_since == 0
    await store.intake.note_keys(False)
    assert (await store.intake.state()).keys_since is None
    await store.intake.note_keys(True)
    assert (await store.intake.state()).keys_since or 0 > 0


async def test_one_key_in_many_flushes_at_once_is_taken_once(store: WriteStore) -> None:
    first = an_order(key_hash=KEY)
    answers = await asyncio.gather(
        *(
            store.intake.append(a_flush(retry_of(first), an_order(key_hash=b"%16d" % n)))
            for n in range(6)
        )
    )
    assert sum(answer[0] is None for answer in answers) == 1
    assert all(answer[1] is None for answer in answers)
    [winner] = {answer[0].order_id for answer in answers if answer[0] is not None}
    assert (await store.intake.state()).records == 7
    await drain(store)
    found = await store.reader.find_order(0, winner)
    assert found is not None
