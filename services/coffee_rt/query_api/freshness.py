"""How far behind the log the database is: the number behind `X-Data-Lag-Ms`.

Kept up to date by one background task, so that a read costs the log nothing. Every order accepted longer
ago than the lag is inside what a read answers (reads include what is not folded yet).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from coffee_rt.errors import Retryable
from coffee_rt.runtime.clock import Clock
from coffee_rt.streams.contract import LogKeeper

REFRESH_SECONDS = 1.0
"""A lag is at most this much older than it says; smaller asks the log more often."""


class LagTracker:
    """Owned by the process; read by every request."""

    def __init__(
        self,
        log: LogKeeper,
        group: str,
        clock: Clock,
        replay_seconds: Callable[[], Awaitable[float | None]] | None = None,
    ) -> None:
        """`replay_seconds` says how far the replica may be behind the primary, None where it can't."""
        self._replay_seconds = replay_seconds
        self._replica_seconds: float | None = None
        self._log = log
        self._group = group
        self._clock = clock
        self._lag_seconds: float | None = None
        self._measured_at = clock.monotonic()

    @property
    def lag_ms(self) -> int | None:
        """None while the log has never answered. Grows by itself while the log is away."""
        if self._lag_seconds is None:
            return None
        unheard = self._clock.monotonic() - self._measured_at
        late = unheard if unheard > 3 * REFRESH_SECONDS else 0.0
        return round((self._lag_seconds + late) * 1000)

    @property
    def replica_lag_ms(self) -> int | None:
        """The same of what the replica answers; None while it is not known how far behind that is."""
        lag_ms, replica_seconds = self.lag_ms, self._replica_seconds
        if lag_ms is None or replica_seconds is None:
            return None
        return lag_ms + round(replica_seconds * 1000)

    async def refresh(self) -> None:
        """Ask once; the old value stays when the log is away."""
        try:
            shards = await self._log.backlog(self._group)
        except Retryable:
            return
        self._lag_seconds = max((shard.oldest_seconds for shard in shards), default=0.0)
        self._measured_at = self._clock.monotonic()

    async def _refresh_replica(self) -> None:
        if self._replay_seconds is None:
            return
        try:
            self._replica_seconds = await self._replay_seconds()
        except Retryable:
            self._replica_seconds = None

    async def run(self) -> None:
        """Refresh for ever; cancelled by its owner. A server that is slow to answer holds up only its own."""
        await asyncio.gather(self._repeat(self.refresh), self._repeat(self._refresh_replica))

    async def _repeat(self, refresh: Callable[[], Awaitable[None]]) -> None:
        while True:
            await refresh()
            await self._clock.sleep(REFRESH_SECONDS)
