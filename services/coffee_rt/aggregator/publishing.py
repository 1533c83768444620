"""What folds tell the world, after their commit: changed rows, and now and then every lane's version.

Nothing here is needed for correctness: a publication that fails is counted and forgotten, because the
beacon tells of it; folding never waits for Redis longer than one attempt.
"""

from __future__ import annotations

from collections.abc import Sequence

from coffee_rt.aggregator import metrics
from coffee_rt.channels.contract import Channels
from coffee_rt.channels.messages import Beacon, LaneState, ViewChange, encode
from coffee_rt.errors import Retryable
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.store.view_contract import Fold, LaneVersion


class Publisher:
    """Publishes through a breaker. Shared by the tasks of the process."""

    def __init__(self, channels: Channels, breaker: CircuitBreaker) -> None:
        self._channels = channels
        self._breaker = breaker

    async def publish_folds(self, view: str, folds: Sequence[Fold]) -> None:
        """What folds of one view changed, lane by lane, in one round trip."""
        if folds:
            await self._publish(f"view:{view}", *(encode(change_of(fold)) for fold in folds))

    async def publish_beacon(
        self, at_ms: int, epochs: dict[str, str], lanes: list[LaneVersion]
    ) -> None:
        await self._publish("beacon", encode(beacon_of(at_ms, epochs, lanes)))

    async def publish_catalogue(self) -> None:
        await self._publish("catalogue", b"{}")

    async def _publish(self, topic: str, *bodies: bytes) -> None:
        try:
            async with self._breaker:
                await self._channels.publish(topic, *bodies)
        except Retryable:
            metrics.FAILURES.labels("redis").inc()


def change_of(fold: Fold) -> ViewChange:
    return ViewChange(
        view=fold.view,
        epoch=fold.epoch,
        lane=fold.lane,
        version=fold.version,
        previous=fold.previous,
        floor=fold.floor,
        rows=list(fold.rows),
        newest_at_ms=fold.newest_at_ms,
        reload=fold.is_reload,
    )


def beacon_of(at_ms: int, epochs: dict[str, str], lanes: list[LaneVersion]) -> Beacon:
    states: dict[str, list[LaneState]] = {name: [] for name in epochs}
    for lane in sorted(lanes, key=lambda lane: (lane.view, lane.lane)):
        states[lane.view].append(LaneState(lane.version, lane.floor))
    return Beacon(at_ms, epochs, states)
