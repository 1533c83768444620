"""Bodies of the messages on the topics of `contract`: written by one process, read by another.

Unknown fields are ignored, new ones get defaults, so releases can differ side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from coffee_rt.domain.ids import format_id
from coffee_rt.domain.money import format_minor
from coffee_rt.domain.orders import Order

T = TypeVar("T")


class ViewChange(msgspec.Struct):
    """What one fold changed. Rows are absolute values; `previous` is the lane's version before it."""

    view: str
    epoch: str
    lane: int
    version: int
    previous: int
    floor: int
    """Every delta of a transaction below this id is inside."""
    rows: list[dict[str, Any]]
    """Each: tenant, bucket (Unix seconds), dimensions by column, measures (integers), version, newest_at_ms.
    Empty with reload set."""
    newest_at_ms: int = 0
    reload: bool = False
    """Too many rows to publish: load the lane above `previous` from PostgreSQL."""


class LaneState(msgspec.Struct, array_like=True):
    version: int
    floor: int


class Beacon(msgspec.Struct):
    """Once a second from the aggregators: newest version of every lane of every view."""

    at_ms: int
    epochs: dict[str, str]
    lanes: dict[str, list[LaneState]]
    """View name -> state by lane number."""


class StoredEntry(msgspec.Struct, array_like=True):
    shard: int
    entry: str
    batch_id: bytes


class Stored(msgspec.Struct):
    """A worker's commit. `lanes` are those its deltas touched; exceptions are the orders not stored."""

    xid: int
    entries: list[StoredEntry]
    lanes: dict[str, list[int]]
    dead: list[bytes] = []
    """Order ids that became dead letters."""
    duplicates: list[bytes] = []
    timeline: str = ""
    """What the epochs end with whose floors `xid` compares with; empty from an older release."""


class RecentOrder(msgspec.Struct):
    """An order as the ticker shows it; price is a decimal string."""

    order_id: str
    tenant: int
    store: str
    drink: str
    price: str
    quantity: int
    ordered_at_ms: int
    accepted_at_ms: int


class RecentOrders(msgspec.Struct):
    orders: list[RecentOrder]
    """Newest first, at most 20 of a commit."""
    stored: int
    """How many orders the commit stored in all."""


def recent_order(order: Order, decimals: int) -> RecentOrder:
    """An order as the ticker shows it."""
    return RecentOrder(
        order_id=format_id(order.order_id),
        tenant=order.tenant,
        store=order.store,
        drink=order.drink,
        price=format_minor(order.price_minor, decimals),
        quantity=order.quantity,
        ordered_at_ms=order.ordered_at_us // 1000,
        accepted_at_ms=order.accepted_at_us // 1000,
    )


encode = msgspec.json.Encoder().encode


def _reader(kind: type[T]) -> Callable[[bytes], T]:
    """What reads a body. Anybody who can publish may have written it: of depth without end, too, it raises
    msgspec.DecodeError (or UnicodeDecodeError) and nothing else."""
    decode = msgspec.json.Decoder(kind).decode

    def read(body: bytes) -> T:
        try:
            return decode(body)
        except RecursionError:
            raise msgspec.DecodeError("is nested too deeply") from None

    return read


decode_view_change = _reader(ViewChange)
decode_beacon = _reader(Beacon)
decode_stored = _reader(Stored)
decode_recent_orders = _reader(RecentOrders)
