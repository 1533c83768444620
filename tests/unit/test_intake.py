"""Bad input of an order: each gets a clear error that names its place. Good input keeps its exact money."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coffee_rt.domain.ids import IdMinter, format_id
from coffee_rt.domain.intake import Catalogue, Intake, decode_order, decode_orders
from coffee_rt.domain.orders import Order, check_stored_order
from coffee_rt.errors import Rejected

NOW_US = 1_763_000_000_000_000
NOW_TEXT = "2025-11-13T02:13:20Z"
ID = IdMinter().mint(NOW_US // 1000)


def body(**changes: object) -> bytes:
    fields = {"store": "uptown", "drink": "latte", "price": "4.50"} | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


def taken(text: bytes, **options: object) -> Order:
    intake = Intake(2, **options)  # type: ignore[arg-type]
    incoming = decode_order(text)
    order_id = intake.client_order_id(incoming, NOW_US // 1000) or ID
    order = intake.order(incoming, order_id, tenant=7, accepted_at_us=NOW_US, body_hash=bytes(16))
    check_stored_order(order)
    return order


def refused(text: bytes, **options: object) -> tuple[str, str]:
    with pytest.raises(Rejected) as caught:
        taken(text, **options)
    assert caught.value.detail
    return caught.value.code, caught.value.place


def test_a_plain_order_is_taken_with_its_defaults() -> None:
    order = taken(body())
    assert (order.store, order.drink, order.price_minor, order.quantity) == (
        "uptown",
        "latte",
        450,
        1,
    )
    assert order.ordered_at_us == order.accepted_at_us == NOW_US
    assert (order.tenant, order.customer_id, order.note, order.attributes) == (7, None, None, None)


def test_every_optional_field_is_kept() -> None:
    order = taken(
        body(
            quantity=3,
            ordered_at=NOW_TEXT,
            customer_id="c-1",
            note='say "hi"\n',
            attributes={"size": "L", "shots": 2, "milk": ["oat", None, True, 0.5]},
        )
    )
    assert (order.quantity, order.ordered_at_us, order.customer_id) == (3, NOW_US, "c-1")
    assert order.note == 'say "hi"\n'
    assert json.loads(order.attributes or b"")["milk"] == ["oat", None, True, 0.5]


@pytest.mark.parametrize(
    ("price", "minor"),
    [(b"4.5", 450), (b'"4.5"', 450), (b"4", 400), (b"0.01", 1), (b'"4.500"', 450), (b"0.10", 10)],
)
def test_price_is_read_exactly_from_text_or_number(price: bytes, minor: int) -> None:
    assert taken(body(price=0).replace(b"0", price, 1)).price_minor == minor


@pytest.mark.parametrize(
    "price",
    [
        b"NaN", b"Infinity", b"1e400", b"-0", b"0", b"0.00", b"-1", b"9007199254740993e0",
        b"9223372036854775808", b"4.505", b"1" * 1_000_000, b"null", b"true", b"[]", b"{}", b'""',
        b'"NaN"', b'"1e2"', b'"-0"', b'" 4.50"', b'"4,50"', '"４.50"'.encode(), b'"0x10"',
        b'"\\u0034\\ud800"',
    ],
)  # fmt: skip
def test_price_that_is_no_exact_positive_amount_is_refused(price: bytes) -> None:
    code, place = refused(body(price=0).replace(b"0", price, 1))
    if price in (b"NaN", b"Infinity") or b"\\ud800" in price:
        assert code in ("bad-json", "bad-price")
    else:
        assert (code, place) == ("bad-price", "/price")


@pytest.mark.parametrize("quantity", [0, -1, 10_001, 2**53 + 1, 2**63, 2**64])
def test_quantity_out_of_bounds_is_refused(quantity: int) -> None:
    assert refused(body(quantity=quantity)) == ("bad-quantity", "/quantity")


@pytest.mark.parametrize("quantity", [b"1.0", b"1e400", b'"1"', b"true", b"[1]"])
def test_quantity_that_is_no_whole_number_is_refused(quantity: bytes) -> None:
    code, place = refused(body(quantity=0).replace(b"0}", quantity + b"}"))
    assert (code, place) == ("wrong-type", "/quantity")


@pytest.mark.parametrize("field", ["store", "drink"])
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty-text"),
        (" \t", "empty-text"),
        ("a\x00b", "bad-text"),
        ("x" * 129, "too-long"),
        ("é" * 65, "too-long"),
        ("x" * 1_000_000, "too-long"),
    ],
)
def test_names_that_no_view_can_hold_are_refused(field: str, text: str, code: str) -> None:
    assert refused(body(**{field: text})) == (code, f"/{field}")


@pytest.mark.parametrize("escape", [b"\\ud800", b"\\udc00", b"\\udc00\\ud800"])
def test_lone_surrogates_are_refused(escape: bytes) -> None:
    code, _place = refused(body(store="X").replace(b"X", escape))
    assert code in ("bad-json", "bad-text")


def test_long_notes_and_customer_ids_are_refused() -> None:
    assert refused(body(note="x" * 1025)) == ("too-long", "/note")
    assert refused(body(customer_id="x" * 129)) == ("too-long", "/customer_id")
    assert refused(body(note="\x00")) == ("bad-text", "/note")


@pytest.mark.parametrize("field", ["store", "drink", "price"])
def test_required_fields_are_missed_by_name(field: str) -> None:
    assert refused(body(**{field: ...})) == ("missing-field", f"/{field}")
    assert refused(body(**{field: None}))[1] == f"/{field}"


def test_null_counts_as_absent_only_for_optional_fields() -> None:
    optional = dict.fromkeys(("quantity", "ordered_at", "note", "customer_id", "attributes"))
    assert taken(body(**optional)).quantity == 1


def test_unknown_fields_are_refused_by_name() -> None:
    assert refused(body(prize="1")) == ("unknown-field", "/prize")


@pytest.mark.parametrize(
    "text",
    [
        b'{"store":"a","store":"b","drink":"c","price":1}',
        b'{"store":"a","drink":"c","price":1,"price":2}',
        b'{"store":"a","drink":"c","price":"1","price":2}',
        b'{"store":"a","drink":"c","price":1,"price":"2"}',
        b'{"store":"a","drink":"c","price":1,"quantity":1,"quantity":null}',
        b'{"store":"a","drink":"c","price":1,"note":null,"note":null}',
        b'{"store":"a","drink":"c","price":1,"note":"x","note":"y"}',
        b'{"store":"a","\\u0073tore":"b","drink":"c","price":1}',
        b'{"store":"a","drink":"c","price":1,"attributes":{"x":1,"x":2}}',
        b'{"store":"a","drink":"c","price":1,"attributes":{"y":{"x":1,"x":2}}}',
    ],
)
def test_a_key_given_twice_is_refused(text: bytes) -> None:
    assert refused(text)[0] == "duplicate-key"


_FIELDS = st.fixed_dictionaries(
    {"store": st.text(min_size=1), "drink": st.text(min_size=1), "price": st.just("1")},
    optional={
        "quantity": st.integers(1, 9) | st.none(),
        "note": st.text() | st.none(),
        "customer_id": st.text(),
        "timestamp": st.text(),
        "order_id": st.text(),
        "attributes": st.dictionaries(st.text(), st.text()),
    },
)


@given(fields=_FIELDS, repeated=st.sampled_from(["store", "price", "note", "quantity"]))
def test_every_repeated_key_is_found_and_no_other_refused(
    fields: dict[str, object], repeated: str
) -> None:
    plain = msgspec.json.encode(fields)
    decode_order(plain)
    if repeated in fields:
        again = msgspec.json.encode({repeated: fields[repeated]})
        with pytest.raises(Rejected, match="duplicate-key"):
            decode_order(plain[:-1] + b"," + again[1:])


_LINES = [
    body(),
    body(price=4, quantity=2, ordered_at=NOW_TEXT),
    body(note="n", customer_id="c", timestamp=NOW_TEXT, order_id=format_id(ID)),
    body(attributes={"a": [{}]}),
    body(attributes={"price": "1"}),
    body(note=None),
    body(note="back\\slash"),
    body() + b"\r",
    b" " + body() + b" ",
    body()[:-1] + b',"price":"4.50"}',
    body()[:-1] + b',"quantity":1,"quantity":1}',
    body() + body(),
    body() + b" " + body(),
    b'{"store":"uptown","drink":"latte",',
    b'"price":"4.50"}',
    b'{"store":"uptown","drink":"latte","price":1,"attributes":{"a":[{}',
    b"{}]}}",
    b"{}",
    b"0",
]


@given(st.lists(st.sampled_from(_LINES), min_size=1, max_size=6))
def test_many_lines_at_once_are_taken_only_as_each_would_be_alone(lines: list[bytes]) -> None:
    decoded = decode_orders(lines)
    if decoded is not None:
        alone = [decode_order(line) for line in lines]
        assert [msgspec.structs.asdict(order) for order in decoded] == [
            msgspec.structs.asdict(order) for order in alone
        ]


@given(st.lists(st.sampled_from(_LINES[:3]), min_size=1), st.sampled_from([b"", b"\r"]))
def test_ordinary_lines_need_no_second_look(lines: list[bytes], end: bytes) -> None:
    decoded = decode_orders([line + end for line in lines])
    assert decoded is not None
    assert len(decoded) == len(lines)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "bad-json"),
        (b"null", "wrong-type"),
        (b"[]", "wrong-type"),
        (b'"x"', "wrong-type"),
        (body() + b"x", "bad-json"),
        (body() + body(), "bad-json"),
        (b"\xef\xbb\xbf" + body(), "bad-encoding"),
        (body().decode().encode("utf-16"), "bad-encoding"),
        (body().decode().encode("utf-16-le"), "bad-encoding"),
        (body().decode().encode("utf-32-be"), "bad-encoding"),
        (body(store="X").replace(b"X", b"\xff"), "bad-encoding"),
        (body(store="X").replace(b"X", b"\x01"), "bad-json"),
        (b"[" * 10_000 + b"]" * 10_000, "wrong-type"),
        (b'{"attributes":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001, "too-deep"),
        (b'{"price":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "too-deep"),
    ],
)
def test_what_is_no_json_object_in_utf8_is_refused(text: bytes, code: str) -> None:
    assert refused(text)[0] == code


@pytest.mark.parametrize(
    "at",
    ["2025-11-13T02:13:20Z", "2025-11-13t02:13:20.000z", "2025-11-13T03:13:20+01:00",
     "2025-11-12T12:13:20-14:00", "2025-11-13T16:13:20+14:00", "2025-11-13 02:13:20+00:00",
     "2025-11-13T02:13:20.000000999Z"],
)  # fmt: skip
def test_an_instant_with_any_offset_is_the_same_instant(at: str) -> None:
    assert taken(body(ordered_at=at.upper())).ordered_at_us == NOW_US
    assert taken(body(timestamp=at.upper())).ordered_at_us == NOW_US


@pytest.mark.parametrize(
    ("at", "code"),
    [
        ("2025-11-13T02:13:20", "bad-time"),
        ("2025-11-13", "bad-time"),
        ("2025-11-13T02:13:20+14:01", "bad-time"),
        ("2025-11-13T02:13:20-23:59", "bad-time"),
        ("0000-01-01T00:00:00Z", "bad-time"),
        ("0001-01-01T00:00:00Z", "time-too-old"),
        ("0001-01-01T00:00:00+14:00", "time-too-old"),
        ("9999-12-31T23:59:59Z", "time-ahead"),
        ("9999-12-31T23:59:59-14:00", "time-ahead"),
        ("10000-01-01T00:00:00Z", "bad-time"),
        ("2025-11-13T03:13:20Z", "time-ahead"),
        ("2015-11-13T02:13:20Z", "time-too-old"),
        ("2025-13-01T00:00:00Z", "bad-time"),
        ("2025-11-13T25:00:00Z", "bad-time"),
        ("tomorrow", "bad-time"),
        ("", "bad-time"),
        ("1763000000", "bad-time"),
        ("2025-11-13T02:13:20Z" + " " * 100, "bad-time"),
    ],
)
def test_instants_out_of_bounds_are_refused(at: str, code: str) -> None:
    assert refused(body(ordered_at=at)) == (code, "/ordered_at")
    assert refused(body(timestamp=at)) == (code, "/timestamp")


def test_both_names_of_the_time_at_once_are_refused() -> None:
    assert refused(body(ordered_at=NOW_TEXT, timestamp=NOW_TEXT)) == ("two-times", "/timestamp")


def test_a_time_without_offset_is_utc_only_where_that_was_promised() -> None:
    at = NOW_TEXT.removesuffix("Z")
    assert taken(body(timestamp=at), is_utc_assumed=True).ordered_at_us == NOW_US


def test_a_clients_order_id_must_be_a_recent_uuid_of_version_7() -> None:
    now_ms, minter = NOW_US // 1000, IdMinter()
    good = minter.mint(now_ms)
    assert taken(body(order_id=format_id(good))).order_id == good
    old, ahead = now_ms - 25 * 3_600_000, now_ms + 400_000
    for text, code in [
        (format_id(IdMinter().mint(old)), "order-id-too-old"),
        (format_id(IdMinter().mint(ahead)), "order-id-ahead"),
        ("6f1e7f0a-3d52-4c22-9d5a-0f7b1a0c9e11", "bad-order-id"),
        ("x", "bad-order-id"),
    ]:
        assert refused(body(order_id=text)) == (code, "/order_id")


def test_a_catalogue_closes_the_lists() -> None:
    catalogue = Catalogue(["uptown"], ["latte"])
    assert taken(body(), catalogue=catalogue).store == "uptown"
    assert refused(body(drink="tea"), catalogue=catalogue) == ("not-in-catalogue", "/drink")
    assert refused(body(store="moon"), catalogue=catalogue) == ("not-in-catalogue", "/store")


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ([], "wrong-type"),
        ("x", "wrong-type"),
        ({str(n): n for n in range(33)}, "too-many"),
        ({"x": "y" * 2048}, "too-long"),
        ({"x": "\x00"}, "bad-text"),
        ({"\x00": "x"}, "bad-text"),
        ({"x": 2**63}, "bad-number"),
        ({"x": [[[[1]]]]}, "too-deep"),
        ({"": 1}, "bad-attributes"),
    ],
)
def test_attributes_out_of_bounds_are_refused(attributes: object, code: str) -> None:
    got, place = refused(body(attributes=attributes))
    assert got == code
    assert place.startswith("/attributes")


def test_attributes_with_a_number_no_float_holds_are_refused() -> None:
    code, _place = refused(body(attributes={"x": 7}).replace(b"7", b"1e400"))
    assert code in ("bad-json", "wrong-type")


def test_remembered_names_and_prices_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coffee_rt.domain.intake.REMEMBERED_MAX", 10)
    intake = Intake(2)
    for number in range(1, 100):
        incoming = decode_order(body(store=f"s{number}", price=f"{number}.00"))
        order = intake.order(incoming, ID, tenant=0, accepted_at_us=NOW_US, body_hash=bytes(16))
        assert order.price_minor == number * 100
    assert len(intake._stores) <= 10
    assert len(intake._prices) <= 10


def test_many_ids_at_once_increase_and_carry_the_shard() -> None:
    from coffee_rt.domain.ids import id_shard, id_time_ms

    minter = IdMinter()
    first = minter.mint(1000, 3)
    minted = [first, *minter.mint_many(1000, 3, 5000), minter.mint(1000, 3)]
    assert minted == sorted(set(minted))
    assert {id_shard(order_id) for order_id in minted} == {3}
    assert {order_id[6] >> 4 for order_id in minted} == {7}
    assert {order_id[8] >> 6 for order_id in minted} == {2}
    assert max(map(id_time_ms, minted)) <= 1002
