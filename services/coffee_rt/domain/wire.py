"""Orders <-> the bytes of a stream entry.

An entry is a record batch: one msgpack array of orders under one version tag. The producer encodes each
record alone; the append script joins those that are new under one array header (no other knowledge of
the format is needed there). `docs/wire.md` describes it for readers in other languages.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from coffee_rt.domain.orders import Order
from coffee_rt.errors import Rejected

WIRE_VERSION = 1
"""Version written. A release writes what the previous one can read until a setting is flipped."""
WIRE_VERSIONS_READABLE = frozenset({1})
RECORDS_MAX = 20_000
"""More records than this in one entry are refused by writers and by readers."""

INTAKE_SHARD = -1
"""Stands for the shard where a record batch came by the database's intake and no stream."""

_encoder = msgspec.msgpack.Encoder()
_batch_decoder = msgspec.msgpack.Decoder(list[Order])
_split_decoder = msgspec.msgpack.Decoder(list[msgspec.Raw])
_record_decoder = msgspec.msgpack.Decoder(Order)

# Depth without end is a RecursionError: it must not end whoever reads the log.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

encode_record = _encoder.encode


class UnknownWireVersion(Exception):
    """An entry of a newer release: it stays pending for a worker that can read it."""


def batch_header(count: int) -> bytes:
    """The msgpack array32 header that makes `count` joined records one batch."""
    return b"\xdd" + count.to_bytes(4, "big")


def join_records(records: list[bytes]) -> bytes:
    """What the append script does, in Python: for the memory log and for tests."""
    return batch_header(len(records)) + b"".join(records)


def order_id_of(record: bytes) -> bytes:
    """The order id of an encoded record, which is its first element: array header, bin header, 16 bytes."""
    return record[3:19]


def decode_batch(version: int, data: bytes) -> list[Order]:
    """All orders of an entry. Raises UnknownWireVersion, or Rejected when any record is unreadable."""
    if version not in WIRE_VERSIONS_READABLE:
        raise UnknownWireVersion(version)
    try:
        return _batch_decoder.decode(data)
    except _UNREADABLE as error:
        raise Rejected("unreadable-entry", str(error)) from None


def split_batch(version: int, data: bytes) -> list[bytes]:
    """The raw bytes of each record, so that one bad record can be told from its neighbours.

    Raises Rejected when not even the frame can be read: then the entry as a whole is the bad record.
    """
    if version not in WIRE_VERSIONS_READABLE:
        raise UnknownWireVersion(version)
    try:
        return [bytes(raw) for raw in _split_decoder.decode(data)]
    except _UNREADABLE as error:
        raise Rejected("unreadable-entry", str(error)) from None


def decode_record(raw: bytes) -> Order:
    """One order. Raises Rejected when it can't be read."""
    try:
        return _record_decoder.decode(raw)
    except _UNREADABLE as error:
        raise Rejected("unreadable-record", str(error)) from None


def hash_body(body: bytes) -> bytes:
    """16 bytes that stand for a body as the client sent it."""
    return blake2b(body, digest_size=16).digest()


def hash_key(tenant: int, key: bytes, index: int | None = None) -> bytes:
    """16 bytes that stand for (tenant, Idempotency-Key); record `index` of a batch under one key is K#i."""
    hashed = blake2b(key, digest_size=16, key=tenant.to_bytes(4, "big"))
    if index is not None:
        hashed.update(b"#%d" % index)
    return hashed.digest()


def shard_of(digest: bytes, shards: int) -> int:
    """Shard of a hashed key or of a client's hashed order id; the same in every process and release."""
    return int.from_bytes(digest[:8], "big") % shards


def shard_of_client_id(order_id: bytes, shards: int) -> int:
    """Shard of an order id that a client brought."""
    return shard_of(blake2b(order_id, digest_size=16).digest(), shards)
