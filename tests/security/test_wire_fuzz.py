"""Bytes from strangers in the log: the worker's decoder answers with orders and dead letters, or leaves the entry."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coffee_rt.domain import wire
from coffee_rt.errors import Rejected
from coffee_rt.store.contract import EntryWrite
from coffee_rt.streams.contract import Delivery
from coffee_rt.streams.entries import delivery_of
from coffee_rt.worker.decoding import EntryDecoder
from tests.builders import NOW_MS, an_order

FUZZ = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
GOOD = wire.encode_record(an_order())
ELEMENTS: list[Any] = msgspec.msgpack.decode(GOOD)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """A good record, one with another element, one cut off, one with a byte changed, or no record."""
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return GOOD
    if kind == 1:
        changed = list(ELEMENTS)
        changed[draw(st.integers(0, len(changed) - 1))] = draw(values)
        return msgspec.msgpack.encode(changed)
    if kind == 2:
        return GOOD[: draw(st.integers(0, len(GOOD)))]
    if kind == 3:
        at = draw(st.integers(0, len(GOOD) - 1))
        return GOOD[:at] + bytes([draw(st.integers(0, 255))]) + GOOD[at + 1 :]
    return draw(st.binary(max_size=60))


names = st.sampled_from([b"v", b"b", b"c", b"n", b"d", b"t", b"g", b"x"])
numbers = st.sampled_from(
    [b"0", b"1", b"2", b"20001", b"-1", b"9" * 30, b"x", b"", b"1-5", "１".encode()]
)


@st.composite
def entries(draw: st.DrawFn) -> list[bytes]:
    """An entry as Redis gives it: names and values in turn."""
    made = draw(st.lists(records(), max_size=4))
    fields = {
        b"v": b"1",
        b"b": bytes(range(16)),
        b"c": b"%d" % len(made),
        b"n": b"%d" % len(made),
        b"d": wire.join_records(made),
    }
    for name in draw(st.lists(names, max_size=2)):
        fields[name] = draw(numbers | st.binary(max_size=20))
    if draw(st.booleans()):
        fields.pop(draw(names), None)
    return [part for pair in fields.items() for part in pair]


def entry_of(*records: bytes) -> EntryWrite:
    """What the worker makes of an entry with these records."""
    flat = [b"v", b"1", b"b", bytes(range(16)), b"c", b"%d" % len(records), b"n"]
    flat += [b"%d" % len(records), b"d", wire.join_records(list(records))]
    return EntryDecoder(retention_days=400).decode(delivery_of(0, b"1-1", flat, 1, 1), NOW_MS)


def decode(flat: list[bytes]) -> Delivery:
    delivery = delivery_of(0, b"1-1", flat, 1, 1)
    decoder = EntryDecoder(retention_days=400)
    try:
        entry = decoder.decode(delivery, NOW_MS)
    except wire.UnknownWireVersion:
        return delivery
    assert len(entry.orders) + len(entry.dead) <= max(1, delivery.records)
    parked = decoder.park(delivery, "unstorable")
    assert not parked.orders
    return delivery


@FUZZ
@given(entries())
def test_whatever_is_in_an_entry_is_stored_put_aside_or_left(flat: list[bytes]) -> None:
    decode(flat)


@FUZZ
@given(st.lists(st.binary(max_size=40), max_size=6).map(lambda parts: [*parts, *parts]))
def test_fields_of_a_stranger_are_a_fault(flat: list[bytes]) -> None:
    decode(flat)


@FUZZ
@given(st.integers(-2, 4), st.binary(max_size=300))
def test_bytes_that_are_no_batch_are_rejected_or_left(version: int, data: bytes) -> None:
    for read in (wire.decode_batch, wire.split_batch):
        try:
            read(version, data)
        except (Rejected, wire.UnknownWireVersion):
            continue


@pytest.mark.parametrize("depth", [5, 400, 990, 1020])
def test_attributes_nested_too_deeply_cost_only_their_record(depth: int) -> None:
    """Deeper ones than order_api takes: whoever reads them later has less of its stack left."""
    deep = b'{"a":' + b"[" * depth + b"]" * depth + b"}"
    poison = wire.encode_record(msgspec.structs.replace(an_order(), attributes=deep[:2048]))
    assert len(deep) <= 2048
    entry = entry_of(GOOD, poison, GOOD)
    assert (len(entry.orders), [letter.index for letter in entry.dead]) == (2, [1])
    assert entry.dead[0].code == "too-deep"


def test_depth_without_end_is_rejected() -> None:
    for nested in (b"\x91" * 100_000, b"\x81\xa0" * 100_000):
        deep = wire.join_records([nested])
        for read in (wire.decode_batch, wire.split_batch):
            try:
                read(1, deep)
            except Rejected:
                continue
