"""Entries of a wire version this release can't read. They stay pending for one that can; meanwhile this
worker is not ready, so that a rollout that went backwards is seen.
"""

from __future__ import annotations

from collections.abc import Iterable

from coffee_rt.errors import Retryable
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import Clock
from coffee_rt.streams.contract import Delivery, LogKeeper, Position
from coffee_rt.worker import metrics

REVIEWED_MAX = 100
"""Entries looked up in one go; the rest in the next."""


class UnknownEntries:
    """Remembers them by position only. Shared by the lanes of one worker."""

    def __init__(
        self, keeper: LogKeeper, breaker: CircuitBreaker, clock: Clock, group: str, seconds: float
    ) -> None:
        self._keeper = keeper
        self._breaker = breaker
        self._clock = clock
        self._group = group
        self._seconds = seconds
        self._positions: set[Position] = set()

    @property
    def count(self) -> int:
        return len(self._positions)

    def note(self, unknown: Iterable[Delivery]) -> None:
        self._positions.update(
            Position(delivery.shard, delivery.entry_id, delivery.batch_id) for delivery in unknown
        )
        metrics.ENTRIES_UNKNOWN.set(self.count)

    async def review(self) -> None:
        """For ever: forget those that a newer release has stored. Not by reading them again: that would
        make them look busy, and nobody could claim them."""
        while True:
            await self._clock.sleep(self._seconds)
            for position in list(self._positions)[:REVIEWED_MAX]:
                try:
                    async with self._breaker:
                        is_settled = await self._keeper.is_settled(self._group, position)
                except Retryable:
                    break
                if is_settled:
                    self._positions.discard(position)
            metrics.ENTRIES_UNKNOWN.set(self.count)
