"""Fills the history of views that are new or changed, chunk by chunk, while orders flow.

Progress is kept with the view after each chunk, so a restart (or another instance) goes on where this one
stopped; a chunk done twice is the same chunk. On a promoted PostgreSQL it goes on from what that one has,
never from what was done on the lost one. A replacement is compared with the orders before it takes the
place of the view it replaces.
"""

from __future__ import annotations

from typing import Protocol

from coffee_rt.aggregator import metrics
from coffee_rt.aggregator.lanes import LaneShare
from coffee_rt.aggregator.publishing import Publisher
from coffee_rt.errors import Rejected, Retryable
from coffee_rt.runtime.bars import bar_of
from coffee_rt.runtime.breaker import CircuitBreaker, backoff_seconds
from coffee_rt.runtime.clock import Clock
from coffee_rt.runtime.logs import Log
from coffee_rt.store.view_contract import Chunk, ViewCatalogueStore, ViewRepairer, ViewState

LOOK_SECONDS = 1.0
"""Between looks for views to fill."""
LOG_SECONDS = 5.0
"""Between two lines of progress."""
COMPARISONS_MAX = 3
"""Rounds of comparing a replacement and rebuilding what differs."""


class Progress(Protocol):
    """Shows how far a backfill is."""

    def __call__(self, view: str, done: int, total: int) -> None: ...


class Backfiller:
    """Fills what belongs to this instance. One task runs it; cancelled between or in a chunk it is safe."""

    def __init__(
        self,
        *,
        catalogue: ViewCatalogueStore,
        repairer: ViewRepairer,
        publisher: Publisher,
        share: LaneShare,
        database: CircuitBreaker,
        clock: Clock,
        log: Log,
        pause_share: float = 1.0,
        progress: Progress | None = None,
    ) -> None:
        self._catalogue = catalogue
        self._repairer = repairer
        self._publisher = publisher
        self._share = share
        self._database = database
        self._clock = clock
        self._log = log
        self._pause_share = pause_share
        self._progress = progress or self._log_progress
        self._logged_at = float("-inf")

    async def run(self) -> None:
        """Fill views for ever, as they come."""
        failures = 0
        while True:
            try:
                await self.fill_all()
                failures = 0
            except Retryable as error:
                failures += 1
                self._log.warning("backfill waits for PostgreSQL", reason=str(error))
                await self._clock.sleep(backoff_seconds(failures))
            await self._clock.sleep(LOOK_SECONDS)

    async def fill_all(self) -> list[str]:
        """Fill what is unfilled and belongs to this instance; which views that were."""
        filled: list[str] = []
        while (state := await self._next()) is not None:
            try:
                await self.fill(state)
                filled.append(state.internal)
            except Rejected as error:
                self._log.warning("view went while it was filled", reason=str(error))
        return filled

    async def _next(self) -> ViewState | None:
        """An unfilled view, replacements first: with one, the view it replaces needs no history. Also a
        replacement that is filled: whoever filled it may have died before the exchange."""
        async with self._database:
            states = await self._catalogue.views()
        for state in states:
            is_wanted = state.backfilled_to is not None or not state.is_current
            if is_wanted and self._share.is_mine(f"fill/{state.internal}"):
                return state
        return None

    async def fill(self, state: ViewState) -> None:
        """Fill one view from where it is. Raises Retryable; progress up to then is kept."""
        view = state.internal
        if state.backfilled_to is not None:
            await self._rebuild_from(state, state.backfilled_to)
        if not state.is_current:
            await self._compare(view)
        async with self._database:
            await self._repairer.mark_backfilled(view, None, epoch=state.epoch)
            if not state.is_current:
                await self._catalogue.make_current(view)
        self._log.info("backfill is complete", view=view)
        await self._publisher.publish_catalogue()

    async def _rebuild_from(self, state: ViewState, start: int) -> None:
        """Every chunk from a time on, noting after each how far it is."""
        view = state.internal
        async with self._database:
            chunks = await self._repairer.plan_chunks(view, start, None)
        self._log.info("backfill begins", view=view, chunks=len(chunks))
        for done, chunk in enumerate(chunks):
            self._progress(view, done, len(chunks))
            metrics.CHUNKS_LEFT.set(len(chunks) - done)
            await self._rebuild(chunk)
            async with self._database:
                await self._repairer.mark_backfilled(view, chunk.end, epoch=state.epoch)
        metrics.CHUNKS_LEFT.set(0)
        self._progress(view, len(chunks), len(chunks))

    async def _rebuild(self, chunk: Chunk) -> None:
        started_at = self._clock.monotonic()
        async with self._database:
            await self._repairer.rebuild_chunk(chunk)
        # Folds waited for this chunk: let them catch up before the next.
        await self._clock.sleep((self._clock.monotonic() - started_at) * self._pause_share)

    async def _compare(self, view: str) -> None:
        """Audit the whole replacement; rebuild what differs."""
        for _ in range(COMPARISONS_MAX):
            differing = 0
            async with self._database:
                chunks = await self._repairer.plan_chunks(view, None, None)
            for chunk in chunks:
                async with self._database:
                    differences = await self._repairer.audit_chunk(chunk)
                if differences:
                    differing += len(differences)
                    self._log.error("replacement differs", view=view, first=str(differences[0]))
                    await self._rebuild(chunk)
            if not differing:
                return
        raise Retryable(f"{view} still differs from the orders after {COMPARISONS_MAX} comparisons")

    def _log_progress(self, view: str, done: int, total: int) -> None:
        now = self._clock.monotonic()
        if now - self._logged_at >= LOG_SECONDS and done < total:
            self._logged_at = now
            self._log.info("backfill", view=view, progress=bar_of(done, total))
