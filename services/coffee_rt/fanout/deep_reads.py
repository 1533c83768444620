"""Snapshots that reach back before the window in memory: read from PostgreSQL, few at a time.

Each caller has one read at a time, so that one who asks for many waits behind nobody but itself. Who wants the
same shares one, and one that nobody waits for any more is not made. What is read is bounded where it is read.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from coffee_rt.callers.turns import Turns
from coffee_rt.errors import Retryable
from coffee_rt.fanout import metrics
from coffee_rt.fanout.contract import SnapshotReader
from coffee_rt.fanout.subscriptions import Subscription
from coffee_rt.runtime.clock import Clock
from coffee_rt.store.view_contract import SnapshotScope, ViewSnapshot

AT_ONCE_MAX = 2
"""Reads at once; the others wait. With one of each caller, a second caller always finds room."""
RETRY_SECONDS = 1.0

_Wish = tuple[str, int, SnapshotScope]


class DeepReads:
    """One of a process. Reads waiting are bounded by the sessions and the subscriptions they may have."""

    def __init__(
        self,
        reader: SnapshotReader,
        clock: Clock,
        uniform: Callable[[float, float], float],
        rows_max: int,
    ) -> None:
        self._reader = reader
        self._clock = clock
        self._uniform = uniform
        self._rows_max = rows_max
        self._at_once = asyncio.Semaphore(AT_ONCE_MAX)
        self._turns = Turns(1, sys.maxsize - 1, None)
        self._reading: dict[
            _Wish, tuple[asyncio.Task[ViewSnapshot | None], list[Subscription]]
        ] = {}

    async def read(self, view: str, subscription: Subscription) -> ViewSnapshot | None:
        """What a subscription asks for, one row more where it is too much; None when it is closed
        meanwhile. Raises Rejected when the view is gone."""
        wish = (view, subscription.since, self._scope(subscription))
        reading, wanting = self._reading.get(wish, (None, []))
        if reading is None or reading.done():
            wanting = []
            reading = asyncio.create_task(self._read(wish, wanting))
            reading.add_done_callback(lambda done: self._forget(wish, done))
            self._reading[wish] = reading, wanting
        wanting.append(subscription)
        # Shielded: one session that leaves must not take the read away from the others.
        return await asyncio.shield(reading)

    def _forget(self, wish: _Wish, done: asyncio.Task[ViewSnapshot | None]) -> None:
        if self._reading[wish][0] is done:
            del self._reading[wish]

    def _scope(self, subscription: Subscription) -> SnapshotScope:
        names = subscription.channel.dimensions
        filters = tuple((names[index], tuple(texts)) for index, texts in subscription.filter)
        return SnapshotScope(subscription.tenant, filters, self._rows_max + 1)

    async def _read(self, wish: _Wish, wanting: list[Subscription]) -> ViewSnapshot | None:
        """Read until it worked: the sessions that wait for it would only ask again."""
        view, since, scope = wish
        while True:
            caller = next((each.session.token for each in wanting if not each.is_closed), None)
            try:
                async with self._turns.take(caller or ""), self._at_once:
                    if all(each.is_closed for each in wanting):
                        return None
                    return await self._reader.snapshot(view, since, scope)
            except Retryable:
                metrics.reload_failures.inc()
            await self._clock.sleep(self._uniform(RETRY_SECONDS / 2, RETRY_SECONDS))
