"""A dead letter and the order somebody means by it -> the order that a redrive stores. Pure.

The amended order obeys the rules of a posted one (all but order_api's catalogue of stores and drinks). It
stays the same record: tenant, time of acceptance and Idempotency-Key are those of the original, as far as
that can be read.
"""

from __future__ import annotations

from coffee_rt.domain import wire
from coffee_rt.domain.ids import IdMinter, parse_id
from coffee_rt.domain.intake import Intake, decode_order
from coffee_rt.domain.orders import Order, check_stored_order
from coffee_rt.errors import Rejected
from coffee_rt.store.contract import DeadLetter
from coffee_rt.store.redrives import check_id_time

ORDER_BYTES_MAX = 65_536
"""Bytes of an amended order; as many as order_api takes of one by default."""
_TAKEN_ID = "order-id-conflict"


class LetterAmender:
    """Reads amended orders for one process; one thread only (see Intake)."""

    def __init__(self, decimals: int) -> None:
        self._intake = Intake(decimals)
        self._minter = IdMinter()

    def order(self, letter: DeadLetter, body: bytes, now_ms: int) -> Order:
        """The order of an amended letter. Raises Rejected (413, 422) with the place."""
        if len(body) > ORDER_BYTES_MAX:
            detail = f"The body must be at most {ORDER_BYTES_MAX} bytes."
            raise Rejected("too-large", detail, status=413)
        incoming = decode_order(body)
        original = readable_order(letter.raw)
        if incoming.order_id is not None:
            order_id = bytes(parse_id(incoming.order_id))
            check_id_time(order_id, now_ms)
        else:
            order_id = self._kept_id(letter, now_ms)
        order = self._intake.order(
            incoming,
            order_id,
            tenant=letter.tenant,
            accepted_at_us=letter.created_at_us if original is None else original.accepted_at_us,
            body_hash=wire.hash_body(body),
            key_hash=None if original is None else original.key_hash,
        )
        check_stored_order(order)
        return order

    def _kept_id(self, letter: DeadLetter, now_ms: int) -> bytes:
        """The id that was answered, unless it can't become a row: then a new one, kept with the amendment."""
        order_id = letter.order_id
        if order_id is not None and letter.code != _TAKEN_ID and order_id[6] >> 4 == 7:
            try:
                check_id_time(order_id, now_ms)
            except Rejected:
                return self._minter.mint(now_ms)
            return order_id
        return self._minter.mint(now_ms)


def readable_order(record: bytes) -> Order | None:
    """The order of a record whose times and key can be believed; None where it can't be read at all."""
    try:
        order = wire.decode_record(record)
    except Rejected:
        return None
    has_time = 0 < order.accepted_at_us < 253_402_300_800_000_000
    has_key = order.key_hash is None or len(order.key_hash) == 16
    return order if has_time and has_key else None
