"""The body of a batch -> its records, each as its own bytes; and records -> slices of one turn. Pure.

A body comes from strangers and may be 32 MiB, of which some kilobytes were sent: what is made of it, and how long
that takes, is bounded before anything is decoded. Whether a record is any good is left to whoever reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

import msgspec

from coffee_rt.domain.json_text import check_encoding, reject_decode
from coffee_rt.errors import Rejected

COMMAS_A_RECORD = 16
"""Commas an ordinary record may have. A body with more of them is counted before it is taken apart."""

LINES_A_RECORD = 2
"""Lines an ordinary record may have, empty ones among them. A body with more is taken apart one by one."""

SLICE_BYTES_MAX = 1 << 20
"""Bytes of records read in one turn of the event loop. Ordinary ones are far below; a thousand of the largest
would hold up everybody else for half a second."""

DEPTH_MAX = 8
"""Levels of brackets in a record, as far as they are counted; no good record has as many."""

_BEGIN = re.compile(rb"[ \t\r\n]*\[")
_LINES = re.compile(rb"\S[^\n]*")
_TEXT = rb'"(?:[^"\\]|\\(?s:.))*+"'
_split = msgspec.json.Decoder(list[msgspec.Raw]).decode


def _inside(depth: int) -> bytes:
    """Pattern of what stands between two brackets."""
    deeper = rb"|[\[{]%b[\]}]" % _inside(depth - 1) if depth else b""
    return rb'(?:[^"\[\]{}]++|%b%b)*+' % (_TEXT, deeper)


# One element of an array, up to its comma. Possessive throughout: nothing is looked at twice, and no bracket
# costs a turn of Python's.
_ELEMENT = re.compile(rb'(?:[^"\[\]{},]++|%b|[\[{]%b[\]}])*+' % (_TEXT, _inside(DEPTH_MAX - 1)))


def split_array(body: bytes, records_max: int, record_bytes_max: int) -> list[bytes]:
    """The records of a JSON array. Raises Rejected."""
    if body.count(b",") > COMMAS_A_RECORD * records_max:
        _check_count(_count_elements(body, records_max, record_bytes_max), records_max)
    try:
        records = [bytes(raw) for raw in _split(body)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        check_encoding(body)
        reject_decode(error)
    _check_count(len(records), records_max)
    return records


def split_lines(body: bytes, records_max: int) -> list[bytes]:
    """The records of NDJSON; empty lines are no records. Raises Rejected."""
    check_encoding(body)
    if body.count(b"\n") <= LINES_A_RECORD * records_max:
        # lstrip copies nothing where there is nothing to strip.
        records = [record for line in body.split(b"\n") if (record := line.lstrip())]
    else:
        records = [match.group() for match in islice(_LINES.finditer(body), records_max + 1)]
    _check_count(len(records), records_max)
    return records


def slices(records: list[bytes], records_max: int) -> Iterator[tuple[int, list[bytes]]]:
    """(index of the first, records) of each slice, of at most so many records and SLICE_BYTES_MAX."""
    start = 0
    while start < len(records):
        part = records[start : start + records_max]
        size = sum(map(len, part))
        while size > SLICE_BYTES_MAX and len(part) > 1:
            size -= len(part.pop())
        yield start, part
        start += len(part)


def _check_count(records: int, records_max: int) -> None:
    if records > records_max:
        detail = f"The batch has more than {records_max} records."
        raise Rejected("too-many-records", detail, status=413)


def _count_elements(body: bytes, enough: int, record_bytes_max: int) -> int:
    """How many elements an array's text has, counted no further than a little past `enough`, and without
    making them: 32 MiB of `[0,0,...` would become two gigabytes before they could be counted. Raises Rejected at
    an element that can't be a good record, because nobody knows what comes behind it."""
    begin = _BEGIN.match(body)
    if begin is None:
        return 0
    elements, at = 0, begin.end()
    while elements <= enough:
        element = _ELEMENT.match(body, at, at + record_bytes_max)
        end = at if element is None else element.end()
        elements += 1
        mark = body[end : end + 1]
        if mark in (b"]", b"}", b""):
            break
        if mark != b",":
            detail = f"has more than {record_bytes_max} bytes, or is nested too deeply"
            raise Rejected("too-large", detail, f"/{elements - 1}", status=413)
        at = end + 1
    return elements
