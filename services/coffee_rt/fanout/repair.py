"""Loads what a view's channel lacks: its first snapshot, a lane with a gap, all of another epoch.

One load at a time for each view, however many gaps ask for it. A gap first gets 100 ms, because two
aggregators may publish out of order; then a random wait, so that many pods don't ask PostgreSQL at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from coffee_rt.errors import Rejected, Retryable
from coffee_rt.fanout import metrics
from coffee_rt.fanout.contract import SnapshotReader
from coffee_rt.fanout.view_channel import ViewChannel
from coffee_rt.runtime.clock import Clock
from coffee_rt.store.view_contract import ViewSnapshot

GAP_SECONDS = 0.1
JITTER_SECONDS = 0.2
QUIET_SECONDS = 1.5
"""After a load that found no new epoch, talk of another one is not believed for so long."""
RETRY_SECONDS_BASE = 0.2
RETRY_SECONDS_MAX = 5.0


class ViewRepair:
    """Owned by the hub; `run` is its only task. Cancelling it at any point leaves the channel whole."""

    def __init__(
        self,
        channel: ViewChannel,
        reader: SnapshotReader,
        clock: Clock,
        uniform: Callable[[float, float], float],
        on_loaded: Callable[[], None],
        on_other_shape: Callable[[], None],
    ) -> None:
        self._channel = channel
        self._reader = reader
        self._clock = clock
        self._uniform = uniform
        self._on_loaded = on_loaded
        self._on_other_shape = on_other_shape
        self._wanted = asyncio.Event()
        self._needs_view = True
        self._is_urgent = True
        self._quiet_until = 0.0
        self._waiters: list[asyncio.Future[None]] = []
        self._wanted.set()

    def request_view(self) -> None:
        """Load everything: there seems to be another epoch."""
        if self._clock.monotonic() >= self._quiet_until:
            self._needs_view = True
            self._wanted.set()

    def request_lanes(self, *, is_urgent: bool = False) -> None:
        """Load the lanes that are behind what was heard of them, if they still are after the wait."""
        self._is_urgent = self._is_urgent or is_urgent
        self._wanted.set()

    async def settled(self) -> None:
        """Returns once a repair that began after this call is through."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self.request_lanes(is_urgent=True)
        await waiter

    async def run(self) -> None:
        try:
            await self._keep_loading()
        finally:
            for waiter in self._waiters:
                waiter.cancel()

    async def _keep_loading(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            is_first = not self._channel.rows.is_loaded
            if not self._needs_view and not self._is_urgent:
                await self._clock.sleep(GAP_SECONDS)
                if self._channel.rows.lanes_behind():
                    await self._clock.sleep(self._uniform(0.0, JITTER_SECONDS))
            elif not is_first:
                await self._clock.sleep(self._uniform(0.0, JITTER_SECONDS / 4))
            self._is_urgent = False
            served = len(self._waiters)
            await self._load()
            waiters, self._waiters = self._waiters[:served], self._waiters[served:]
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def _load(self) -> None:
        """Load until it worked."""
        failures = 0
        while True:
            try:
                if self._needs_view:
                    self._needs_view = False
                    await self._load_view()
                for lane in self._channel.rows.lanes_behind():
                    await self._load_lane(lane)
            except (Retryable, Rejected):
                # Rejected: the view is just being dropped; the catalogue will say so.
                self._needs_view = self._needs_view or not self._channel.rows.is_loaded
                metrics.reload_failures.inc()
                failures += 1
                limit = min(RETRY_SECONDS_MAX, RETRY_SECONDS_BASE * 2 ** min(failures, 6))
                await self._clock.sleep(self._uniform(limit / 2, limit))
            else:
                return

    async def _load_view(self) -> None:
        channel = self._channel
        start = channel.window_start(self._clock.now())
        metrics.reloads.labels("view").inc()
        try:
            snapshot = await self._reader.snapshot(channel.view, start)
        except (Retryable, Rejected):
            self._needs_view = True
            raise
        self._check_shape(snapshot)
        if channel.rows.is_loaded and channel.rows.epoch == snapshot.epoch:
            # In vain: somebody still speaks of an epoch that is over.
            self._quiet_until = self._clock.monotonic() + QUIET_SECONDS
        channel.load(snapshot, start)
        self._on_loaded()

    async def _load_lane(self, lane: int) -> None:
        channel = self._channel
        rows = channel.rows
        start = min(channel.oldest_since(self._clock.now()), rows.window_start)
        metrics.reloads.labels("lane").inc()
        found = await self._reader.rows_above(channel.view, lane, rows.versions[lane], start)
        if found.epoch != rows.epoch:
            await self._load_view()
            return
        self._check_shape(found)
        # Of older buckets than `start` nothing was read: what they had in between is not known here.
        rows.complete_above[lane] = max(rows.complete_above[lane], found.versions[lane])
        rows.load_lane(lane, found.versions[lane], found.rows)
        self._on_loaded()

    def _check_shape(self, found: ViewSnapshot) -> None:
        """Raises Retryable where the view has been defined anew: the catalogue will replace this channel."""
        if not self._channel.rows.is_same_shape(found.versions, found.rows):
            self._needs_view = True
            self._on_other_shape()
            raise Retryable(f"{found.view} has been defined anew")
