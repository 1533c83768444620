"""What happens after a commit: publish it, then acknowledge its entries, then let go of them.

In that order: an acknowledged entry counts as stored and told. A publication that fails is only counted
(readers poll); an acknowledgement that is dropped leaves its entry pending, to be read again.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from operator import attrgetter

from coffee_rt.channels.contract import Channels
from coffee_rt.channels.messages import (
    RecentOrders,
    Stored,
    StoredEntry,
    encode,
    recent_order,
)
from coffee_rt.domain.wire import INTAKE_SHARD
from coffee_rt.errors import Retryable
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import Clock
from coffee_rt.store.contract import Committed, EntryWrite
from coffee_rt.streams.contract import Delivery, GroupReader
from coffee_rt.worker import metrics
from coffee_rt.worker.reading import Held
from coffee_rt.worker.storing import Batch, StoredBatch

RECENT_ORDERS_MAX = 20
_entry_of = attrgetter("entry")


class Announcer:
    """Publishes and acknowledges (what came by the intake is gone from there already). One task calls it, a batch after the other."""

    def __init__(
        self,
        *,
        channels: Channels,
        reader: GroupReader,
        held: Held,
        breaker: CircuitBreaker,
        clock: Clock,
        currency_decimals: int,
        follow_timeline: Callable[[], Awaitable[None]],
    ) -> None:
        self._channels = channels
        self._reader = reader
        self._held = held
        self._breaker = breaker
        self._clock = clock
        self._decimals = currency_decimals
        self._follow_timeline = follow_timeline

    async def finish(self, stored: StoredBatch) -> None:
        count(stored, self._clock.now())
        recent = recent_orders(stored, self._decimals)
        messages = [self._publish("stored", encode(stored_message(stored)))]
        if recent.orders:
            messages.append(self._publish("orders", encode(recent)))
        await asyncio.gather(*messages)
        if not await self.acknowledge(stored.batch.deliveries, stored.timeline):
            # Perhaps the log knows of a promotion that this worker does not: nothing more of it would be
            # acknowledged before the next turn of its chores.
            with suppress(Retryable):
                await self._follow_timeline()

    async def acknowledge(self, deliveries: Sequence[Delivery], timeline: str = "") -> bool:
        """Acknowledge where it is still safe, and whether it was everywhere; what stays pending is read
        again."""
        by_shard: dict[int, list[Delivery]] = {}
        for delivery in deliveries:
            if delivery.shard != INTAKE_SHARD:
                by_shard.setdefault(delivery.shard, []).append(delivery)
        # Together: each is a write that Redis answers after an fsync, and one fsync serves them all.
        were_safe = await asyncio.gather(
            *(self._acknowledge(*item, timeline) for item in by_shard.items())
        )
        return all(were_safe)

    async def _acknowledge(self, shard: int, deliveries: list[Delivery], timeline: str) -> bool:
        acknowledged = 0
        try:
            async with self._breaker:
                acknowledged = await self._reader.acknowledge(shard, deliveries, timeline)
        except Retryable:
            metrics.READ_FAILURES.labels(str(shard)).inc()
        self._held.release(deliveries)
        is_safe = acknowledged == len(deliveries)
        if not is_safe:
            self._held.ask_rescan(shard)
        return is_safe

    async def _publish(self, topic: str, body: bytes) -> None:
        if self._breaker.is_open:
            # Waiting for a server that is known to be away would only hold up the next batch.
            metrics.PUBLISH_FAILURES.inc()
            return
        try:
            await self._channels.publish(topic, body)
        except Retryable:
            metrics.PUBLISH_FAILURES.inc()


def stored_message(stored: StoredBatch) -> Stored:
    committed = stored.committed
    return Stored(
        xid=committed.xid,
        entries=[
            StoredEntry(delivery.shard, str(delivery.entry_id), write.batch_id)
            for delivery, write in zip(stored.batch.deliveries, stored.batch.writes, strict=True)
        ],
        lanes=committed.touched_lanes,
        dead=list(committed.dead_order_ids),
        duplicates=list(committed.duplicate_order_ids),
        timeline=committed.timeline,
    )


def recent_orders(stored: StoredBatch, decimals: int) -> RecentOrders:
    """The newest orders of a commit, for the ticker. Only rows that are really new."""
    committed = stored.committed
    fresh = [
        write
        for write, outcome in zip(stored.batch.writes, committed.outcomes, strict=True)
        if not outcome.seen_before
    ]
    newest = heapq.nlargest(RECENT_ORDERS_MAX, fresh, key=_entry_of)
    left_out = {*committed.dead_order_ids, *committed.duplicate_order_ids}
    candidates = [
        order
        for write in newest
        for order in write.orders[-RECENT_ORDERS_MAX:]
        if order.order_id not in left_out
    ]
    chosen = heapq.nlargest(RECENT_ORDERS_MAX, candidates, key=attrgetter("order_id"))
    return RecentOrders(
        orders=[recent_order(order, decimals) for order in chosen],
        stored=sum(outcome.stored for outcome in committed.outcomes),
    )


def count(stored: StoredBatch, now: float) -> None:
    """Metrics of one commit."""
    batch, committed = stored.batch, stored.committed
    metrics.BATCH_RECORDS.observe(batch.records)
    oldest = min(map(_entry_of, batch.writes))[0]
    metrics.STORED_AGE_SECONDS.observe(max(0.0, now - oldest / 1000))
    seen = orders = duplicates = dead = 0
    for outcome in committed.outcomes:
        seen += outcome.seen_before
        orders += outcome.stored
        duplicates += outcome.duplicates
        dead += outcome.dead
    metrics.ENTRIES.labels("seen").inc(seen)
    metrics.ENTRIES.labels("stored").inc(len(committed.outcomes) - seen)
    metrics.ORDERS_STORED.inc(orders)
    metrics.ORDERS_DUPLICATE.inc(duplicates)
    if dead:
        _count_dead(batch, committed, dead)


def _count_dead(batch: Batch, committed: Committed, dead: int) -> None:
    known = 0
    for write, outcome in zip(batch.writes, committed.outcomes, strict=True):
        if not outcome.seen_before:
            known += _count_found(write)
    if dead > known:
        metrics.DEAD_LETTERS.labels("found-by-store").inc(dead - known)


def _count_found(write: EntryWrite) -> int:
    for record in write.dead:
        metrics.DEAD_LETTERS.labels(record.code).inc()
    return len(write.dead)
