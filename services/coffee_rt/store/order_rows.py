"""Orders <-> rows of the table `orders`. Pure; encoding is the worker's hottest code after decoding.

The columns of fixed width come first, so that one packer writes them all; store and drink repeat and are
encoded once. Whatever PostgreSQL's types can't hold raises BadData here, before a byte is sent.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any

from coffee_rt.domain.ids import id_floor
from coffee_rt.domain.orders import Order
from coffee_rt.store import copy
from coffee_rt.store.contract import BadData, StoredOrder

COLUMNS = (
    "order_id",
    "batch_id",
    "body_hash",
    "price_minor",
    "ordered_at",
    "accepted_at",
    "tenant",
    "quantity",
    "is_late",
    "store",
    "drink",
    "customer_id",
    "note",
    "attributes",
)
SELECT_COLUMNS = ", ".join(
    "attributes::text AS attributes" if column == "attributes" else column for column in COLUMNS
)

ON_TIME_SECONDS = 3600
"""How far an order's own time may be from the time in its id for an id range to find it. Further, the row
is marked late and has an index. Larger: rebuilds read more rows; smaller: more rows in that index."""

_ON_TIME_US = ON_TIME_SECONDS * 1_000_000
_TEXTS_MAX = 65_536
"""Pairs of store and drink kept encoded; past it the cache starts anew."""

_pack = struct.Struct(">h i16s i16s i16s iq iq iq ii ii i?").pack
_NO_TEXTS = copy.NULL * 3
_UNIX_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_MICROSECOND = timedelta(microseconds=1)
_get_hash = attrgetter("body_hash")
_get_id = attrgetter("order_id")

Row = tuple[bytes, Order, bytes]
"""(order id, order, ledger id of its entry): sorts by order id."""


def id_range(start: int, end: int) -> tuple[bytes, bytes]:
    """Bounds [low, high) of the ids of the on-time orders whose own time is in [start, end) Unix seconds.
    The others of that span have `is_late` set."""
    low = max(0, start - ON_TIME_SECONDS - 1) * 1000
    return id_floor(low), id_floor((end + ON_TIME_SECONDS + 1) * 1000)


class RowEncoder:
    """Encodes rows for COPY. Keeps a bounded cache; owned by one writer."""

    def __init__(self) -> None:
        self._texts: dict[tuple[str, str], bytes] = {}

    def encode(self, rows: Iterable[Row]) -> bytes:
        """The whole COPY payload for COLUMNS. Raises BadData."""
        try:
            return self._encode(rows)
        except (struct.error, UnicodeEncodeError, TypeError) as error:
            raise BadData(f"a value can't be encoded: {error}") from error

    def _encode(self, rows: Iterable[Row]) -> bytes:
        epoch_us = copy.EPOCH_US
        pack, texts, from_bytes = _pack, self._texts, int.from_bytes
        parts = [copy.HEADER]
        append = parts.append
        for order_id, order, batch_id in rows:
            ordered_us = order.ordered_at_us
            early_us = ordered_us - from_bytes(order_id[:6], "big") * 1000
            append(
                pack(
                    14,
                    16,
                    order_id,
                    16,
                    batch_id,
                    16,
                    order.body_hash,
                    8,
                    order.price_minor,
                    8,
                    ordered_us - epoch_us,
                    8,
                    order.accepted_at_us - epoch_us,
                    4,
                    order.tenant,
                    4,
                    order.quantity,
                    1,
                    not -_ON_TIME_US <= early_us <= _ON_TIME_US,
                )
            )
            key = (order.store, order.drink)
            append(texts.get(key) or self._encode_texts(key))
            append(_encode_rest(order))
        append(copy.TRAILER)
        return b"".join(parts)

    def _encode_texts(self, key: tuple[str, str]) -> bytes:
        if len(self._texts) >= _TEXTS_MAX:
            self._texts.clear()
        encoded = self._texts[key] = copy.text(key[0]) + copy.text(key[1])
        return encoded


def check_widths(orders: list[Order]) -> None:
    """Raises BadData for an id or hash that the packer would cut or pad instead of refusing."""
    if set(map(len, map(_get_hash, orders))) - {16} or set(map(len, map(_get_id, orders))) - {16}:
        raise BadData("an order id or body hash has not 16 bytes")


def _encode_rest(order: Order) -> bytes:
    customer_id, note, attributes = order.customer_id, order.note, order.attributes
    if customer_id is None and note is None and attributes is None:
        return _NO_TEXTS
    return b"".join(
        (
            copy.NULL if customer_id is None else copy.text(customer_id),
            copy.NULL if note is None else copy.text(note),
            copy.NULL if attributes is None else copy.jsonb(attributes),
        )
    )


def to_unix_us(at: datetime) -> int:
    """Unix microseconds of an aware datetime, exactly."""
    return (at - _UNIX_EPOCH) // _MICROSECOND


def from_row(row: Mapping[str, Any]) -> StoredOrder:
    """A row of SELECT_COLUMNS. The key hash is not kept, and jsonb may have changed the spacing and order
    of attributes."""
    attributes = row["attributes"]
    order = Order(
        order_id=row["order_id"].bytes,
        tenant=row["tenant"],
        store=row["store"],
        drink=row["drink"],
        price_minor=row["price_minor"],
        quantity=row["quantity"],
        ordered_at_us=to_unix_us(row["ordered_at"]),
        accepted_at_us=to_unix_us(row["accepted_at"]),
        body_hash=row["body_hash"],
        customer_id=row["customer_id"],
        note=row["note"],
        attributes=None if attributes is None else attributes.encode(),
    )
    return StoredOrder(order, row["batch_id"].bytes)
