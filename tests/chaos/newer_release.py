"""Run a process of the product as a release that is one wire version ahead: `python -m tests.chaos.newer_release
COMMAND`.

It writes version 2 and reads 1 and 2. There is no such version yet; this one keeps docs/wire.md's rules for a new one
and is otherwise as different as may be: a record is its id and a map, which a reader of version 1 would take for a
broken record if it did not heed the tag.
"""

from __future__ import annotations

import sys

import msgspec

from coffee_rt.domain import wire
from coffee_rt.domain.orders import Order

VERSION = wire.WIRE_VERSION + 1
_TWO_ELEMENTS = b"\x92"

_encode = msgspec.msgpack.encode
_split_first = wire.split_batch
_decode_first = wire.decode_record
_decode_all_first = wire.decode_batch


def encode_record(order: Order) -> bytes:
    fields = {name: getattr(order, name) for name in order.__struct_fields__[1:]}
    return _encode([order.order_id, fields])


def decode_record(raw: bytes) -> Order:
    if not raw.startswith(_TWO_ELEMENTS):
        return _decode_first(raw)
    order_id, fields = msgspec.msgpack.decode(raw)
    return Order(order_id, **fields)


def split_batch(version: int, data: bytes) -> list[bytes]:
    # The frame is the same in both.
    return _split_first(1 if version == VERSION else version, data)


def decode_batch(version: int, data: bytes) -> list[Order]:
    if version != VERSION:
        return _decode_all_first(version, data)
    return [decode_record(record) for record in split_batch(version, data)]


def main() -> None:
    new = {
        "WIRE_VERSION": VERSION,
        "WIRE_VERSIONS_READABLE": wire.WIRE_VERSIONS_READABLE | {VERSION},
        "encode_record": encode_record,
        "decode_record": decode_record,
        "split_batch": split_batch,
        "decode_batch": decode_batch,
    }
    for name, value in new.items():
        setattr(wire, name, value)
    sys.argv = ["coffee-rt", *sys.argv[1:]]
    # Only now: other modules take these names when they are imported.
    from coffee_rt.cli import main as run

    run()


if __name__ == "__main__":
    main()
