"""The tender: looks at the installation, plans, applies, and tells it in the status of its OrderPipeline.

One task of the leading operator. Level-triggered: each turn reads everything anew, and each step may be
repeated or done by two at once. What fails is told and tried again at the next turn; it never holds up the
other parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from coffee_rt.errors import Retryable
from coffee_rt.operator import drain_rate, floors, metrics
from coffee_rt.operator.care import Chores
from coffee_rt.operator.contract import Autoscaler, Cluster, CustomObject
from coffee_rt.operator.floors import Descent, FloorPlan
from coffee_rt.operator.observing import Look, Observer
from coffee_rt.operator.pipeline_spec import FloorSpec, PipelineSpec, parse_spec
from coffee_rt.operator.pipeline_status import (
    Tended,
    is_material,
    status_of,
    superseded_status,
)
from coffee_rt.operator.pipelines import PipelineChanges
from coffee_rt.runtime.clock import Clock
from coffee_rt.runtime.logs import Log

PLURAL = "orderpipelines"
EventKind = Literal["Normal", "Warning"]


class Tender:
    """Owned by the leading operator. Its memory (rate, descents) may be lost at any time: floors are on the
    autoscalers, the rate in the status."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        observer: Observer,
        chores: Chores,
        changes: PipelineChanges,
        clock: Clock,
        log: Log,
        tend_seconds: float,
        status_seconds: float,
    ) -> None:
        self._cluster = cluster
        self._observer = observer
        self._chores = chores
        self._changes = changes
        self._clock = clock
        self._log = log
        self._tend_seconds = tend_seconds
        self._status_seconds = status_seconds
        self._uid: str | None = None
        self._forget()

    def _forget(self) -> None:
        self._rate: float | None = None
        self._sample: drain_rate.DrainSample | None = None
        self._descents = {"workers": Descent(), "fanout": Descent()}
        self._had_imbalance = False

    async def run(self) -> None:
        """Turn after turn, for ever; at once when a spec changes."""
        while True:
            started_at = self._clock.monotonic()
            try:
                await self.turn()
            except Retryable as error:
                metrics.FAILURES.labels("kubernetes").inc()
                self._log.warning("nothing could be tended", reason=str(error))
            metrics.TEND_SECONDS.observe(self._clock.monotonic() - started_at)
            await self._changes.wait(self._tend_seconds)

    async def turn(self) -> None:
        """Raises Retryable where Kubernetes does not even tell what is wanted."""
        objects = [one for one in await self._cluster.list_objects(PLURAL) if not one.is_leaving]
        objects.sort(key=lambda one: (one.created_at, one.ref.name))
        if not objects:
            self._uid = None
            await self._chores.release()
            await self._undo_floors(set())
            return
        first, *others = objects
        for other in others:
            await self._supersede(other, first.ref.name)
        await self._tend(first)

    async def _tend(self, found: CustomObject) -> None:
        spec = parse_spec(found.spec)
        if self._uid != found.ref.uid:
            self._uid = found.ref.uid
            self._forget()
            # What a pod stores in a second is remembered over restarts.
            self._rate = found.status.get("drainRatePerPod")
        look = await self._observer.look(spec)
        faults: dict[str, str] = {}
        if not spec.is_paused and not look.faults.get("store"):
            done, faults = await self._chores.run(spec, found.generation)
            for reason, message in done:
                await self._add_event(found, "Normal", reason, message)
            if done:
                look = await self._observer.look(spec)
        self._measure(look)
        workers, fanout = self._plan_floors(spec, look)
        if not spec.is_paused:
            try:
                await self._apply_floors(found, look, workers, fanout)
            except Retryable as error:
                faults["cluster"] = str(error)
        imbalance = look.store.imbalance if look.store else None
        tended = Tended(
            look, workers, fanout, self._rate, faults, bool(imbalance) and self._had_imbalance
        )
        self._had_imbalance = bool(imbalance)
        await self._tell(found, spec, tended)

    def _measure(self, look: Look) -> None:
        if look.log is None or look.workers is None or look.workers.workload is None:
            self._sample = None
            return
        before = self._sample
        self._sample = drain_rate.sample(
            look.at, look.log.backlogs, look.workers.workload.pods_ready
        )
        measured = drain_rate.measure(before, self._sample)
        if measured is not None and before is not None:
            self._rate = drain_rate.smooth(self._rate, measured, look.at - before.at)
            metrics.DRAIN_RATE.set(self._rate)

    def _plan_floors(
        self, spec: PipelineSpec, look: Look
    ) -> tuple[FloorPlan | None, FloorPlan | None]:
        workers = fanout = None
        if spec.workers and look.workers and look.workers.autoscaler:
            need = None
            if look.log is not None:
                rate = self._rate or spec.workers.assumed_rate
                need = floors.worker_need(look.log.records, rate, spec.workers.target_seconds)
            workers = self._plan_floor(
                "workers", need, look.workers.autoscaler, spec.workers.floor, look.at
            )
        if spec.fanout and look.fanout and look.fanout.autoscaler:
            need = None
            if look.sessions is not None and not look.sessions.pods_silent:
                need = floors.fanout_need(look.sessions.sessions, spec.fanout.sessions_per_pod)
            fanout = self._plan_floor(
                "fanout", need, look.fanout.autoscaler, spec.fanout.floor, look.at
            )
        return workers, fanout

    def _plan_floor(
        self, name: str, need: float | None, autoscaler: Autoscaler, spec: FloorSpec, now: float
    ) -> FloorPlan | None:
        if not spec.is_enabled:
            return None
        descent = self._descents[name]
        if need is None:
            plan = floors.plan_unknown(autoscaler, spec, descent)
        else:
            plan = floors.plan_floor(need, autoscaler, spec, descent, now)
        self._descents[name] = plan.descent
        metrics.FLOOR_PODS.labels(name).set(plan.floor)
        metrics.NEEDED_PODS.labels(name).set(plan.needed)
        return plan

    async def _apply_floors(
        self, found: CustomObject, look: Look, workers: FloorPlan | None, fanout: FloorPlan | None
    ) -> None:
        governed = set()
        for name, plan, pods in (
            ("workers", workers, look.workers),
            ("fanout", fanout, look.fanout),
        ):
            if plan is None or pods is None or pods.autoscaler is None:
                continue
            governed.add(pods.autoscaler.name)
            if not floors.is_due(plan, pods.autoscaler):
                continue
            base = None if plan.floor == plan.base else plan.base
            await self._cluster.set_floor(pods.autoscaler, plan.floor, base)
            metrics.ACTIONS.labels("floor").inc()
            await self._tell_floor(found, name, pods.autoscaler.replicas_min, plan)
        if not look.faults.get("cluster"):
            await self._undo_floors(governed)

    async def _tell_floor(
        self, found: CustomObject, name: str, before: int, plan: FloorPlan
    ) -> None:
        if before == plan.floor:
            return
        reason = "FloorRaised" if plan.floor > before else "FloorLowered"
        message = f"at least {plan.floor} {name} pods (before: {before}; needed: {plan.needed})"
        self._log.info("floor set", process=name, floor=plan.floor, before=before)
        await self._add_event(found, "Normal", reason, message)

    async def _undo_floors(self, governed: set[str]) -> None:
        """Autoscalers with a floor that no spec asks for any longer get their own minimum back."""
        for autoscaler in await self._cluster.floored_autoscalers():
            if autoscaler.name in governed:
                continue
            base = floors.base_of(autoscaler)
            await self._cluster.set_floor(autoscaler, base, None)
            metrics.ACTIONS.labels("floor").inc()
            self._log.info("floor removed", autoscaler=autoscaler.name, pods_min=base)

    async def _tell(self, found: CustomObject, spec: PipelineSpec, tended: Tended) -> None:
        status = status_of(spec, tended, found.generation, found.status)
        await self._tell_degraded(found, status["conditions"])
        if is_material(found.status, status, self._status_seconds):
            await self._cluster.write_status(PLURAL, found.ref.name, status)
            metrics.ACTIONS.labels("status").inc()

    async def _tell_degraded(
        self, found: CustomObject, conditions: Sequence[dict[str, str]]
    ) -> None:
        """An event where the condition is another than the one written last."""
        now = next(one for one in conditions if one["type"] == "Degraded")
        before = next(
            (one for one in found.status.get("conditions") or () if one["type"] == "Degraded"),
            {"status": "False", "reason": "NothingWrong"},
        )
        is_degraded = now["status"] == "True"
        metrics.DEGRADED.set(is_degraded)
        if (before["status"], before["reason"]) == (now["status"], now["reason"]):
            return
        if is_degraded:
            self._log.warning("degraded", reason=now["reason"], message=now["message"])
            await self._add_event(found, "Warning", now["reason"], now["message"])
        else:
            self._log.info("no longer degraded")
            await self._add_event(found, "Normal", "Recovered", f"no longer {before['reason']}")

    async def _supersede(self, other: CustomObject, by: str) -> None:
        status = superseded_status(other.generation, by, other.status, self._clock.now())
        if is_material(other.status, status, self._status_seconds):
            await self._cluster.write_status(PLURAL, other.ref.name, status)

    async def _add_event(
        self, found: CustomObject, kind: EventKind, reason: str, message: str
    ) -> None:
        try:
            await self._cluster.add_event(found.ref, kind, reason, message)
        except Retryable as error:
            # An event is news, not state: the status has what matters.
            self._log.warning("an event could not be told", about=reason, reason=str(error))
