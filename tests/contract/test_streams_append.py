"""What an append promises, on every log."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coffee_rt.domain.orders import Order
from coffee_rt.domain.wire import decode_batch
from coffee_rt.errors import NotExecuted, Overload, Rejected
from coffee_rt.streams.contract import Appended, Delivery, Outcome, Position
from coffee_rt.streams.flush import ProducerLimits
from tests.streams_bed import Bed, WrongClock, an_append

NEW, DUPLICATE, CONFLICT = Outcome.NEW, Outcome.DUPLICATE, Outcome.CONFLICT


async def read_all(bed: Bed, shard: int, group: str = "audit") -> list[Delivery]:
    """Every entry of a shard, through a group of its own."""
    await bed.keeper().ensure_group(group)
    reader = bed.reader(group, "auditor")
    entries: list[Delivery] = []
    while page := await reader.read(shard, 100, 0):
        entries += page
        await reader.acknowledge(shard, page)
    return entries


def orders_of(entries: list[Delivery]) -> list[Order]:
    return [
        order
        for entry in entries
        if not entry.gap
        for order in decode_batch(entry.version, entry.data)
    ]


async def test_records_that_arrive_together_share_one_entry(bed: Bed) -> None:
    producer = bed.producer()
    appends = [an_append(producer) for _ in range(20)]
    appended = await asyncio.gather(*(producer.append(0, append) for append in appends))
    assert {one.outcome for one in appended} == {NEW}
    assert len({one.position for one in appended}) == 1
    [entry] = await read_all(bed, 0)
    assert (entry.records, entry.counter, entry.fault) == (20, 20, None)
    assert [order.order_id for order in orders_of([entry])] == [one.order_id for one in appends]
    assert Position(0, entry.entry_id, entry.batch_id) == appended[0].position


async def test_one_flush_is_under_way_at_a_time_and_order_is_kept(bed: Bed) -> None:
    producer = bed.producer()
    appends = [an_append(producer) for _ in range(60)]
    waits = []
    for append in appends:
        waits.append(asyncio.ensure_future(producer.append(1, append)))
        await asyncio.sleep(0)
    await asyncio.gather(*waits)
    entries = await read_all(bed, 1)
    assert [order.order_id for order in orders_of(entries)] == [one.order_id for one in appends]
    assert [entry.counter for entry in entries] == [
        sum(one.records for one in entries[: index + 1]) for index in range(len(entries))
    ]


async def test_same_key_and_body_is_a_duplicate_and_other_body_a_conflict(bed: Bed) -> None:
    producer = bed.producer()
    first = await producer.append(2, an_append(producer, 2, key=b"K", body=b"one"))
    again = await producer.append(2, an_append(producer, 2, key=b"K", body=b"one"))
    other = await producer.append(2, an_append(producer, 2, key=b"K", body=b"two"))
    assert (first.outcome, again.outcome, other.outcome) == (NEW, DUPLICATE, CONFLICT)
    assert first.order_id == again.order_id == other.order_id
    assert first.position == again.position == other.position
    assert [entry.records for entry in await read_all(bed, 2)] == [1]


async def test_equal_keys_in_one_flush_append_once(bed: Bed) -> None:
    producer = bed.producer()
    first = an_append(producer, key=b"K", body=b"one")
    second = an_append(producer, key=b"K", body=b"one")
    third = an_append(producer, key=b"K", body=b"two")
    appended = await asyncio.gather(*(producer.append(0, one) for one in (first, second, third)))
    assert [one.outcome for one in appended] == [NEW, DUPLICATE, CONFLICT]
    assert {one.order_id for one in appended} == {first.order_id}
    assert {one.position for one in appended} == {appended[0].position}
    assert [one.order_id for one in orders_of(await read_all(bed, 0))] == [first.order_id]


async def test_only_new_records_of_a_mixed_flush_are_logged(bed: Bed) -> None:
    producer = bed.producer()
    known = an_append(producer, key=b"known", body=b"b")
    await producer.append(0, known)
    plain = an_append(producer)
    fresh = an_append(producer, key=b"fresh")
    repeated = an_append(producer, key=b"known", body=b"b")
    appended = await asyncio.gather(*(producer.append(0, x) for x in (repeated, fresh, plain)))
    assert [one.outcome for one in appended] == [DUPLICATE, NEW, NEW]
    entries = await read_all(bed, 0)
    assert [entry.records for entry in entries] == [1, 2]
    assert {one.order_id for one in orders_of(entries)} == {
        known.order_id, fresh.order_id, plain.order_id
    }  # fmt: skip


async def test_client_id_is_taken_once(bed: Bed) -> None:
    producer = bed.producer()
    first = an_append(producer, 3, is_client_id=True, body=b"one")
    again = an_append(producer, 3, is_client_id=True, body=b"one", order_id=first.order_id)
    other = an_append(producer, 3, is_client_id=True, body=b"two", order_id=first.order_id)
    outcomes = [(await producer.append(3, one)).outcome for one in (first, again, other)]
    assert outcomes == [NEW, DUPLICATE, CONFLICT]


async def test_client_id_of_another_tenant_is_a_conflict_even_with_the_same_body(bed: Bed) -> None:
    producer = bed.producer()
    first = an_append(producer, is_client_id=True, body=b"one", tenant=1)
    other = an_append(producer, is_client_id=True, body=b"one", tenant=2, order_id=first.order_id)
    assert (await producer.append(0, first)).outcome is NEW
    assert (await producer.append(0, other)).outcome is CONFLICT
    assert (await producer.append(0, first)).outcome is DUPLICATE


async def test_a_second_key_for_a_known_client_id_means_the_same_order(bed: Bed) -> None:
    producer = bed.producer()
    first = an_append(producer, key=b"A", body=b"one", is_client_id=True)
    second = an_append(producer, key=b"B", body=b"one", is_client_id=True, order_id=first.order_id)
    third = an_append(producer, key=b"C", body=b"two", is_client_id=True, order_id=first.order_id)
    appended = await asyncio.gather(*(producer.append(0, one) for one in (first, second, third)))
    assert [one.outcome for one in appended] == [NEW, DUPLICATE, CONFLICT]
    by_key = await producer.append(0, an_append(producer, key=b"B", body=b"one"))
    assert (by_key.outcome, by_key.order_id) == (DUPLICATE, first.order_id)
    assert by_key.position == appended[0].position
    # A conflict burns no key: C is still free.
    assert (await producer.append(0, an_append(producer, key=b"C"))).outcome is NEW


async def test_a_large_request_is_split_by_the_limits_and_answered_in_order(bed: Bed) -> None:
    limits = ProducerLimits(flush_records_max=50, keyed_records_max=7, flush_bytes_max=4000)
    producer = bed.producer(limits)
    appends = [
        an_append(producer, key=b"k%d" % index if index % 3 == 0 else None, note="x" * (index % 40))
        for index in range(200)
    ]
    appended = await producer.append_many(0, appends)
    assert [one.order_id for one in appended] == [one.order_id for one in appends]
    entries = await read_all(bed, 0)
    assert sum(entry.records for entry in entries) == 200
    assert max(entry.records for entry in entries) <= 50
    assert max(len(entry.data) for entry in entries) <= 4000 + 5
    keyed = [sum(one in {a.order_id for a in appends[::3]} for one in ids(e)) for e in entries]
    assert max(keyed) <= 7
    assert await producer.append_many(0, []) == []


async def test_plain_records_are_split_by_the_limits_and_each_has_its_entrys_position(
    bed: Bed,
) -> None:
    producer = bed.producer(ProducerLimits(flush_records_max=50, flush_bytes_max=4000))
    appends = [an_append(producer, note="x" * (index % 40)) for index in range(200)]
    logged = await producer.append_plain(0, [append.record for append in appends], "00-trace")
    entries = await read_all(bed, 0)
    assert sorted(order for entry in entries for order in ids(entry)) == sorted(
        append.order_id for append in appends
    )
    assert max(entry.records for entry in entries) <= 50
    assert max(len(entry.data) for entry in entries) <= 4000 + 5
    assert {entry.trace for entry in entries} == {"00-trace"}
    entry_of = {order: entry for entry in entries for order in ids(entry)}
    for append, (position, replicas) in zip(appends, logged, strict=True):
        entry = entry_of[append.order_id]
        assert (position, replicas) == (Position(0, entry.entry_id, entry.batch_id), 0)
    assert await producer.append_plain(0, []) == []


def ids(entry: Delivery) -> list[bytes]:
    return [order.order_id for order in orders_of([entry])]


async def test_a_full_queue_refuses_before_it_grows(bed: Bed) -> None:
    producer = bed.producer(ProducerLimits(queue_records_max=5, flush_records_max=2))
    waits = [asyncio.ensure_future(producer.append(0, an_append(producer))) for _ in range(9)]
    answers = await asyncio.gather(*waits, return_exceptions=True)
    assert sum(isinstance(one, Overload) for one in answers) == 4
    assert sum(isinstance(one, Appended) for one in answers) == 5


async def test_a_record_given_up_before_its_flush_is_not_logged(bed: Bed) -> None:
    producer = bed.producer()
    kept, dropped = an_append(producer), an_append(producer)
    waits = [asyncio.ensure_future(producer.append(0, one)) for one in (dropped, kept)]
    await asyncio.sleep(0)
    waits[0].cancel()
    assert (await waits[1]).outcome is NEW
    logged = [order.order_id for order in orders_of(await read_all(bed, 0))]
    assert logged in ([kept.order_id], [dropped.order_id, kept.order_id])


async def test_a_lower_counter_puts_a_gap_entry_into_the_log(bed: Bed) -> None:
    producer = bed.producer()
    await asyncio.gather(*(producer.append(0, an_append(producer)) for _ in range(10)))
    await bed.set_counter(0, 4)  # A failover lost six acknowledged records.
    await producer.append(0, an_append(producer))
    *_, gap, entry = await read_all(bed, 0)
    assert (gap.gap, gap.records, gap.counter, gap.fault) == ((4, 10), 0, 10, None)
    assert (entry.gap, entry.records, entry.counter) == (None, 1, 11)
    assert gap.batch_id != entry.batch_id


async def test_duplicates_alone_tell_of_a_gap_too(bed: Bed) -> None:
    producer = bed.producer()
    await producer.append(0, an_append(producer, key=b"K", body=b"b"))
    await bed.set_counter(0, 0)
    appended = await producer.append(0, an_append(producer, key=b"K", body=b"b"))
    assert appended.outcome is DUPLICATE
    assert (await read_all(bed, 0))[-1].gap == (0, 1)


@pytest.mark.parametrize("seconds", [-90.0, 0.0, 90.0])
async def test_time_is_the_logs_however_wrong_our_clock_is(bed: Bed, seconds: float) -> None:
    producer = bed.producer(clock=WrongClock(seconds))
    await producer.start()
    before = producer.now_ms()
    entry_ms = (await producer.append(0, an_append(producer))).position.entry_id.ms
    assert before - 50 <= entry_ms <= producer.now_ms() + 50
    assert abs(producer.clock_offset_seconds + seconds) < 0.05


async def test_another_number_of_shards_is_refused(bed: Bed) -> None:
    await bed.producer().start()
    with pytest.raises(Rejected, match="installed with 4 shards"):
        await bed.producer(shards=8).start()


async def test_shards_are_chosen_evenly(bed: Bed) -> None:
    producer = bed.producer()
    assert sorted(producer.choose_shard() for _ in range(40)) == sorted(list(range(4)) * 10)


async def test_a_closed_producer_takes_nothing_more(bed: Bed) -> None:
    producer = bed.producer()
    waiting = asyncio.ensure_future(producer.append(0, an_append(producer)))
    await asyncio.sleep(0)
    await producer.close()
    assert (await waiting).outcome is NEW
    with pytest.raises(NotExecuted):
        await producer.append(0, an_append(producer))


RECORDS = st.lists(
    st.tuples(
        st.sampled_from([None, b"A", b"B", b"C"]),  # key
        st.sampled_from([b"x", b"y"]),  # body
        st.sampled_from([None, 0, 1]),  # which client id
    ),
    max_size=12,
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(flushes=st.lists(RECORDS, max_size=4))
async def test_keys_and_ids_mean_one_order_however_they_meet(
    bed: Bed, flushes: list[list[tuple[bytes | None, bytes, int | None]]]
) -> None:
    await bed.lose_everything()
    producer = bed.producer()
    known: dict[tuple[str, object], tuple[bytes, bytes]] = {}
    client_ids = [an_append(producer).order_id for _ in range(2)]
    logged: list[bytes] = []
    for flush in flushes:
        appends = [
            an_append(
                producer,
                key=key,
                body=body,
                order_id=None if client is None else client_ids[client],
                is_client_id=client is not None,
            )
            for key, body, client in flush
        ]
        appended = await asyncio.gather(*(producer.append(0, append) for append in appends))
        for (key, body, client), append, answer in zip(flush, appends, appended, strict=True):
            names = [("key", key)] * (key is not None) + [("id", client)] * (client is not None)
            found = next((known[name] for name in names if name in known), None)
            if found is None:
                expected = NEW, append.order_id
                logged.append(append.order_id)
                known |= dict.fromkeys(names, (append.order_id, body))
            else:
                expected = (DUPLICATE if found[1] == body else CONFLICT), found[0]
                if found[1] == body and names:
                    known.setdefault(names[0], found)
            assert (answer.outcome, answer.order_id) == expected
    entries = await read_all(bed, 0)
    assert sorted(order.order_id for order in orders_of(entries)) == sorted(logged)
    assert sum(entry.records for entry in entries) == len(logged)
    if entries:
        assert entries[-1].counter == len(logged)
    await producer.close()
