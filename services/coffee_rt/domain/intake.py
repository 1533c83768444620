"""JSON of one order, as clients send it -> an Order. Pure; the bounds are those of `orders`.

Money and its exactness: `price` stays the text the client wrote until parse_minor has read it. Every
refusal is a Rejected that names its place. Texts and prices repeat enormously in a café, so what passed its
check once is remembered in small bounded tables; that is most of the speed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any

import msgspec

from coffee_rt.domain import ids, orders
from coffee_rt.domain.json_text import (
    check_encoding,
    check_no_duplicates,
    pointer_part,
    reject_decode,
)
from coffee_rt.domain.money import parse_minor
from coffee_rt.domain.orders import Order, check_text
from coffee_rt.domain.times import check_ordered_at, parse_instant
from coffee_rt.errors import Rejected

REMEMBERED_MAX = 8192
"""Texts or prices remembered as checked; full, the table starts anew. Costs about 1 MB."""
_PRICE_REMEMBERED_BYTES_MAX = 24
_QUOTE = ord('"')

_PRICE_SCHEMA = {
    "anyOf": [{"type": "string", "pattern": r"^[0-9]{1,16}(\.[0-9]{1,16})?$"}, {"type": "number"}],
    "description": "Unit price, greater than zero, exact: a decimal string or number without exponent.",
    "examples": ["4.50"],
}
_ATTRIBUTES_SCHEMA = {
    "type": ["object", "null"],
    "description": f"Anything else worth keeping: at most {orders.ATTRIBUTES_MAX} names, "
    f"{orders.ATTRIBUTES_BYTES_MAX} bytes as JSON.",
}


def _meta(description: str, **schema: Any) -> msgspec.Meta:
    return msgspec.Meta(description=description, extra_json_schema=schema or None)


class IncomingOrder(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """An order to be placed. An optional field that is null counts as absent."""

    store: Annotated[str, _meta("Where it was ordered.", maxLength=orders.DIMENSION_BYTES_MAX)]
    drink: Annotated[str, _meta("What was ordered.", maxLength=orders.DIMENSION_BYTES_MAX)]
    price: Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema=_PRICE_SCHEMA)]
    quantity: Annotated[
        int | None,
        _meta("How many; 1 when absent.", minimum=1, maximum=orders.QUANTITY_MAX, default=1),
    ] = None
    ordered_at: Annotated[
        str | None, _meta("When it was ordered, with offset; now when absent.", format="date-time")
    ] = None
    timestamp: Annotated[str | None, _meta("Another name of ordered_at.", format="date-time")] = (
        None
    )
    order_id: Annotated[
        str | None,
        _meta(
            "The client's own UUIDv7, of the last 24 hours; made here when absent.", format="uuid"
        ),
    ] = None
    customer_id: Annotated[
        str | None, _meta("Who ordered.", maxLength=orders.CUSTOMER_ID_BYTES_MAX)
    ] = None
    note: Annotated[str | None, _meta("Free text.", maxLength=orders.NOTE_BYTES_MAX)] = None
    attributes: Annotated[
        dict[str, Any] | None, msgspec.Meta(extra_json_schema=_ATTRIBUTES_SCHEMA)
    ] = None


_decode = msgspec.json.Decoder(IncomingOrder).decode
_decode_lines = msgspec.json.Decoder(IncomingOrder).decode_lines
_decode_text = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode

_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode_order(body: bytes) -> IncomingOrder:
    """The fields of one JSON object. Raises Rejected."""
    try:
        incoming = _decode(body)
    except _DECODE_ERRORS as error:
        check_encoding(body)
        reject_decode(error)
    # In valid JSON without backslashes every key and every text brings two quotes, so a key given twice
    # shows as quotes that the fields don't account for. Only then is the exact, slow test needed.
    quotes = body.count(b'"') - (12 if bytes(incoming.price)[0] == _QUOTE else 10)
    if incoming.quantity is not None:
        quotes -= 2
    if incoming.ordered_at is not None:
        quotes -= 4
    if (quotes and quotes != _quotes_of_rare(incoming)) or b"\\" in body:
        check_no_duplicates(body)
    return incoming


def _quotes_of_rare(incoming: IncomingOrder) -> int:
    """Quotes of the fields that few orders have; -1 where that can't be said cheaply."""
    if incoming.attributes is not None:
        return -1
    rare = (incoming.timestamp, incoming.order_id, incoming.customer_id, incoming.note)
    return 4 * sum(text is not None for text in rare)


def decode_orders(texts: Sequence[bytes]) -> list[IncomingOrder] | None:
    """As decode_order for each text, at a third of its cost; None where one of them, good or bad, needs a
    look of its own. Texts without line breaks inside, or each a JSON value already."""
    joined = b"\n".join(texts)
    if b"\r" in joined:
        joined = joined.replace(b"\r\n", b"\n")
    if b"\\" in joined:
        return None
    try:
        incoming = _decode_lines(joined)
    except _DECODE_ERRORS:
        return None
    # The decoder also takes an object over two lines, or two in one. Inside a value no bracket closes and
    # opens around a bare line break, so here each break stands between two objects.
    if len(incoming) != len(texts) or joined.count(b"}\n{") != len(texts) - 1:
        return None
    # As in decode_order: no object has fewer quotes than its fields account for, so the sum tells of all.
    price_texts = joined.count(b'"price":"') + joined.count(b'"price": "')
    quotes = 10 * len(texts) + 2 * price_texts
    for order in incoming:
        if order.quantity is not None:
            quotes += 2
        if order.ordered_at is not None:
            quotes += 4
    quotes = joined.count(b'"') - quotes
    if quotes and (
        any(order.attributes is not None for order in incoming)
        or quotes != sum(map(_quotes_of_rare, incoming))
    ):
        return None
    return incoming


class Catalogue:
    """The stores and drinks that are taken; None takes any."""

    __slots__ = ("drinks", "stores")

    def __init__(
        self, stores: Collection[str] | None = None, drinks: Collection[str] | None = None
    ) -> None:
        self.stores = None if stores is None else frozenset(stores)
        self.drinks = None if drinks is None else frozenset(drinks)


class Intake:
    """Builds orders for one process. Its tables are not locked: one thread only.

    `is_utc_assumed`: take an instant without offset as UTC (compatibility routes do).
    """

    def __init__(
        self,
        decimals: int,
        catalogue: Catalogue | None = None,
        *,
        ordered_age_seconds_max: int = orders.ORDERED_AGE_SECONDS_MAX,
        is_utc_assumed: bool = False,
    ) -> None:
        self._decimals = decimals
        self._catalogue = catalogue or Catalogue()
        self._ahead_us = orders.ORDERED_AHEAD_SECONDS_MAX * 1_000_000
        self._age_seconds_max = min(ordered_age_seconds_max, orders.ORDERED_AGE_SECONDS_MAX)
        self._age_us = self._age_seconds_max * 1_000_000
        self._is_utc_assumed = is_utc_assumed
        self._stores: set[str] = set()
        self._drinks: set[str] = set()
        self._prices: dict[bytes, int] = {}

    def client_order_id(self, incoming: IncomingOrder, now_ms: int) -> ids.OrderId | None:
        """The id a client brought, checked; None when there is none."""
        if incoming.order_id is None:
            return None
        order_id = ids.parse_id(incoming.order_id)
        ids.check_client_id_time(order_id, now_ms)
        return order_id

    def order(
        self,
        incoming: IncomingOrder,
        order_id: bytes,
        *,
        tenant: int,
        accepted_at_us: int,
        body_hash: bytes,
        key_hash: bytes | None = None,
    ) -> Order:
        """The order itself. Raises Rejected."""
        store, drink = incoming.store, incoming.drink
        if store not in self._stores:
            self._check_name(store, self._stores, self._catalogue.stores, "/store")
        if drink not in self._drinks:
            self._check_name(drink, self._drinks, self._catalogue.drinks, "/drink")
        price = bytes(incoming.price)
        minor = self._prices.get(price) or self._price(price, "/price")
        quantity = incoming.quantity
        if quantity is None:
            quantity = 1
        elif not 0 < quantity <= orders.QUANTITY_MAX:
            raise Rejected(
                "bad-quantity",
                f"must be a whole number from 1 to {orders.QUANTITY_MAX}",
                "/quantity",
            )
        at, at_place = incoming.ordered_at, "/ordered_at"
        if incoming.timestamp is not None:
            if at is not None:
                raise Rejected("two-times", "is another name of ordered_at: give one", "/timestamp")
            at, at_place = incoming.timestamp, "/timestamp"
        customer_id, note, attributes = incoming.customer_id, incoming.note, None
        if customer_id is not None:
            check_text(customer_id, orders.CUSTOMER_ID_BYTES_MAX, "/customer_id")
        if note is not None:
            check_text(note, orders.NOTE_BYTES_MAX, "/note", empty_ok=True)
        if incoming.attributes is not None:
            attributes = _attributes(incoming.attributes, "/attributes")
        return Order(
            order_id,
            tenant,
            store,
            drink,
            minor,
            quantity,
            accepted_at_us if at is None else self._instant(at, accepted_at_us, at_place),
            accepted_at_us,
            body_hash,
            key_hash,
            customer_id,
            note,
            attributes,
        )

    def _instant(self, text: str, now_us: int, place: str) -> int:
        at_us = parse_instant(text, place, is_utc_assumed=self._is_utc_assumed)
        if not now_us - self._age_us <= at_us <= now_us + self._ahead_us:
            check_ordered_at(
                at_us, now_us, orders.ORDERED_AHEAD_SECONDS_MAX, self._age_seconds_max, place
            )
        return at_us

    def _check_name(
        self, text: str, checked: set[str], taken: frozenset[str] | None, place: str
    ) -> None:
        check_text(text, orders.DIMENSION_BYTES_MAX, place)
        if taken is not None and text not in taken:
            raise Rejected("not-in-catalogue", "is not in the catalogue", place)
        if len(checked) >= REMEMBERED_MAX:
            checked.clear()
        checked.add(text)

    def _price(self, raw: bytes, place: str) -> int:
        text = raw
        if raw[0] == _QUOTE:
            # A backslash could hide digits; the decoder knows them, and the result is ASCII or refused.
            text = raw[1:-1] if b"\\" not in raw else _decode_text(raw).encode(errors="replace")
        minor = parse_minor(text, self._decimals, place)
        if len(raw) <= _PRICE_REMEMBERED_BYTES_MAX:
            if len(self._prices) >= REMEMBERED_MAX:
                self._prices.clear()
            self._prices[raw] = minor
        return minor


def _attributes(given: dict[str, Any], place: str) -> bytes:
    """The attributes as compact JSON: encoded again, so only what PostgreSQL can hold remains."""
    if len(given) > orders.ATTRIBUTES_MAX:
        raise Rejected("too-many", f"must have at most {orders.ATTRIBUTES_MAX} names", place)
    for name, value in given.items():
        if name.startswith("$") or not name:
            raise Rejected("bad-attributes", "names must not be empty or begin with $", place)
        _check_value(value, f"{place}/{pointer_part(name)}", depth=1)
    try:
        encoded = _encode(given)
    except UnicodeEncodeError:
        raise Rejected("bad-text", "must not contain lone surrogates", place) from None
    if b"\\u0000" in encoded:
        raise Rejected("bad-text", "must not contain NUL", place)
    if len(encoded) > orders.ATTRIBUTES_BYTES_MAX:
        raise Rejected("too-long", _ATTRIBUTES_TOO_LONG, place)
    return encoded


_ATTRIBUTES_TOO_LONG = f"must be at most {orders.ATTRIBUTES_BYTES_MAX} bytes as JSON"


def _check_value(value: object, place: str, depth: int) -> None:
    if isinstance(value, (dict, list)):
        if depth >= orders.ATTRIBUTES_DEPTH_MAX:
            raise orders.too_deep(place)
        for part in value.values() if isinstance(value, dict) else value:
            _check_value(part, place, depth + 1)
    elif isinstance(value, int) and value.bit_length() > 63:
        raise Rejected("bad-number", "must be a whole number of at most 63 bits", place)
