"""Every example of docs/wire.md is what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec

from coffee_rt.domain.ids import parse_id
from coffee_rt.domain.orders import Order
from coffee_rt.domain.wire import (
    WIRE_VERSION,
    decode_batch,
    encode_record,
    hash_key,
    join_records,
    shard_of,
)
from coffee_rt.streams.contract import Append, EntryId, Position
from coffee_rt.streams.entries import parse_entry
from coffee_rt.streams.flush import key_value
from coffee_rt.streams.shards import LogKeys, tag

PAGE = (Path(__file__).parents[2] / "docs" / "wire.md").read_text()
BATCH_ID = parse_id("019a7a7a-0c01-7000-8000-000000000002")


def example(name: str) -> str:
    found = re.search(rf"```\w+ {name}\n(.*?)```", PAGE, re.DOTALL)
    assert found, f"docs/wire.md has no example named {name}"
    return found[1]


def hex_example(name: str) -> bytes:
    return bytes.fromhex("".join(example(name).split()))


def json_example(name: str) -> Any:
    return json.loads(example(name))


def the_order() -> Order:
    told = json_example("order")
    told["order_id"] = parse_id(told["order_id"])
    told["body_hash"] = bytes.fromhex(told["body_hash"])
    told["attributes"] = told["attributes"].encode()
    return Order(**told)


def test_the_record_is_the_orders() -> None:
    assert encode_record(the_order()) == hex_example("record")


def test_the_elements_are_the_fields_of_an_order_in_their_order() -> None:
    rows = re.findall(r"^\| (\d+) \| ([a-z ]+)", PAGE, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(len(Order.__struct_fields__)))
    words = {
        "order_id": "order id",
        "price_minor": "unit price",
        "body_hash": "hash of the request",
    }
    for (_, text), field in zip(rows, Order.__struct_fields__, strict=True):
        expected = words.get(field, field.removesuffix("_us").replace("_", " "))
        assert text.startswith(expected) or field == "key_hash"


def test_the_data_is_one_array_of_records() -> None:
    data = hex_example("data")
    assert data == join_records([hex_example("record")])
    assert decode_batch(WIRE_VERSION, data) == [the_order()]
    assert len(msgspec.msgpack.decode(data)[0]) == len(Order.__struct_fields__)


def test_the_gap_is_read_as_one() -> None:
    fields = {name.encode(): text.encode() for name, text in json_example("gap").items()}
    entry = parse_entry({**fields, b"b": BATCH_ID})
    assert (entry.gap, entry.counter, entry.records, entry.fault) == ((4, 10), 10, 0, None)


def test_the_value_of_a_key() -> None:
    order = the_order()
    append = Append(order.order_id, b"", order.body_hash)
    assert key_value(append, BATCH_ID, EntryId(1763000000123, 4)) == hex_example("value")


def test_the_tags_and_key_names() -> None:
    assert json_example("tags") == [tag(shard, 4) for shard in range(4)]
    keys = LogKeys("coffee-rt", 4)
    for names in (keys.streams, keys.counters, keys.marks):
        assert f"`{names[0].decode()}`" in PAGE
    for names in (keys.keys, keys.client_ids):
        assert f"`{names[0].decode()}<32 hex>`" in PAGE
    for name in (keys.groups, keys.install):
        assert f"`{name.decode()}`" in PAGE


def test_the_shard_of_a_key() -> None:
    told = json_example("key")
    hashed = hash_key(told["tenant"], told["key"].encode())
    assert hashed.hex() == told["hash"]
    assert shard_of(hashed, 4) == told["shard"]


def test_the_position() -> None:
    position = Position.parse(example("position").strip())
    assert position == Position(2, EntryId(1763000000123, 4), BATCH_ID)
    assert str(position) == example("position").strip()
