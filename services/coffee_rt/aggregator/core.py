"""The fold loop: woken by commits, it folds the lanes that are this instance's and publishes what changed.

Three tasks share one `FoldLoop`: `listen` marks the lanes that a commit touched, `fold` works the marks off
in rounds (at most one every `interval_seconds`, so that pokes coalesce), `tell` says every second that this
instance lives and what all versions are. A lost poke costs `poll_seconds`, nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from coffee_rt.aggregator import metrics
from coffee_rt.aggregator.lanes import LaneShare
from coffee_rt.aggregator.publishing import Publisher
from coffee_rt.channels.contract import Channels
from coffee_rt.channels.messages import Stored, decode_stored
from coffee_rt.errors import Retryable
from coffee_rt.runtime.breaker import CircuitBreaker, backoff_seconds
from coffee_rt.runtime.clock import Clock
from coffee_rt.runtime.logs import Log
from coffee_rt.store.contract import BadData
from coffee_rt.store.view_contract import Fold, LaneKey, ViewCatalogueStore, ViewFolder, ViewState

SETTLE_SECONDS = 0.2
"""How long a commit may wait for its lanes' floors before an extra beacon tells of them. A floor stays
behind while an older transaction runs; shorter means more beacons under load."""
BACKOFF_SECONDS_MAX = 2.0
"""Longest wait after PostgreSQL failed a round. The breaker waits longer; this bounds the time after it."""


@dataclass(frozen=True, slots=True)
class FoldLimits:
    """See AggregatorSettings."""

    interval_seconds: float = 0.015
    poll_seconds: float = 0.5
    beacon_seconds: float = 1.0
    alive_seconds: float = 2.0
    folds_max: int = 4
    deltas_max: int = 5000
    rows_max: int = 500


class FoldLoop:
    """Folds for one instance. Its tasks run until cancelled; a cancelled fold commits or does not."""

    def __init__(
        self,
        *,
        instance: str,
        folder: ViewFolder,
        catalogue: ViewCatalogueStore,
        channels: Channels,
        publisher: Publisher,
        share: LaneShare,
        database: CircuitBreaker,
        clock: Clock,
        log: Log,
        limits: FoldLimits,
    ) -> None:
        self._instance = instance
        self._folder = folder
        self._catalogue = catalogue
        self._channels = channels
        self._publisher = publisher
        self._share = share
        self._database = database
        self._clock = clock
        self._log = log
        self._limits = limits
        self._views: dict[str, ViewState] = {}
        self._marked: set[LaneKey] = set()
        self._awaited: dict[tuple[str, int], tuple[int, float]] = {}
        self._wake = asyncio.Event()
        self._must_poll = True
        self._polled_at = float("-inf")
        self._permits = asyncio.Semaphore(limits.folds_max)

    async def listen(self) -> None:
        """Mark what commits touch. A gap in the messages asks for a poll."""
        async with self._channels.subscribe("stored", "catalogue") as subscription:
            async for message in subscription:
                if message is None or message[0] == "catalogue":
                    self._must_poll = True
                else:
                    try:
                        self.mark(decode_stored(message[1]))
                    except (msgspec.DecodeError, UnicodeDecodeError):
                        # Anybody who can publish could send it; what it meant to say, a poll finds.
                        self._must_poll = True
                self._wake.set()

    def mark(self, stored: Stored) -> None:
        """Remember the lanes of a commit, for all views of the names (a view and its replacement)."""
        now = self._clock.monotonic()
        for internal, state in self._views.items():
            lanes = stored.lanes.get(state.definition.name, ())
            for lane in lanes:
                key = LaneKey(internal, lane)
                # A replacement may have fewer lanes than the view whose lanes the message names.
                if 0 <= lane < state.definition.lanes and self._share.is_my_lane(key):
                    self._marked.add(key)
                    if state.is_current:
                        since = self._awaited.get((state.definition.name, lane), (0, now))[1]
                        self._awaited[state.definition.name, lane] = (stored.xid, since)

    async def fold(self) -> None:
        """Rounds for ever: at once after a poke, at latest after `poll_seconds`."""
        failures = 0
        while True:
            started_at = self._clock.monotonic()
            try:
                await self.fold_round()
                failures = 0
            except Retryable as error:
                metrics.FAILURES.labels("postgresql").inc()
                self._log.warning("folding waits for PostgreSQL", reason=str(error))
                self._must_poll = True
                failures += 1
                await self._clock.sleep(0.05 + backoff_seconds(failures, cap=BACKOFF_SECONDS_MAX))
            rest = started_at + self._limits.interval_seconds - self._clock.monotonic()
            if rest > 0:
                await self._clock.sleep(rest)
            await self._wait()

    async def _wait(self) -> None:
        """Return when there is work. Wakes in vain (others' lanes, what the last round took along) don't."""
        while not (self._marked or self._must_poll):
            left = self._polled_at + self._limits.poll_seconds - self._clock.monotonic()
            if left <= 0:
                return
            self._wake.clear()
            woken = asyncio.ensure_future(self._wake.wait())
            slept = asyncio.ensure_future(self._clock.sleep(left))
            try:
                await asyncio.wait({woken, slept}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                woken.cancel()
                slept.cancel()

    async def fold_round(self) -> int:
        """Fold what is marked, then what a poll finds when one is due; how many folds were committed.
        Raises Retryable; what was not folded stays marked."""
        folds = await self._fold_marked()
        now = self._clock.monotonic()
        if self._must_poll or now - self._polled_at >= self._limits.poll_seconds:
            await self._poll(now)
            folds += await self._fold_marked()
        await self._settle()
        return folds

    async def _fold_marked(self) -> int:
        marked, self._marked = self._marked, set()
        lanes: dict[str, list[int]] = {}
        for key in marked:
            lanes.setdefault(key.view, []).append(key.lane)
        results = await asyncio.gather(
            *(self._fold_view(view, numbers) for view, numbers in lanes.items()),
            return_exceptions=True,
        )
        failed: BaseException | None = None
        folds = 0
        for (view, numbers), result in zip(lanes.items(), results, strict=True):
            if isinstance(result, BaseException):
                self._marked.update(LaneKey(view, number) for number in numbers)
                failed = result
            else:
                folds += result
        if failed is not None:
            raise failed
        return folds

    async def _poll(self, now: float) -> None:
        async with self._database:
            states = await self._catalogue.views()
            works = await self._folder.waiting_lanes()
        self._must_poll = False
        self._polled_at = now
        self._views = {state.internal: state for state in states}
        mine, stolen = self._share.choose(works, now)
        metrics.WAITING_DELTAS.set(sum(work.waiting_rows for work in works))
        metrics.WAITING_SECONDS.set(max((work.waiting_seconds for work in works), default=0.0))
        metrics.LANES_STOLEN.inc(len(stolen))
        self._marked |= mine | stolen

    async def _fold_view(self, view: str, lanes: list[int]) -> int:
        """Fold marked lanes of a view in one transaction and publish them; how many were folded."""
        async with self._permits:
            try:
                folds = await self._fold(view, lanes)
            except BadData:
                # One bad delta must not hold the other lanes back: each alone, the bad one put away.
                folds = []
                for lane in lanes:
                    try:
                        folds += await self._fold(view, [lane])
                    except BadData as error:
                        await self._put_away(LaneKey(view, lane), error)
        await self._tell(view, folds)
        return len(folds)

    async def _fold(self, view: str, lanes: list[int]) -> list[Fold]:
        async with self._database:
            with metrics.FOLD_SECONDS.time():
                return await self._folder.fold_lanes(
                    view, lanes, self._limits.deltas_max, self._limits.rows_max
                )

    async def _tell(self, view: str, folds: list[Fold]) -> None:
        """Count committed folds and publish them, unless their view is a replacement nobody reads yet."""
        for fold in folds:
            if not fold.is_drained:
                self._marked.add(LaneKey(view, fold.lane))
            metrics.FOLDS.labels(fold.view).inc()
            metrics.DELTAS_FOLDED.labels(fold.view).inc(fold.folded_deltas)
            metrics.DELTAS_EXPIRED.labels(fold.view).inc(fold.expired_deltas)
        state = self._views.get(view)
        if state is not None and state.is_current:
            changed = [fold for fold in folds if fold.version > fold.previous]
            self._told_floors({(fold.view, fold.lane): fold.floor for fold in changed})
            await self._publisher.publish_folds(state.definition.name, changed)

    async def _put_away(self, key: LaneKey, error: BadData) -> None:
        async with self._database:
            number = await self._folder.quarantine(key, self._limits.deltas_max)
        metrics.DELTAS_QUARANTINED.inc(number)
        self._log.error(
            "deltas put away", view=key.view, lane=key.lane, deltas=number, reason=str(error)
        )
        self._marked.add(key)

    def _told_floors(self, floors: Mapping[tuple[str, int], int]) -> None:
        """Whoever waits for a higher floor than is told now begins to wait anew: a lane that is folded all
        the time tells its floor all the time, and needs no beacon."""
        now = self._clock.monotonic()
        for lane in self._awaited.keys() & floors.keys():
            xid = self._awaited.pop(lane)[0]
            if xid >= floors[lane]:
                self._awaited[lane] = (xid, now)

    async def _settle(self) -> None:
        """Tell floors early when a commit of a while ago still waits for one: whoever asked to be
        answered when the order is visible waits for that."""
        now = self._clock.monotonic()
        if any(now - since >= SETTLE_SECONDS for _, since in self._awaited.values()):
            await self.publish_beacon()

    async def publish_beacon(self) -> None:
        """Publish all lanes' newest versions. Raises Retryable when PostgreSQL is away."""
        async with self._database:
            epochs, lanes = await self._folder.lane_versions()
        floors = {(lane.view, lane.lane): lane.floor for lane in lanes}
        for lane in self._awaited.keys() - floors.keys():
            del self._awaited[lane]  # Of a view that is gone.
        self._told_floors(floors)
        await self._publisher.publish_beacon(int(self._clock.now() * 1000), epochs, lanes)

    async def tell(self) -> None:
        """Heartbeat and beacon for ever. Every instance sends beacons: they repeat each other harmlessly,
        and none has to be elected."""
        while True:
            try:
                await self.tell_once()
            except Retryable:
                metrics.FAILURES.labels("postgresql").inc()
            await self._clock.sleep(self._limits.beacon_seconds)

    async def tell_once(self) -> None:
        async with self._database:
            members = await self._folder.announce(self._instance, self._limits.alive_seconds)
        self._share.set_members(members)
        metrics.INSTANCES.set(len(members))
        await self.publish_beacon()

    async def withdraw(self) -> None:
        """Leave the lanes to the others, at the drain."""
        async with self._database:
            await self._folder.withdraw(self._instance)
