"""Deliveries -> entries to store. Pure; a bad record becomes a dead letter and nothing else is lost.

Entries are untrusted: every order's bounds are checked again. An unreadable record is told from its
neighbours by splitting the batch; only when not even the frame can be read is the entry one dead letter.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from coffee_rt.domain import wire
from coffee_rt.domain.ids import id_floor
from coffee_rt.domain.orders import Order, check_stored_order
from coffee_rt.errors import Rejected
from coffee_rt.store.contract import DeadRecord, EntryWrite
from coffee_rt.streams.contract import Delivery

DAY_MS = 86_400_000
AHEAD_MS = 2 * DAY_MS
"""Ids further in the future than this would make partitions nobody plans for."""
_KNOWN_TEXTS_MAX = 8192
_RAW_BYTES_MAX = 1024 * 1024
"""A dead letter keeps so much of a record; more would make the next transaction fail."""


class EntryDecoder:
    """Decodes deliveries. Holds a bounded memory of names checked before. One task at a time."""

    def __init__(self, retention_days: int) -> None:
        self._keep_ms = retention_days * DAY_MS
        self._known_texts: set[str] = set()

    def decode(self, delivery: Delivery, now_ms: int) -> EntryWrite:
        """The entry as orders and dead records. Raises wire.UnknownWireVersion: leave it pending."""
        if delivery.gap is not None:
            return _entry(delivery, (), ())
        if delivery.fault is not None:
            raw = msgspec.msgpack.encode(delivery.raw)
            return _entry(delivery, (), _whole(raw, "foreign-entry", delivery.fault))
        try:
            orders: Sequence[Order] = wire.decode_batch(delivery.version, delivery.data)
        except Rejected:
            return self._decode_apart(delivery, now_ms)
        if len(orders) != delivery.records or len(orders) > wire.RECORDS_MAX:
            return self._decode_apart(delivery, now_ms)
        suspects = self._suspects(orders, now_ms)
        if not suspects:
            return _entry(delivery, orders, ())
        return self._decode_apart(delivery, now_ms)

    def park(self, delivery: Delivery, detail: str) -> EntryWrite:
        """The entry with all its records as dead letters, raw: each of its tenant, under the id that was answered."""
        if delivery.fault is not None:
            raw = msgspec.msgpack.encode(delivery.raw)
            return _entry(delivery, (), _whole(raw, "unstorable-entry", detail))
        try:
            records = wire.split_batch(delivery.version, delivery.data)
        except Rejected:
            records = []
        if len(records) != delivery.records:
            return _entry(delivery, (), _whole(delivery.data, "unstorable-entry", detail))
        dead = [
            _dead(index, raw, "unstorable-entry", detail, _readable(raw))
            for index, raw in enumerate(records)
        ]
        return _entry(delivery, (), dead)

    def _suspects(self, orders: Sequence[Order], now_ms: int) -> bool:
        """Whether any order breaks a bound. The common shape is checked inline, the rest by the domain."""
        known = self._known_texts
        low, high = id_floor(max(0, now_ms - self._keep_ms)), id_floor(now_ms + AHEAD_MS)
        for order in orders:
            if not low <= order.order_id < high:
                return True
            if (
                order.store in known
                and order.drink in known
                and order.note is None
                and order.customer_id is None
                and order.attributes is None
                and len(order.order_id) == 16
                and order.order_id[6] >> 4 == 7
                and 0 < order.price_minor <= 10**12
                and 0 < order.quantity <= 10_000
                and 0 <= order.tenant <= 0x7FFFFFFF
                and 0 < order.ordered_at_us < 253_402_300_800_000_000
                and 0 < order.accepted_at_us < 253_402_300_800_000_000
            ):
                continue
            try:
                check_stored_order(order)
            except Rejected:
                return True
            self._remember(order)
        return False

    def _remember(self, order: Order) -> None:
        if len(self._known_texts) >= _KNOWN_TEXTS_MAX:
            self._known_texts.clear()
        self._known_texts.add(order.store)
        self._known_texts.add(order.drink)

    def _decode_apart(self, delivery: Delivery, now_ms: int) -> EntryWrite:
        """Record by record, each good one kept."""
        try:
            records = wire.split_batch(delivery.version, delivery.data)
        except Rejected as error:
            dead = _whole(delivery.data, error.code, error.detail)
            return _entry(delivery, (), dead)
        if len(records) != delivery.records or len(records) > wire.RECORDS_MAX:
            detail = f"says {delivery.records} records and has {len(records)}"
            return _entry(delivery, (), _whole(delivery.data, "miscounted-entry", detail))
        orders: list[Order] = []
        letters: list[DeadRecord] = []
        for index, raw in enumerate(records):
            order = None
            try:
                order = wire.decode_record(raw)
                check_stored_order(order)
                self._check_id_time(order, now_ms)
            except Rejected as error:
                letters.append(_dead(index, raw, error.code, str(error), order))
            except Exception as error:  # noqa: BLE001 - the boundary of a record: none stops the others
                letters.append(_dead(index, raw, "unreadable-record", repr(error), order))
            else:
                orders.append(order)
        return _entry(delivery, orders, letters)

    def _check_id_time(self, order: Order, now_ms: int) -> None:
        low, high = id_floor(max(0, now_ms - self._keep_ms)), id_floor(now_ms + AHEAD_MS)
        if not low <= order.order_id < high:
            raise Rejected("order-id-time", "is older than retention or in the future", "/order_id")


def _readable(raw: bytes) -> Order | None:
    """Whose record it is, where that can be read."""
    try:
        return wire.decode_record(raw)
    except Exception:  # noqa: BLE001 - the boundary of a record: none stops the others
        return None


def _entry(delivery: Delivery, orders: Sequence[Order], dead: Sequence[DeadRecord]) -> EntryWrite:
    return EntryWrite(
        shard=delivery.shard,
        entry=(delivery.entry_id.ms, delivery.entry_id.seq),
        batch_id=delivery.batch_id,
        counter=delivery.counter,
        records=delivery.records,
        orders=orders,
        dead=dead,
        gap=delivery.gap,
    )


def _whole(raw: bytes, code: str, detail: str) -> list[DeadRecord]:
    """The dead letter of an entry without readable frame: the store counts it for all its records."""
    return [_dead(0, raw, code, detail)]


def _dead(index: int, raw: bytes, code: str, detail: str, order: Order | None = None) -> DeadRecord:
    return DeadRecord(
        index=index,
        raw=raw[:_RAW_BYTES_MAX],
        code=code,
        detail=detail.replace("\x00", "")[:500],
        tenant=order.tenant if order is not None and 0 <= order.tenant <= 0x7FFFFFFF else 0,
        order_id=order.order_id if order is not None and len(order.order_id) == 16 else None,
    )
