"""Builders of valid things, one argument away from what a test is about."""

from __future__ import annotations

from collections import defaultdict
from itertools import count

from coffee_rt.domain.ids import IdMinter
from coffee_rt.domain.orders import Order
from coffee_rt.domain.view_documents import parse_view
from coffee_rt.domain.views import ViewDefinition
from coffee_rt.domain.wire import hash_body

NOW_MS = 1_763_000_000_000
# One for each millisecond: a minter never goes back in time, and tests live in different years.
_minters: defaultdict[int, IdMinter] = defaultdict(IdMinter)
_serial = count(1)


def _mint(at_ms: int, shard: int) -> bytes:
    return _minters[at_ms].mint(at_ms, shard)


def an_order(
    *,
    order_id: bytes | None = None,
    tenant: int = 0,
    store: str = "uptown",
    drink: str = "latte",
    price_minor: int = 450,
    quantity: int = 1,
    ordered_at_us: int | None = None,
    accepted_at_us: int = NOW_MS * 1000,
    shard: int = 0,
    key_hash: bytes | None = None,
    customer_id: str | None = None,
    note: str | None = None,
    attributes: bytes | None = None,
) -> Order:
    """An order accepted at NOW_MS unless told otherwise; each with an id of its own."""
    return Order(
        order_id=order_id or _mint(accepted_at_us // 1000, shard),
        tenant=tenant,
        store=store,
        drink=drink,
        price_minor=price_minor,
        quantity=quantity,
        ordered_at_us=accepted_at_us if ordered_at_us is None else ordered_at_us,
        accepted_at_us=accepted_at_us,
        body_hash=hash_body(b"%d" % next(_serial)),
        key_hash=key_hash,
        customer_id=customer_id,
        note=note,
        attributes=attributes,
    )


def a_view(name: str = "sales", **changes: object) -> ViewDefinition:
    """hour x store x drink with orders, quantity and revenue, unless told otherwise."""
    document: dict[str, object] = {
        "name": name,
        "bucket": "hour",
        "dimensions": ["store", "drink"],
        "measures": {
            "orders": "count",
            "quantity": {"sum": "quantity"},
            "revenue": {"sum": "revenue"},
        },
    }
    return parse_view(document | changes)
