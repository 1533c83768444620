"""Loads the newest orders of tenants into the ticker's channel: at the first subscription and after misses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from coffee_rt.channels.messages import recent_order
from coffee_rt.errors import Retryable
from coffee_rt.fanout import metrics
from coffee_rt.fanout.contract import RecentOrderReader
from coffee_rt.fanout.orders_channel import RING_ORDERS, OrdersChannel
from coffee_rt.runtime.clock import Clock

RETRY_SECONDS = 1.0


class OrdersLoader:
    """Owned by the hub; `run` is its only task. One load at a time, however many sessions ask."""

    def __init__(
        self,
        channel: OrdersChannel,
        reader: RecentOrderReader,
        clock: Clock,
        decimals: int,
        on_loaded: Callable[[], None],
    ) -> None:
        self._channel = channel
        self._reader = reader
        self._clock = clock
        self._decimals = decimals
        self._on_loaded = on_loaded
        self._tenants: dict[int, None] = {}
        self._wanted = asyncio.Event()

    def request_orders(self, tenant: int) -> None:
        self._tenants[tenant] = None
        self._wanted.set()

    async def run(self) -> None:
        while True:
            await self._wanted.wait()
            if not self._tenants:
                self._wanted.clear()
                continue
            tenant = next(iter(self._tenants))
            try:
                found = await self._reader.recent_orders(tenant, RING_ORDERS)
            except Retryable:
                metrics.reload_failures.inc()
                await self._clock.sleep(RETRY_SECONDS)
                continue
            del self._tenants[tenant]
            metrics.reloads.labels("orders").inc()
            orders = [recent_order(stored.order, self._decimals) for stored in found]
            self._channel.load(tenant, orders)
            self._on_loaded()
