"""The short way of the producer's own entries tells what the long way tells, whatever a stranger writes."""

from __future__ import annotations

import pytest

from coffee_rt.domain.wire import RECORDS_MAX
from coffee_rt.streams.contract import EntryId
from coffee_rt.streams.entries import delivery, delivery_of, fields_of

BATCH = bytes(range(16))
OWN = {b"v": b"1", b"b": BATCH, b"c": b"7", b"n": b"2", b"d": b"data"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {b"t": b"00-abc"},
        {b"v": b"99"},
        {b"v": b"one"},
        {b"b": b"short"},
        {b"c": b"-1"},
        {b"c": b" 7 "},
        {b"c": b"9" * 5000},
        {b"c": b""},
        {b"n": b"0"},
        {b"n": b"9" * 5000},
        {b"n": b"%d" % RECORDS_MAX},
        {b"n": b"%d" % (RECORDS_MAX + 1)},
        {b"n": "\u0662".encode()},
        {b"d": b""},
        {b"g": b"3-5"},
    ],
)
def test_both_ways_of_reading_an_entry_agree(changes: dict[bytes, bytes]) -> None:
    flat = [part for pair in (OWN | changes).items() for part in pair]
    expected = delivery(3, EntryId(1_763_700_000_000, 4), fields_of(flat), 2, 9)
    assert delivery_of(3, b"1763700000000-4", flat, 2, 9) == expected


def test_the_order_of_fields_means_nothing() -> None:
    flat = [part for pair in reversed(OWN.items()) for part in pair]
    own = [part for pair in OWN.items() for part in pair]
    assert delivery_of(0, b"1-0", flat, 1, 1) == delivery_of(0, b"1-0", own, 1, 1)
