"""The channel `orders`: a ticker of each tenant's newest orders.

A sample, not a log: busy workers publish only the newest of a commit, and what a slow session missed beyond
the newest is not made up for. Frames are applied by order id, so repetition does no harm.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from coffee_rt.channels.messages import RecentOrder
from coffee_rt.fanout.channel import Channel
from coffee_rt.fanout.frames import Frame, encode, orders_frame
from coffee_rt.fanout.protocol import Filter, Resume, is_match
from coffee_rt.fanout.subscriptions import Subscription, Versions

ORDERS_SHOWN = 50
"""Orders of a first frame, and the most in any."""
RING_ORDERS = 500
"""Kept a tenant with subscribers, so that a filter for one store still finds some (~300 bytes each)."""
TENANTS_MAX = 1_000
"""Tenants whose orders are kept; beyond, those nobody subscribes to go first."""


class Loader(Protocol):
    """Loads the newest orders of a tenant into the channel, in the background."""

    def request_orders(self, tenant: int) -> None: ...


class _Order:
    __slots__ = ("dimensions", "encoded", "id", "seq")

    def __init__(self, order: RecentOrder) -> None:
        self.id = order.order_id
        self.dimensions = (order.store, order.drink)
        self.seq = 0
        self.encoded = encode(
            {
                "order_id": order.order_id,
                "store": order.store,
                "drink": order.drink,
                "price": order.price,
                "quantity": order.quantity,
                "ordered_at_ms": order.ordered_at_ms,
                "accepted_at_ms": order.accepted_at_ms,
            }
        )


class OrdersChannel(Channel):
    """Rings of newest orders and their audiences. Order ids sort by time, so the newest are the largest."""

    name = "orders"
    dimensions = ("store", "drink")
    loader: Loader

    def __init__(self) -> None:
        super().__init__()
        self._seq = 0
        self._rings: dict[int, dict[str, _Order]] = {}
        self._changed: set[int] = set()
        self._flushed_seq = 0

    @property
    def position(self) -> tuple[int, Versions]:
        return self._seq, ()

    @property
    def is_changed(self) -> bool:
        return bool(self._changed)

    @property
    def tenants(self) -> list[int]:
        """Those whose orders are kept."""
        return list(self._rings)

    def is_known(self, tenant: int) -> bool:
        return tenant in self._rings

    def load(self, tenant: int, orders: Sequence[RecentOrder]) -> None:
        """Orders read from the store, any order of them."""
        if tenant not in self._rings:
            self._make_room()
            self._rings[tenant] = {}
        self.apply(orders)
        for subscription in self.subscriptions:
            if subscription.tenant == tenant and subscription.is_waiting:
                subscription.is_waiting = False
                self._queue_newest(subscription)
                subscription.session.on_ready(subscription)

    def apply(self, orders: Sequence[RecentOrder]) -> None:
        """Orders just stored, of any tenants; those nobody asked for yet are left out."""
        for order in sorted(orders, key=lambda order: order.order_id):
            ring = self._rings.get(order.tenant)
            if ring is None or order.order_id in ring:
                continue
            self._seq += 1
            entry = _Order(order)
            entry.seq = self._seq
            ring[order.order_id] = entry
            self._changed.add(order.tenant)
            if len(ring) > RING_ORDERS:
                del ring[min(ring)]

    def open(
        self, subscription: Subscription, resume: Resume | None
    ) -> Coroutine[Any, Any, None] | None:
        if subscription.tenant in self._rings:
            self._queue_newest(subscription)
        else:
            subscription.is_waiting = True
            self.loader.request_orders(subscription.tenant)
        return None

    def flush(self) -> None:
        changed, self._changed = self._changed, set()
        for audience in list(self._audiences.values()):
            if audience.tenant in changed:
                fresh = self._newest(audience.tenant, audience.filter, audience.seq)
                if fresh:
                    audience.broadcast(orders_frame(audience.id, fresh))
            audience.seq = self._seq
        self.forget_empty_audiences()

    def beat(self) -> None:
        """Nothing: there are no versions here."""

    def next_frame(self, subscription: Subscription) -> Frame | None:
        if subscription.is_waiting:
            return None
        if subscription.parts:
            return subscription.parts.popleft()
        subscription.parts = None
        fresh = self._newest(subscription.tenant, subscription.filter, subscription.seq)
        subscription.seq, subscription.told = self.position
        if fresh:
            return orders_frame(subscription.id, fresh)
        self.join(subscription)
        return None

    def _queue_newest(self, subscription: Subscription) -> None:
        newest = self._newest(subscription.tenant, subscription.filter, 0)
        subscription.queue((orders_frame(subscription.id, newest),))
        subscription.seq, subscription.told = self.position

    def _newest(self, tenant: int, wanted: Filter, seq: int) -> list[bytes]:
        """The newest orders applied after `seq`, newest first."""
        found = [
            order
            for order in self._rings.get(tenant, {}).values()
            if order.seq > seq and is_match(wanted, order.dimensions)
        ]
        found.sort(key=lambda order: order.id, reverse=True)
        return [order.encoded for order in found[:ORDERS_SHOWN]]

    def _make_room(self) -> None:
        """Forget tenants nobody watches, where too many are kept."""
        if len(self._rings) < TENANTS_MAX:
            return
        watched = {subscription.tenant for subscription in self.subscriptions}
        for tenant in [tenant for tenant in self._rings if tenant not in watched]:
            del self._rings[tenant]
