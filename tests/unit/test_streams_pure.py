"""The log's pure parts: shards, flush planning, entries, the learned clock, admission."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coffee_rt.domain.ids import IdMinter
from coffee_rt.domain.wire import RECORDS_MAX, join_records
from coffee_rt.errors import Overload, Rejected, Retryable
from coffee_rt.runtime.clock import SystemClock
from coffee_rt.streams.admission import (
    Admission,
    AdmissionLimits,
    LogLoad,
    decide_admission,
)
from coffee_rt.streams.backlog import find_record
from coffee_rt.streams.contract import Append, Appended, Backlog, EntryId, Outcome, Position
from coffee_rt.streams.entries import parse_entry
from coffee_rt.streams.flush import (
    Flush,
    FlushReply,
    ProducerLimits,
    claim_of,
    is_keyed,
    key_value,
    plan_flush,
    resolve_flush,
    split_items,
)
from coffee_rt.streams.memory import MemoryLog
from coffee_rt.streams.memory_groups import MemoryKeeper
from coffee_rt.streams.redis_clock import SAMPLE_SECONDS_MAX, RedisClock
from coffee_rt.streams.shards import SLOTS, LogKeys, check_shards, slot_of, tag
from tests.streams_bed import WrongClock

BATCH_ID = b"B" * 16


# Shards


def test_slots_are_those_of_redis_cluster() -> None:
    assert slot_of("123456789") == 0x31C3  # The check value of the cluster specification.


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 5, 7, 16, 64])
def test_each_shard_has_its_own_share_of_the_slots(shards: int) -> None:
    for shard in range(shards):
        share = range(shard * SLOTS // shards, (shard + 1) * SLOTS // shards)
        assert slot_of(tag(shard, shards)) in share


def test_all_keys_of_a_shard_carry_its_tag() -> None:
    keys = LogKeys("coffee-rt", 4)
    assert keys.streams[0] == b"coffee-rt:orders:{%s}" % tag(0, 4).encode()
    for names in (keys.streams, keys.counters, keys.marks, keys.keys, keys.client_ids):
        assert [name.split(b"{")[1].split(b"}")[0].decode() for name in names] == [
            tag(shard, 4) for shard in range(4)
        ]


def test_names_that_would_break_the_tags_are_refused() -> None:
    for namespace in ("", "a{b", "}"):
        with pytest.raises(Rejected):
            LogKeys(namespace, 4)
    for shards in (0, -1, 1025):
        with pytest.raises(Rejected):
            LogKeys("a", shards)


def test_another_number_of_shards_is_refused_with_the_setting_to_use() -> None:
    check_shards(4, 4)
    with pytest.raises(Rejected, match="COFFEE_RT_SHARDS=4"):
        check_shards(4, 8)


# Flushes


def appends_of(shape: list[tuple[int, bool, bool]]) -> list[Append]:
    """Records of so many bytes, with or without a key and a client id."""
    return [
        Append(
            index.to_bytes(16, "big"),
            b"r" * size,
            bytes(16),
            index.to_bytes(16, "big") if has_key else None,
            is_client_id,
        )
        for index, (size, has_key, is_client_id) in enumerate(shape)
    ]


SHAPES = st.lists(st.tuples(st.integers(1, 60), st.booleans(), st.booleans()), max_size=60)


@given(SHAPES.filter(bool), st.integers(1, 9), st.integers(1, 9), st.integers(1, 200))
def test_a_request_is_split_in_order_and_every_part_fits(
    shape: list[tuple[int, bool, bool]], records_max: int, keyed_max: int, bytes_max: int
) -> None:
    limits = ProducerLimits(
        flush_records_max=records_max, keyed_records_max=keyed_max, flush_bytes_max=bytes_max
    )
    appends = appends_of(shape)
    items = split_items(appends, limits)
    assert [append for item in items for append in item.appends] == appends
    for item in items:
        assert 0 < len(item.appends) <= records_max
        assert item.keyed == sum(map(is_keyed, item.appends)) <= keyed_max
        assert item.records_bytes == sum(len(append.record) for append in item.appends)
        assert item.records_bytes <= bytes_max or len(item.appends) == 1


def flush_of(appends: list[Append]) -> Flush:
    items = split_items(appends, ProducerLimits())
    return plan_flush(0, items, BATCH_ID, 0, sum(item.keyed for item in items))


def answers_of(flush: Flush, reply: FlushReply) -> list[Appended]:
    """What each record of a flush without plain slices is told."""
    answers: list[Appended] = []
    for resolved in resolve_flush(flush, reply):
        assert isinstance(resolved, list)
        answers += resolved
    return answers


@given(SHAPES.filter(bool))
def test_every_record_is_answered_in_its_place(shape: list[tuple[int, bool, bool]]) -> None:
    appends = appends_of(shape)
    flush = flush_of(appends)
    assert len(flush.unkeyed) + len(flush.keyed) == len(appends)
    reply = FlushReply(EntryId(5, 0), len(appends), [0] * len(flush.keyed), 0.0, 0.0)
    answers = answers_of(flush, reply)
    assert [answer.order_id for answer in answers] == [append.order_id for append in appends]
    assert {answer.outcome for answer in answers} == {Outcome.NEW}
    assert {answer.position for answer in answers} == {Position(0, EntryId(5, 0), BATCH_ID)}


def test_a_value_found_under_a_key_is_the_first_orders_answer() -> None:
    [first, other] = appends_of([(3, True, False), (3, True, False)])
    other = Append(other.order_id, other.record, b"o" * 16, other.key_hash)
    value = key_value(first, b"A" * 16, EntryId(7, 3))
    flush = flush_of([Append(b"n" * 16, b"r", first.body_hash, first.key_hash), other])
    again, conflict = answers_of(flush, FlushReply(None, 9, [value, value], 0.0, 0.0))
    assert (again.outcome, again.order_id) == (Outcome.DUPLICATE, first.order_id)
    assert again.position == conflict.position == Position(0, EntryId(7, 3), b"A" * 16)
    assert (conflict.outcome, conflict.order_id) == (Outcome.CONFLICT, first.order_id)


def test_the_claim_on_a_client_id_is_a_tenants_own() -> None:
    def claim(tenant: int, *, is_client_id: bool = True) -> bytes:
        return claim_of(Append(bytes(16), b"", b"h" * 16, None, is_client_id, tenant))

    assert claim(1) != claim(2)
    assert claim(0) == claim(2, is_client_id=False) == b"h" * 16


def test_the_entry_carries_the_first_trace() -> None:
    appends = [Append(bytes(16), b"r", bytes(16), trace=trace) for trace in ("one", "two")]
    assert flush_of(appends).trace == "one"


def test_limits_the_script_can_not_keep_are_refused() -> None:
    with pytest.raises(Rejected):
        ProducerLimits(keyed_records_max=4_000)
    with pytest.raises(Rejected):
        ProducerLimits(flush_records_max=RECORDS_MAX + 1)


# Entries

FIELDS = st.dictionaries(
    st.sampled_from([b"v", b"b", b"c", b"n", b"d", b"t", b"g", b"x"]),
    st.one_of(st.binary(max_size=20), st.sampled_from([b"1", b"0", b"-1", b"9" * 30, b"3-9"])),
)


@given(FIELDS)
def test_whatever_is_in_the_log_parses_or_has_a_fault(fields: dict[bytes, bytes]) -> None:
    entry = parse_entry(fields)
    assert len(entry.batch_id) == 16
    if entry.fault is None and entry.version == 1:
        assert entry.batch_id == fields[b"b"]
        assert 0 <= entry.records <= RECORDS_MAX
        assert (entry.gap is None) == bool(entry.data)
    find_record(fields, b"\x00" * 16)


def test_an_id_inside_another_record_is_not_taken_for_the_order() -> None:
    wanted = IdMinter().mint(1_763_000_000_000)
    record = b"\x9d\xc4\x10" + bytes(16) + b"\x00\xb0" + wanted + b"\xc0" * 10
    data = join_records([record])
    fields = {b"v": b"1", b"b": BATCH_ID, b"c": b"1", b"n": b"1", b"d": data}
    assert find_record(fields, wanted) is None


# The clock


def test_the_fastest_answer_bounds_the_offset_best() -> None:
    clock = RedisClock(SystemClock())
    assert clock.learn(10_000, 4.0, 6.0)
    assert abs(clock.offset_seconds - 5.0) < 0.001
    assert clock.learn(10_000, 4.9, 5.1)
    assert not clock.learn(99_000, 4.0, 6.0)  # A slow one says less than what is known.
    assert abs(clock.offset_seconds - 5.0) < 0.001


def test_an_old_sample_gives_way_to_a_slower_new_one() -> None:
    clock = RedisClock(SystemClock())
    clock.learn(10_000, 10.0, 10.001)
    later = 10.0 + SAMPLE_SECONDS_MAX + 1
    assert clock.learn(int(later * 1000) + 2000, later, later + 0.5)
    assert 1.5 < clock.offset_seconds < 2.1


def test_a_stalled_answer_does_not_move_a_clock_it_agrees_with() -> None:
    clock = RedisClock(SystemClock())
    clock.learn(10_000, 9.999, 10.001)
    later = 10.0 + SAMPLE_SECONDS_MAX + 1
    # Held up for 3 s before Redis ran it: its middle would say 1.5 s ahead.
    assert not clock.learn(int((later + 3) * 1000), later, later + 3.001)
    assert abs(clock.offset_seconds) < 0.001


def test_a_clock_set_back_takes_the_next_sample() -> None:
    ours = WrongClock(0.0)
    clock = RedisClock(ours)
    clock.learn(10_000_000, 10_000.0, 10_000.001)
    assert clock.learn(10_000_000, 5_000.0, 5_000.002)
    assert abs(clock.offset_seconds - 5_000) < 0.01


# Admission


def a_backlog(**changes: int | float) -> Backlog:
    return dataclasses.replace(Backlog(0, 0, 0.0, 0, 0, 0), **changes)  # type: ignore[arg-type]


LIMITS = AdmissionLimits(
    backlog_bytes_max=1000, undelivered_records_max=100, oldest_seconds_max=3600
)


@pytest.mark.parametrize(
    ("load", "status"),
    [
        (LogLoad(0, 0, []), None),
        (LogLoad(50, 100, [a_backlog()]), None),
        (LogLoad(85, 100, [a_backlog()]), 429),
        (LogLoad(95, 100, [a_backlog()]), 503),
        (LogLoad(95, 0, [a_backlog()]), None),
        (LogLoad(0, 0, [a_backlog(memory_bytes=600), a_backlog(memory_bytes=600)]), 503),
        (LogLoad(0, 0, [a_backlog(undelivered_records=60)] * 2), 429),
        (LogLoad(0, 0, [a_backlog(oldest_seconds=7200)]), 503),
    ],
)
def test_admission_refuses_above_each_limit(load: LogLoad, status: int | None) -> None:
    refusal = decide_admission(load, LIMITS)
    assert (refusal.status if refusal else None) == status
    assert refusal is None or refusal.retry_after_seconds > 0


def test_one_stuck_entry_stops_no_intake() -> None:
    stuck = a_backlog(records=10**9, undelivered_records=0, oldest_seconds=1800, pending_entries=1)
    assert decide_admission(LogLoad(0, 0, [stuck]), LIMITS) is None


async def test_admission_keeps_its_word_until_the_next_look() -> None:
    log = MemoryLog(SystemClock(), 2, memory_bytes_max=100)
    admission = Admission(MemoryKeeper(log), "workers")
    admission.check()
    log.insert_raw(0, {b"d": b"x" * 99})
    admission.check()
    await admission.refresh()
    with pytest.raises(Overload):
        admission.check()

    async def away(point: str, shard: int) -> None:
        raise Retryable("away")

    log.faults = away
    with pytest.raises(Retryable):
        await admission.refresh()
    with pytest.raises(Overload):
        admission.check()
