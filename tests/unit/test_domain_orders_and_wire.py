"""Records survive the wire; entries are untrusted; bad ones are told from their neighbours."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coffee_rt.domain import wire
from coffee_rt.domain.orders import Order, check_stored_order, check_text
from coffee_rt.errors import Rejected
from tests.builders import an_order

texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20)


@given(
    st.lists(st.tuples(texts, texts, st.integers(1, 10**12), st.integers(1, 10_000)), max_size=20)
)
def test_a_batch_is_read_back_as_it_was_written(
    fields: list[tuple[str, str, int, int]],
) -> None:
    orders = [
        an_order(store=store, drink=drink, price_minor=price, quantity=quantity)
        for store, drink, price, quantity in fields
    ]
    records = [wire.encode_record(order) for order in orders]
    data = wire.join_records(records)
    assert wire.decode_batch(1, data) == orders
    assert wire.split_batch(1, data) == records


def test_an_unknown_version_is_neither_read_nor_rejected() -> None:
    data = wire.join_records([wire.encode_record(an_order())])
    for read in (wire.decode_batch, wire.split_batch):
        with pytest.raises(wire.UnknownWireVersion):
            read(99, data)


def test_one_unreadable_record_can_be_told_from_its_neighbours() -> None:
    good = an_order()
    data = wire.join_records([wire.encode_record(good), msgspec.msgpack.encode({"no": "order"})])
    with pytest.raises(Rejected):
        wire.decode_batch(1, data)
    first, second = wire.split_batch(1, data)
    assert wire.decode_record(first) == good
    with pytest.raises(Rejected) as caught:
        wire.decode_record(second)
    assert caught.value.code == "unreadable-record"


@given(st.binary(max_size=200))
def test_random_bytes_are_rejected_not_crashed_on(data: bytes) -> None:
    try:
        orders = wire.decode_batch(1, data)
    except Rejected:
        return
    for order in orders:
        try:
            check_stored_order(order)
        except Rejected:
            continue


def test_records_with_fields_of_a_newer_release_are_read() -> None:
    order = an_order()
    fields = [*msgspec.structs.astuple(order), "a field of tomorrow"]
    assert wire.decode_record(msgspec.msgpack.encode(fields)) == order


def test_records_of_an_older_release_without_the_last_fields_are_read() -> None:
    order = an_order()
    fields = list(msgspec.structs.astuple(order))[:9]
    assert wire.decode_record(msgspec.msgpack.encode(fields)) == order


def test_every_record_of_a_batch_has_a_key_of_its_own() -> None:
    hashes = {wire.hash_key(0, b"k", index) for index in (None, 0, 1, 10, 11)}
    assert len(hashes) == 5
    assert wire.hash_key(1, b"k") != wire.hash_key(0, b"k")


def test_a_key_always_has_the_same_shard() -> None:
    # Pinned: a release that answered otherwise would not find yesterday's keys.
    assert wire.hash_key(0, b"key-0").hex() == "852925e160756f0479f4b28e56bbe13e"
    assert [wire.shard_of(wire.hash_key(0, b"key-%d" % n), 4) for n in range(6)] == [
        0,
        0,
        2,
        0,
        3,
        2,
    ]


def altered(**changes: object) -> Order:
    return msgspec.structs.replace(an_order(), **changes)


@pytest.mark.parametrize(
    ("order", "place"),
    [
        (altered(order_id=b"short"), "/order_id"),
        (altered(order_id=bytes(16)), "/order_id"),
        (altered(tenant=-1), "/tenant"),
        (altered(store=""), "/store"),
        (altered(store="a\x00b"), "/store"),
        (altered(store="\ud800"), "/store"),
        (altered(drink="é" * 65), "/drink"),
        (altered(price_minor=0), "/price"),
        (altered(price_minor=10**12 + 1), "/price"),
        (altered(quantity=0), "/quantity"),
        (altered(quantity=10_001), "/quantity"),
        (altered(ordered_at_us=0), "/ordered_at"),
        (altered(ordered_at_us=2**62), "/ordered_at"),
        (altered(accepted_at_us=-1), "/accepted_at"),
        (altered(customer_id="x" * 129), "/customer_id"),
        (altered(note="x" * 1025), "/note"),
        (altered(attributes=b"[1]"), "/attributes"),
        (altered(attributes=b"{"), "/attributes"),
        (altered(attributes=b'{"a":"\\u0000"}'), "/attributes"),
        (altered(attributes=b'{"a":"' + b"x" * 2048 + b'"}'), "/attributes"),
    ],
)
def test_entries_are_untrusted(order: Order, place: str) -> None:
    with pytest.raises(Rejected) as caught:
        check_stored_order(order)
    assert caught.value.place == place


def test_a_good_stored_order_passes() -> None:
    check_stored_order(an_order(note="", customer_id="c", attributes=b'{"channel":"kiosk"}'))


def test_text_limits_count_bytes() -> None:
    assert check_text("é" * 64, 128, "/store") == "é" * 64
    with pytest.raises(Rejected, match="128 bytes"):
        check_text("é" * 64 + "e", 128, "/store")
