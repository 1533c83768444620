"""A bad record becomes a dead letter, and nothing else in its entry is lost."""

from __future__ import annotations

from typing import Any

import pytest

from coffee_rt.domain.ids import IdMinter
from coffee_rt.domain.orders import Order
from coffee_rt.domain.wire import UnknownWireVersion, encode_record, join_records
from coffee_rt.streams.contract import Delivery, EntryId
from coffee_rt.worker.decoding import EntryDecoder
from tests.builders import NOW_MS, an_order


def a_delivery(bodies: list[bytes], **changes: Any) -> Delivery:
    fields: dict[str, Any] = {
        "shard": 1,
        "entry_id": EntryId(NOW_MS, 3),
        "version": 1,
        "batch_id": b"\x01" * 16,
        "counter": 100,
        "records": len(bodies),
        "data": join_records(bodies),
        "attempts": 1,
        "reader_epoch": 1,
    }
    return Delivery(**fields | changes)


def decoder() -> EntryDecoder:
    return EntryDecoder(retention_days=400)


def broken(**changes: Any) -> bytes:
    order = an_order()
    fields = {name: getattr(order, name) for name in Order.__struct_fields__} | changes
    return encode_record(Order(**fields))


def test_good_entry_becomes_its_orders() -> None:
    orders = [an_order(), an_order(note="hot", attributes=b'{"size":"L"}', customer_id="c1")]
    write = decoder().decode(a_delivery([encode_record(order) for order in orders]), NOW_MS)
    assert list(write.orders) == orders
    assert (write.shard, write.entry, write.counter, write.records) == (1, (NOW_MS, 3), 100, 2)
    assert not write.dead


BAD: dict[str, bytes] = {
    "no record": b"\xc0",
    "price": broken(price_minor=0),
    "quantity": broken(quantity=10_001),
    "store": broken(store="x" * 129),
    "drink": broken(drink="a\x00b"),
    "tenant": broken(tenant=-1),
    "order id": broken(order_id=b"short"),
    "attributes": broken(attributes=b"[]"),
    "note": broken(note="n" * 1025),
    "time": broken(ordered_at_us=-5),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_record_alone_becomes_a_dead_letter(bad: bytes) -> None:
    good = [an_order(), an_order()]
    records = [encode_record(good[0]), bad, encode_record(good[1])]
    write = decoder().decode(a_delivery(records), NOW_MS)
    assert list(write.orders) == good
    [dead] = write.dead
    assert (dead.index, dead.raw) == (1, bad)
    assert dead.code
    assert dead.detail


def test_names_checked_before_are_still_checked_with_other_fields() -> None:
    one = decoder()
    one.decode(a_delivery([encode_record(an_order())]), NOW_MS)
    write = one.decode(a_delivery([broken(quantity=0)]), NOW_MS)
    assert len(write.dead) == 1


@pytest.mark.parametrize("days", [-401, 3])
def test_order_id_beyond_every_partition_is_a_dead_letter(days: int) -> None:
    order = an_order(order_id=IdMinter().mint(NOW_MS + days * 86_400_000))
    write = decoder().decode(a_delivery([encode_record(order)]), NOW_MS)
    assert [dead.code for dead in write.dead] == ["order-id-time"]
    assert write.dead[0].order_id == order.order_id


def test_unreadable_frame_is_one_dead_letter_with_its_bytes() -> None:
    write = decoder().decode(a_delivery([], data=b"\xdd\x00", records=3), NOW_MS)
    assert [dead.raw for dead in write.dead] == [b"\xdd\x00"]
    assert write.records == 3
    assert not write.orders


def test_entry_that_miscounts_its_records_is_dead_as_a_whole() -> None:
    write = decoder().decode(a_delivery([encode_record(an_order())], records=2), NOW_MS)
    assert [dead.code for dead in write.dead] == ["miscounted-entry"]


def test_entry_of_a_stranger_is_kept_as_it_was() -> None:
    delivery = a_delivery(
        [], fault="has no version", raw={b"hello": b"world"}, records=0, data=b"", counter=0
    )
    write = decoder().decode(delivery, NOW_MS)
    assert [dead.code for dead in write.dead] == ["foreign-entry"]
    assert b"world" in write.dead[0].raw


def test_gap_entry_has_no_records() -> None:
    write = decoder().decode(a_delivery([], gap=(10, 20), records=0, data=b""), NOW_MS)
    assert write.gap == (10, 20)
    assert not write.orders
    assert not write.dead


def test_unknown_wire_version_is_no_dead_letter() -> None:
    with pytest.raises(UnknownWireVersion):
        decoder().decode(a_delivery([b"\xc0"], version=99), NOW_MS)


def test_parked_entry_keeps_every_record_raw() -> None:
    records = [encode_record(an_order()), encode_record(an_order())]
    write = decoder().park(a_delivery(records), "fails alone")
    assert [dead.raw for dead in write.dead] == records
    assert not write.orders


def test_parked_records_are_still_their_tenants_under_the_ids_that_were_answered() -> None:
    order = an_order(tenant=7)
    unreadable = b"\x91\x01"
    write = decoder().park(a_delivery([encode_record(order), unreadable]), "fails alone")
    assert [dead.code for dead in write.dead] == ["unstorable-entry"] * 2
    assert [dead.tenant for dead in write.dead] == [7, 0]
    assert [dead.order_id for dead in write.dead] == [order.order_id, None]
