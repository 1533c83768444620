"""What an order is: the event `OrderPlaced` as every module past the HTTP edge sees it.

`Order` is immutable, already checked, and small: it travels as one msgpack array (see wire). Text limits
are in bytes of UTF-8 because a view's key and a page of PostgreSQL count bytes.
"""

from __future__ import annotations

import msgspec

from coffee_rt.domain.ids import OrderId
from coffee_rt.errors import Rejected

DIMENSION_BYTES_MAX = 128
"""Stores and drinks become keys of views; longer ones would not fit an index row with all of them."""
NOTE_BYTES_MAX = 1024
CUSTOMER_ID_BYTES_MAX = 128
ATTRIBUTES_BYTES_MAX = 2048
ATTRIBUTES_MAX = 32
ATTRIBUTES_DEPTH_MAX = 4
QUANTITY_MAX = 10_000
ORDERED_AHEAD_SECONDS_MAX = 300
"""Tolerated clock error of a till. Further in the future is refused."""
ORDERED_AGE_SECONDS_MAX = 366 * 24 * 3600
"""Oldest event time taken; its view buckets must still be maintained."""

DEFAULT_TENANT = 0


class Order(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One accepted order. Times are Unix microseconds, UTC; money is minor units of the unit price.

    New fields are only ever appended, with a default: older readers ignore them, older entries lack them.
    """

    order_id: bytes
    tenant: int
    store: str
    drink: str
    price_minor: int
    quantity: int
    ordered_at_us: int
    accepted_at_us: int
    body_hash: bytes
    key_hash: bytes | None = None
    customer_id: str | None = None
    note: str | None = None
    attributes: bytes | None = None
    """A JSON object as text, already checked and compact."""

    @property
    def id(self) -> OrderId:
        return OrderId(self.order_id)

    @property
    def revenue_minor(self) -> int:
        return self.price_minor * self.quantity


def check_text(text: str, bytes_max: int, place: str, *, empty_ok: bool = False) -> str:
    """The text itself. Raises Rejected for what PostgreSQL or a view's key can't hold."""
    size = len(text) if text.isascii() else _utf8_bytes(text, place)
    if size > bytes_max:
        raise Rejected("too-long", f"must be at most {bytes_max} bytes of UTF-8", place)
    if "\x00" in text:
        raise Rejected("bad-text", "must not contain NUL", place)
    if not empty_ok and (not text or text.isspace()):
        raise Rejected("empty-text", "must not be empty", place)
    return text


def _utf8_bytes(text: str, place: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise Rejected("bad-text", "must not contain lone surrogates", place) from None


def check_stored_order(order: Order) -> None:
    """Raises Rejected where an order read from the log breaks a bound (entries are untrusted)."""
    if len(order.order_id) != 16 or order.order_id[6] >> 4 != 7:
        raise Rejected("bad-order-id", "is not a UUIDv7", "/order_id")
    if not 0 <= order.tenant <= 0x7FFFFFFF:
        raise Rejected("bad-tenant", "is out of range", "/tenant")
    check_text(order.store, DIMENSION_BYTES_MAX, "/store")
    check_text(order.drink, DIMENSION_BYTES_MAX, "/drink")
    if not 0 < order.price_minor <= 10**12:
        raise Rejected("bad-price", "is out of range", "/price")
    if not 0 < order.quantity <= QUANTITY_MAX:
        raise Rejected("bad-quantity", "is out of range", "/quantity")
    if not 0 < order.ordered_at_us < 253_402_300_800_000_000:
        raise Rejected("bad-time", "is out of range", "/ordered_at")
    if not 0 < order.accepted_at_us < 253_402_300_800_000_000:
        raise Rejected("bad-time", "is out of range", "/accepted_at")
    if order.customer_id is not None:
        check_text(order.customer_id, CUSTOMER_ID_BYTES_MAX, "/customer_id")
    if order.note is not None:
        check_text(order.note, NOTE_BYTES_MAX, "/note", empty_ok=True)
    if order.attributes is not None:
        _check_attributes(order.attributes)


def _check_attributes(attributes: bytes) -> None:
    if len(attributes) > ATTRIBUTES_BYTES_MAX:
        raise Rejected("too-long", "is too large", "/attributes")
    try:
        decoded = msgspec.json.decode(attributes)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Rejected("bad-attributes", "is not JSON", "/attributes") from None
    except RecursionError:
        raise too_deep("/attributes") from None
    if not isinstance(decoded, dict) or b"\\u0000" in attributes:
        raise Rejected("bad-attributes", "must be an object without NUL", "/attributes")
    check_depth(decoded, "/attributes")


def check_depth(value: object, place: str, depth: int = 0) -> None:
    """Raises Rejected for what is nested deeper than attributes may be: whoever reads them later, with less of
    its stack left, must be able to."""
    if isinstance(value, (dict, list)):
        if depth >= ATTRIBUTES_DEPTH_MAX:
            raise too_deep(place)
        for part in value.values() if isinstance(value, dict) else value:
            check_depth(part, place, depth + 1)


def too_deep(place: str) -> Rejected:
    return Rejected("too-deep", f"must be nested at most {ATTRIBUTES_DEPTH_MAX} deep", place)
