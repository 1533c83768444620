"""One order by id, wherever it is: right after its 202 it is always found.

The log is asked first and the primary second (orders, dead letters, the intake). The other way round loses an
order that is stored and trimmed in between. What is in neither was never accepted.
"""

from __future__ import annotations

from dataclasses import dataclass

from coffee_rt.domain.ids import id_time_ms
from coffee_rt.domain.orders import Order
from coffee_rt.domain.wire import INTAKE_SHARD, decode_record
from coffee_rt.errors import Rejected, Retryable
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.store.contract import DeadLetter, OrderReader
from coffee_rt.store.intake_contract import Intake
from coffee_rt.streams.contract import EntryId, LogKeeper, Position


@dataclass(frozen=True, slots=True)
class Found:
    """`state` is logged, stored or dead; exactly one of order and dead_letter is there."""

    state: str
    order: Order | None
    dead_letter: DeadLetter | None
    position: Position | None


class OrderFinder:
    """Shared by all requests. Each side has its breaker, so that one being away does not slow the other."""

    def __init__(
        self,
        log: LogKeeper,
        reader: OrderReader,
        log_breaker: CircuitBreaker,
        database_breaker: CircuitBreaker,
        intake: Intake | None = None,
    ) -> None:
        self._intake = intake
        self._log = log
        self._reader = reader
        self._log_breaker = log_breaker
        self._database_breaker = database_breaker

    async def find(self, tenant: int, order_id: bytes) -> Found | None:
        """None when this tenant has no such order. Raises Retryable when that can't be known.

        Either side being away is survived as long as the other has the order.
        """
        log_error: Retryable | None = None
        logged = None
        try:
            async with self._log_breaker:
                logged = await self._log.find_order(order_id)
        except Retryable as error:
            log_error = error
        try:
            async with self._database_breaker:
                stored = await self._find_in_database(tenant, order_id, logged is None)
        except Retryable:
            stored = None
            if logged is None:
                raise
        if stored is not None:
            return stored
        if logged is not None:
            return _found_in_log(tenant, *logged)
        if log_error is not None:
            raise log_error
        return None

    async def _find_in_database(self, tenant: int, order_id: bytes, may_wait: bool) -> Found | None:
        """Stored, dead, or (where it is not in the log) waiting in the intake."""
        found = await self._find_stored(tenant, order_id)
        if found is not None or not may_wait or self._intake is None:
            return found
        waiting = await self._intake.find(tenant, order_id)
        if waiting is not None:
            batch_id, record = waiting
            at = EntryId(id_time_ms(batch_id), 0)
            return _found_in_log(tenant, Position(INTAKE_SHARD, at, batch_id), record)
        # Once more: it may have been stored between the two looks, and leaves the intake only so.
        return await self._find_stored(tenant, order_id)

    async def _find_stored(self, tenant: int, order_id: bytes) -> Found | None:
        stored = await self._reader.find_order(tenant, order_id)
        if stored is not None:
            return Found("stored", stored.order, None, None)
        letter = await self._reader.find_dead_letter(tenant, order_id)
        return None if letter is None else Found("dead", None, letter, None)


def _found_in_log(tenant: int, position: Position, record: bytes) -> Found | None:
    if not record:
        # Perhaps accepted, so "there is none" would be a lie. Past the breaker: the log is well.
        raise Retryable("the order is in an entry of a newer release")
    try:
        order = decode_record(record)
    except Rejected:
        # The worker will park it; until then there is nothing readable to show.
        return None
    return Found("logged", order, None, position) if order.tenant == tenant else None
