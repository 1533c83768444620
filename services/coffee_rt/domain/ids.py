"""Order ids and batch ids: UUIDv7 (RFC 9562), as 16 raw bytes everywhere inside.

Layout of an id minted here: 48 bits milliseconds, version 7, 12 bits sequence within the millisecond,
variant, 10 bits shard, 52 random bits. Time first keeps COPY and the primary key in order; the shard
makes an id alone say where it was logged. A client's own id only has the time in common.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from typing import NewType, cast
from uuid import UUID

from coffee_rt.errors import Rejected

OrderId = NewType("OrderId", bytes)
BatchId = NewType("BatchId", bytes)

SHARDS_MAX = 1024
"""The shard takes 10 bits of an id."""

CLIENT_ID_AGE_SECONDS_MAX = 24 * 3600
"""An older client id would meet a closed partition and lose its uniqueness."""

CLIENT_ID_AHEAD_SECONDS_MAX = 300

BACK_MS_MAX = 40
"""How far ids may be ahead of the time that is given. Below streams.backlog.FIND_BEFORE_MS: an id further ahead of its
entry is not found in the log."""

_SEQUENCE_MAX = 0xFFF
_RANDOM_POOL_BYTES = 8 * 512
_pack_id = struct.Struct(">IHHQ").pack
_text_parts = struct.Struct("8s4s4s4s12s").iter_unpack


class IdMinter:
    """Mints increasing UUIDv7 for one process. Not for use by several threads.

    The caller gives the time (Redis's clock, see streams), so that an id and the entry it travels in
    agree. Time going backwards a little, or more than 4096 ids in a millisecond, borrows from the next one. Where it
    goes back further, a clock was set right: so do the ids, which only their random bits then tell from earlier ones.
    """

    __slots__ = ("_last_ms", "_offset", "_pool", "_sequence")

    def __init__(self) -> None:
        self._last_ms = 0
        self._sequence = 0
        self._pool = b""
        self._offset = 0

    def mint(self, now_ms: int, shard: int = 0) -> OrderId:
        """One id for `shard` (0..1023) at `now_ms` (Unix milliseconds)."""
        if now_ms > self._last_ms or now_ms < self._last_ms - BACK_MS_MAX:
            self._last_ms = now_ms
            self._sequence = 0
        elif self._sequence == _SEQUENCE_MAX:
            self._last_ms += 1
            self._sequence = 0
        else:
            self._sequence += 1
        if self._offset >= len(self._pool):
            self._pool = os.urandom(_RANDOM_POOL_BYTES)
            self._offset = 0
        random = int.from_bytes(self._pool[self._offset : self._offset + 8], "big") & (
            (1 << 52) - 1
        )
        self._offset += 8
        value = (
            (self._last_ms << 80)
            | (0x7000 | self._sequence) << 64
            | (0b10 << 62)
            | ((shard & 0x3FF) << 52)
            | random
        )
        return OrderId(value.to_bytes(16, "big"))

    def mint_many(self, now_ms: int, shard: int, count: int) -> list[OrderId]:
        """`count` ids, increasing; as `mint` for each, at a fifth of its cost."""
        tail = (0b10 << 62) | ((shard & 0x3FF) << 52)
        randoms = struct.unpack(f">{count}Q", os.urandom(8 * count))
        minted: list[bytes] = []
        last_ms, sequence = self._last_ms, self._sequence
        if now_ms > last_ms or now_ms < last_ms - BACK_MS_MAX:
            last_ms, sequence = now_ms, -1
        while len(minted) < count:
            if sequence == _SEQUENCE_MAX:
                last_ms, sequence = last_ms + 1, -1
            made = len(minted)
            until = min(sequence + count - made, _SEQUENCE_MAX)
            high, low, numbers = last_ms >> 16, last_ms & 0xFFFF, range(sequence + 1, until + 1)
            minted += [
                _pack_id(high, low, 0x7000 | number, tail | random >> 12)
                for number, random in zip(numbers, randoms[made:], strict=False)
            ]
            sequence = until
        self._last_ms, self._sequence = last_ms, max(sequence, 0)
        return cast(list[OrderId], minted)


def id_time_ms(order_id: bytes) -> int:
    """Unix milliseconds an id was minted at."""
    return int.from_bytes(order_id[:6], "big")


def id_shard(order_id: bytes) -> int:
    """Shard an id of ours was logged in; meaningless for a client's own id."""
    return (int.from_bytes(order_id[8:10], "big") >> 4) & 0x3FF


def format_id(order_id: bytes) -> str:
    """Canonical text of an id."""
    text = order_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def text_parts(order_ids: Sequence[bytes]) -> Iterator[tuple[bytes, ...]]:
    """The five parts that hyphens join to an id's text, for many ids at a fraction of `format_id` each."""
    return _text_parts(b"".join(order_ids).hex().encode())


def parse_id(text: str, place: str = "/order_id") -> OrderId:
    """A UUIDv7 from its text. Raises Rejected when it is no UUID or not version 7."""
    try:
        uuid = UUID(text)
    except (ValueError, AttributeError, TypeError):
        raise Rejected("bad-order-id", "is not a UUID", place) from None
    if uuid.version != 7:
        raise Rejected("bad-order-id", "must be a UUID of version 7", place)
    return OrderId(uuid.bytes)


def check_client_id_time(order_id: bytes, now_ms: int, place: str = "/order_id") -> None:
    """Raises Rejected unless the id's time is between 24 h ago and 5 min ahead."""
    at_ms = id_time_ms(order_id)
    if at_ms < now_ms - CLIENT_ID_AGE_SECONDS_MAX * 1000:
        raise Rejected("order-id-too-old", "its time is more than 24 hours ago", place)
    if at_ms > now_ms + CLIENT_ID_AHEAD_SECONDS_MAX * 1000:
        raise Rejected("order-id-ahead", "its time is more than 5 minutes ahead", place)


def id_floor(at_ms: int) -> bytes:
    """Smallest id of a millisecond: the bound for range scans and partitions."""
    return (at_ms << 80).to_bytes(16, "big")


def display_number(order_id: bytes) -> int:
    """Stable 53-bit integer for clients that want one: 41 bits of time, 12 random.

    For display and list keys only; two orders may share one. Compatibility routes say so.
    """
    low_ms = id_time_ms(order_id) & ((1 << 41) - 1)
    return (low_ms << 12) | (int.from_bytes(order_id[14:], "big") & 0xFFF)
