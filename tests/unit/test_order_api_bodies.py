"""Bodies from strangers: taken apart within bounds, whatever they hold."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from time import perf_counter

import pytest
import zstandard

from coffee_rt.domain.ids import IdMinter, format_id
from coffee_rt.errors import Rejected
from coffee_rt.order_api.batch import BatchResult
from coffee_rt.order_api.http_exchange import PACKED_MEMBERS_MAX, unpack
from coffee_rt.order_api.splitting import SLICE_BYTES_MAX, slices, split_lines
from coffee_rt.order_api.splitting import split_array as split_array_within

MEGABYTE = 1 << 20
RECORD_BYTES_MAX = 65_536


def split_array(body: bytes, records_max: int) -> list[bytes]:
    return split_array_within(body, records_max, RECORD_BYTES_MAX)


@pytest.mark.parametrize(
    ("split", "body"),
    [
        (split_array, b"[" + b"0," * MEGABYTE + b"0]"),
        (split_array, b"[" + b'"",' * MEGABYTE + b"0]"),
        (split_lines, b"0\n" * MEGABYTE),
    ],
)
def test_too_many_records_are_refused_before_they_are_made(split: object, body: bytes) -> None:
    assert callable(split)
    tracemalloc.start()
    with pytest.raises(Rejected) as caught:
        split(body, 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (caught.value.status, caught.value.code) == (413, "too-many-records")
    assert peak < len(body)


@pytest.mark.parametrize(
    "record",
    [
        {"note": "," * 100},
        {"attributes": {"list": list(range(50)), "of": [{"a": 1}] * 9}},
        {"note": 'a "quoted", \\ text,,,,,,,,,,,,,,,,,,,,'},
    ],
)
def test_records_of_many_commas_are_still_taken(record: object) -> None:
    records = split_array(json.dumps([record] * 20).encode(), 20)
    assert [json.loads(each) for each in records] == [record] * 20
    with pytest.raises(Rejected, match="more than 19"):
        split_array(json.dumps([record] * 20).encode(), 19)


def test_a_text_without_end_is_read_once() -> None:
    began = perf_counter()
    for end in (b"", b"\\"):
        with pytest.raises(Rejected):
            split_array(b'[",' + b'\\",' * 300_000 + end, 10)
    assert perf_counter() - began < 10  # Read again from each quote it would take minutes.


@pytest.mark.parametrize(
    "record",
    [
        b'{"attributes":{"a":[' + b"[]," * 8 * MEGABYTE + b"[]]}}",
        b'{"attributes":{"a":[' + b'"",' * 8 * MEGABYTE + b'""]}}',
        b"{" + b'"a":{},' * 4 * MEGABYTE + b'"a":{}}',
        b"[" * MEGABYTE + b"," * 8 * MEGABYTE,
        b" " * MEGABYTE + b"0",
        b'"' + b"\\," * 8 * MEGABYTE + b'"',
    ],
    ids=["lists", "texts", "objects", "depth", "spaces", "escapes"],
)
def test_a_record_without_end_is_not_gone_through(record: bytes) -> None:
    """With millions of others behind it, which must not be made to be counted."""
    body = b"[0," + record + b"," + b"0," * MEGABYTE + b"0]"
    began = perf_counter()
    tracemalloc.start()
    with pytest.raises(Rejected) as caught:
        split_array(body, 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (caught.value.status, caught.value.place) == (413, "/1")
    assert peak < MEGABYTE
    assert perf_counter() - began < 5  # Bracket by bracket it would take tens of seconds.


def test_records_are_read_in_slices_of_bounded_number_and_size() -> None:
    records = [b"x" * 60_000] * 100 + [b"y"] * 5000 + [b"z" * 2 * SLICE_BYTES_MAX, b"y"]
    made = list(slices(records, 1000))
    assert [record for _, part in made for record in part] == records
    assert all(records[start : start + len(part)] == part for start, part in made)
    for _, part in made:
        assert len(part) == 1 or sum(map(len, part)) <= SLICE_BYTES_MAX
        assert 0 < len(part) <= 1000


def test_empty_lines_and_spaces_around_records_are_none() -> None:
    assert split_lines(b' \n\n{"a":1}\r\n  {"b":2}\n\t\n', 2) == [b'{"a":1}\r', b'{"b":2}']


@pytest.mark.parametrize("encoding", [b"gzip", b"zstd"])
def test_members_one_after_the_other_are_one_body(encoding: bytes) -> None:
    pack = gzip.compress if encoding == b"gzip" else zstandard.compress
    text = b"".join(b"%d" % number * 50_000 for number in range(10))
    packed = b"".join(pack(text[start : start + 70_000]) for start in range(0, len(text), 70_000))
    assert unpack(packed, encoding, len(text)) == text
    with pytest.raises(Rejected):
        unpack(packed, encoding, len(text) - 1)
    with pytest.raises(Rejected):
        unpack(packed[:-1], encoding, len(text))


@pytest.mark.parametrize("encoding", [b"gzip", b"zstd"])
def test_endless_empty_members_are_refused(encoding: bytes) -> None:
    empty = zstandard.compress(b"")
    if encoding == b"gzip":
        packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        empty = packer.flush()
    with pytest.raises(Rejected, match="members"):
        unpack(empty * (PACKED_MEMBERS_MAX + 1), encoding, MEGABYTE)


def test_records_found_dead_while_waiting_are_said_to_be_in_their_place() -> None:
    ids = IdMinter().mint_many(1_763_000_000_000, 0, 2)
    results = [
        f'{{"index":{at},"status":202,"order_id":"{format_id(id_)}"}}'.encode()
        for at, id_ in enumerate(ids)
    ]
    batch = BatchResult([*results])
    batch.mark_dead([ids[1]])
    assert batch.results[0] == results[0]
    assert json.loads(batch.results[1])["ack"] == "dead-letter"
