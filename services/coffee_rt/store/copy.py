"""Values in PostgreSQL's binary COPY format, with their length in front. Pure: bytes in, bytes out.

A row is `row_header(n)` and its n fields joined; a payload is `payload(rows)`. The encoders raise
struct.error or UnicodeEncodeError for a value that its type can't hold, before anything is sent.
Format: PostgreSQL manual, COPY, "Binary Format"; numeric: src/backend/utils/adt/numeric.c, numeric_recv.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TRAILER = b"\xff\xff"
NULL = b"\xff\xff\xff\xff"

EPOCH_US = 946_684_800_000_000
"""2000-01-01 UTC in Unix microseconds: where PostgreSQL's timestamps start."""

_pack_count = struct.Struct(">h").pack
_pack_length = struct.Struct(">i").pack
_pack_int2 = struct.Struct(">ih").pack
_pack_int4 = struct.Struct(">ii").pack
_pack_int8 = struct.Struct(">iq").pack
_NUMERIC_BASE = 10_000
_NUMERIC_NEGATIVE = 0x4000


def row_header(fields: int) -> bytes:
    """What starts a row of so many fields."""
    return _pack_count(fields)


def payload(rows: Iterable[bytes]) -> bytes:
    """A whole COPY stream of encoded rows (or of parts of rows, in order)."""
    return b"".join((HEADER, *rows, TRAILER))


def int2(value: int) -> bytes:
    return _pack_int2(2, value)


def int4(value: int) -> bytes:
    return _pack_int4(4, value)


def int8(value: int) -> bytes:
    return _pack_int8(8, value)


def boolean(value: bool) -> bytes:
    return b"\x00\x00\x00\x01\x01" if value else b"\x00\x00\x00\x01\x00"


def bytea(value: bytes) -> bytes:
    return _pack_length(len(value)) + value


def uuid(value: bytes) -> bytes:
    """A UUID from its 16 raw bytes."""
    return b"\x00\x00\x00\x10" + value


def text(value: str) -> bytes:
    encoded = value.encode()
    return _pack_length(len(encoded)) + encoded


def jsonb(value: bytes) -> bytes:
    """A jsonb from JSON text; its binary form is version 1 and that text."""
    return _pack_length(len(value) + 1) + b"\x01" + value


def timestamptz(unix_us: int) -> bytes:
    """An instant from Unix microseconds."""
    return _pack_int8(8, unix_us - EPOCH_US)


def numeric(value: int) -> bytes:
    """A whole number as numeric: base-10000 digits, most significant first, no trailing zero digits."""
    digits: list[int] = []
    rest = abs(value)
    while rest:
        rest, digit = divmod(rest, _NUMERIC_BASE)
        digits.append(digit)
    weight = len(digits) - 1 if digits else 0
    while digits and digits[0] == 0:
        digits.pop(0)
    digits.reverse()
    sign = _NUMERIC_NEGATIVE if value < 0 else 0
    count = len(digits)
    return struct.pack(f">ihhHh{count}h", 8 + 2 * count, count, weight, sign, 0, *digits)
