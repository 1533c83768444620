"""What PostgreSQL does not take: bad data for ever, and orders that break the connection for a while."""

from __future__ import annotations

from collections.abc import Callable

from coffee_rt.domain.orders import Order
from coffee_rt.errors import Retryable
from coffee_rt.store.contract import BadData, Committed, PreparedBatch
from coffee_rt.store.memory import MemoryOrderWriter
from coffee_rt.store.memory_database import MemoryDatabase
from coffee_rt.store.memory_redriver import MemoryLetterRedriver

BAD_DRINK = "unstorable"
"""Refused as bad data."""
POISON_DRINK = "poison"
"""Ends the connection, with whatever else was in the transaction."""


class Fussiness:
    """Shared by all who write; `is_poisoned` until somebody mends the server."""

    def __init__(self, *, is_poisoned: bool) -> None:
        self.is_poisoned = is_poisoned

    def check(self, order: Order) -> None:
        """Raises BadData, Retryable."""
        if order.drink == BAD_DRINK:
            raise BadData("22003: numeric value out of range")
        if order.drink == POISON_DRINK and self.is_poisoned:
            raise Retryable("the server closed the connection unexpectedly")


class FussyWriter(MemoryOrderWriter):
    """Refuses as PostgreSQL's types and checks would. Knows who stored what."""

    def __init__(self, database: MemoryDatabase, fussiness: Fussiness) -> None:
        super().__init__(database)
        self._fussiness = fussiness
        self.xids: dict[bytes, int] = {}
        """Order id -> the transaction that stored it."""

    def finish(self, batch: PreparedBatch, xid: int) -> Committed:
        committed = super().finish(batch, xid)
        for entry in batch.entries:
            for order in entry.orders:
                self.xids.setdefault(order.order_id, xid)
        return committed

    def _check_order(self, order: Order) -> None:
        super()._check_order(order)
        self._fussiness.check(order)


class FussyRedriver(MemoryLetterRedriver):
    """Refuses the same when a letter is sent again."""

    def __init__(
        self, database: MemoryDatabase, fussiness: Fussiness, now: Callable[[], float]
    ) -> None:
        super().__init__(database, now)
        self._fussiness = fussiness

    def _check_order(self, order: Order) -> None:
        super()._check_order(order)
        self._fussiness.check(order)
