"""Tends the MetricView objects: makes their views, watches the aggregators fill them, keeps the statuses.

Level by level: each turn compares objects with the catalogue, so what was missed while the operator or a
server was away is done in the next. Deleting holds the same lock as a turn, and an object once removed is
never made again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from coffee_rt.domain.views import ViewDefinition
from coffee_rt.errors import Rejected, Retryable
from coffee_rt.operator import metric_view_plan as plan
from coffee_rt.operator import metrics
from coffee_rt.operator.contract import Cluster, CustomObject
from coffee_rt.operator.object_status import Condition, is_told, merge_conditions, reason_of
from coffee_rt.operator.pipelines import PipelineChanges
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import Clock
from coffee_rt.runtime.logs import Log
from coffee_rt.store.view_contract import ViewCatalogueStore, ViewRepairer, ViewState

PLURAL = "metricviews"
BUSY_SECONDS = 2.0
"""Between looks while something is being filled or waits."""
REST_SECONDS = 15.0
"""Between looks when every view is live."""


@dataclass(slots=True)
class _Watch:
    """A backfill as this operator has seen it."""

    ends: list[int]
    first: tuple[float, int]
    filled_to: int
    moved_at: float


class MetricViews:
    """One task runs it; `remove` may be called by another."""

    def __init__(
        self,
        *,
        changes: PipelineChanges,
        catalogue: ViewCatalogueStore,
        repairer: ViewRepairer,
        database: CircuitBreaker,
        cluster: Cluster,
        clock: Clock,
        log: Log,
    ) -> None:
        self.changes = changes
        self._catalogue = catalogue
        self._repairer = repairer
        self._database = database
        self._cluster = cluster
        self._clock = clock
        self._log = log
        self._lock = asyncio.Lock()
        self._removed: set[str] = set()
        self._watches: dict[str, _Watch] = {}

    async def run(self) -> None:
        """Turn after turn, for ever; at once when a spec changes."""
        while True:
            is_calm = await self.turn()
            await self.changes.wait(REST_SECONDS if is_calm else BUSY_SECONDS)

    async def turn(self) -> bool:
        """Tend every object; whether there is nothing left to wait for."""
        try:
            objects = await self._cluster.list_objects(PLURAL)
        except Retryable as error:
            metrics.FAILURES.labels("kubernetes").inc()
            self._log.warning("metric views can't be read", reason=str(error))
            return False
        self._removed &= {found.ref.uid for found in objects}
        return all([await self.tend(found) for found in objects])

    async def tend(self, found: CustomObject) -> bool:
        """Do for one object what there is to do, and say it; whether nothing is left to wait for."""
        async with self._lock:
            if found.is_leaving or found.ref.uid in self._removed:
                return True
            phase, conditions, rest = await self._settle(found)
        status = {"phase": phase, "view": plan.view_name(found.ref.name, found.spec), **rest}
        is_written = await self._tell(found, status, conditions)
        return is_written and phase in ("Live", "Invalid", "Conflict")

    async def _settle(self, found: CustomObject) -> tuple[str, list[Condition], dict[str, Any]]:
        owner = plan.owner_of(self._cluster.namespace, found.ref.name)
        nothing: dict[str, Any] = {"backfill": None, "epoch": None}
        try:
            definition = plan.read_definition(found.ref.name, found.spec)
        except Rejected as error:
            return *plan.invalid(error), nothing
        try:
            states = await self._ensure(definition, owner, bool(found.spec.get("adopt")))
            progress = await self._progress(definition, states)
        except Retryable as error:
            metrics.FAILURES.labels("postgresql").inc()
            return *plan.waiting(str(error)), {}
        except Rejected as error:
            # It went between two looks, or this release is too old for it.
            return *plan.waiting(error.detail), nothing
        phase, conditions = plan.describe(definition, owner, states, progress)
        current = [s for s in states if s.definition.name == definition.name and s.is_current]
        is_mine = phase != "Conflict" and bool(current)
        shown = None if progress is None else progress.to_status()
        epoch = current[0].epoch if is_mine else None
        return phase, conditions, {"backfill": shown, "epoch": epoch}

    async def _ensure(
        self, definition: ViewDefinition, owner: str, is_adopting: bool
    ) -> list[ViewState]:
        async with self._database:
            states = await self._catalogue.views()
            step = plan.plan_view(definition, owner, states, is_adopting=is_adopting)
            if step is plan.Step.ENSURE:
                await self._catalogue.ensure_views([definition], owner, is_adopting=is_adopting)
                self._log.info("view made or changed", view=definition.name, owner=owner)
                states = await self._catalogue.views()
        return states

    async def _progress(
        self, definition: ViewDefinition, states: Sequence[ViewState]
    ) -> plan.FillProgress | None:
        state = plan.filling(definition, states)
        for internal in self._watches.keys() - {each.internal for each in states}:
            del self._watches[internal]
        if state is None or state.backfilled_to is None:
            return None
        now = self._clock.now()
        watch = self._watches.get(state.internal)
        if watch is None:
            async with self._database:
                chunks = await self._repairer.plan_chunks(state.internal, None, None)
            ends = [chunk.end for chunk in chunks]
            done = sum(end <= state.backfilled_to for end in ends)
            watch = _Watch(ends, (now, done), state.backfilled_to, now)
            self._watches[state.internal] = watch
        if watch.filled_to != state.backfilled_to:
            watch.filled_to, watch.moved_at = state.backfilled_to, now
        return plan.fill_progress(watch.ends, watch.filled_to, watch.first, watch.moved_at, now)

    async def _tell(
        self, found: CustomObject, status: dict[str, Any], conditions: list[Condition]
    ) -> bool:
        """Write the status where it differs from what is there; whether it is written."""
        merged = merge_conditions(
            found.status.get("conditions") or (), conditions, found.generation, self._clock.now()
        )
        status = {**status, "observedGeneration": found.generation, "conditions": merged}
        if is_told(found.status, status):
            return True
        ready = conditions[0]
        try:
            await self._cluster.write_status(PLURAL, found.ref.name, status)
            if reason_of(found.status, "Ready") != ready.reason:
                is_good = ready.reason in ("Live", "Filling", "Replacing")
                kind: Literal["Normal", "Warning"] = "Normal" if is_good else "Warning"
                await self._cluster.add_event(found.ref, kind, ready.reason, ready.message)
        except Retryable as error:
            self._log.warning("status is not written", view=found.ref.name, reason=str(error))
            return False
        return True

    async def remove(self, found: CustomObject) -> str:
        """Let go of a deleted object's view as its policy says; in words. Raises Retryable."""
        owner = plan.owner_of(self._cluster.namespace, found.ref.name)
        is_drop = found.spec.get("deletionPolicy") == "Drop"
        async with self._lock:
            async with self._database:
                states = await self._catalogue.views()
                names = sorted({s.definition.name for s in states if s.owner == owner})
                for name in names:
                    if is_drop:
                        with suppress(Rejected):
                            await self._catalogue.drop_view(name, owner)
                    else:
                        await self._catalogue.release_view(name, owner)
            self._removed.add(found.ref.uid)
        if not names:
            return "it had no view"
        done = (
            "dropped with its rows" if is_drop else "kept and maintained; it belongs to nobody now"
        )
        message = f"{', '.join(names)}: {done}"
        self._log.info("metric view deleted", object=found.ref.name, what=message)
        with suppress(Retryable):
            reason = "Dropped" if is_drop else "Kept"
            await self._cluster.add_event(found.ref, "Normal", reason, message)
        return message
