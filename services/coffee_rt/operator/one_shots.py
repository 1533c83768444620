"""Runs objects that describe one piece of work: one at a time, oldest first, to its end, and then no more.

The work itself is restartable and says so to `report`; what was reported last is where another operator goes
on. An end is written until it is written, whatever the API server does, because work that is done must not
begin again. Finished objects go after their `ttlSecondsAfterFinished`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from coffee_rt.errors import Rejected, Retryable
from coffee_rt.operator import metrics
from coffee_rt.operator.contract import Cluster, CustomObject
from coffee_rt.operator.object_status import Condition, instant_text, merge_conditions
from coffee_rt.operator.pipelines import PipelineChanges
from coffee_rt.runtime.breaker import backoff_seconds
from coffee_rt.runtime.clock import Clock
from coffee_rt.runtime.logs import Log

LOOK_SECONDS = 5.0
"""Between looks for work and for objects whose time is over."""
REPORT_SECONDS_MIN = 1.0
"""Least time between two reports of one object's progress."""
BACKOFF_SECONDS_MAX = 15.0


class Abandoned(Exception):
    """The object was deleted while it was worked on."""


@dataclass(frozen=True, slots=True)
class End:
    """How a piece of work ended well."""

    status: dict[str, Any]
    message: str


Report = Callable[[dict[str, Any], str], Awaitable[None]]
"""Says where the work is: status fields and a sentence. Raises Abandoned when the object is gone."""
Perform = Callable[[CustomObject, Report], Awaitable[End]]
"""Does the work of an object from where its status is. Raises Retryable: again from the last report; and
Rejected: it can never be done."""


def is_finished(status: Mapping[str, Any]) -> bool:
    return status.get("phase") in ("Complete", "Failed")


def is_expired(found: CustomObject, now: float) -> bool:
    """Whether a finished object has been there for as long as it asks to be."""
    seconds, completed_at = (
        found.spec.get("ttlSecondsAfterFinished"),
        found.status.get("completedAt"),
    )
    if seconds is None or completed_at is None:
        return False
    return now - datetime.fromisoformat(str(completed_at)).timestamp() >= float(seconds)


class OneShots:
    """One task runs it, for one kind."""

    def __init__(
        self,
        plural: str,
        perform: Perform,
        *,
        changes: PipelineChanges,
        cluster: Cluster,
        clock: Clock,
        log: Log,
    ) -> None:
        self.changes = changes
        self._plural = plural
        self._perform = perform
        self._cluster = cluster
        self._clock = clock
        self._log = log

    async def run(self) -> None:
        """Turn after turn, for ever; at once when there is something new."""
        while True:
            await self.turn()
            await self.changes.wait(LOOK_SECONDS)

    async def turn(self) -> None:
        """Work off all objects there are."""
        try:
            objects = await self._cluster.list_objects(self._plural)
        except Retryable as error:
            metrics.FAILURES.labels("kubernetes").inc()
            self._log.warning("objects can't be read", kind=self._plural, reason=str(error))
            return
        for found in sorted(objects, key=lambda one: (one.created_at, one.ref.name)):
            if found.is_leaving:
                continue
            if not is_finished(found.status):
                work = _Work(found, self._plural, self._cluster, self._clock, self._log)
                await work.run(self._perform)
            elif is_expired(found, self._clock.now()):
                await self._expire(found)

    async def _expire(self, found: CustomObject) -> None:
        try:
            await self._cluster.delete_object(self._plural, found.ref)
        except Retryable as error:
            self._log.warning("not removed", object=found.ref.name, reason=str(error))


class _Work:
    """One object's work, from where its status is to its end."""

    def __init__(
        self, found: CustomObject, plural: str, cluster: Cluster, clock: Clock, log: Log
    ) -> None:
        self._found = found
        self._ref = found.ref
        self._plural = plural
        self._cluster = cluster
        self._clock = clock
        self._log = log
        self._status: dict[str, Any] = dict(found.status)
        self._reported_at = float("-inf")

    async def run(self, perform: Perform) -> None:
        """Returns when the object is finished, or gone."""
        attempt = 0
        while True:
            try:
                end = await perform(replace(self._found, status=self._status), self._report)
            except Abandoned:
                self._log.info("work abandoned: its object is gone", object=self._ref.name)
                return
            except Rejected as error:
                place = f"{error.place}: " if error.place else ""
                await self._finish("Failed", {}, f"{place}{error.detail}")
                return
            except Retryable as error:
                attempt += 1
                self._log.warning("work waits", object=self._ref.name, reason=str(error))
                if not await self._is_wanted():
                    return
                # Said when it can be said.
                with suppress(Retryable):
                    waiting = Condition("Complete", "False", "Waiting", str(error))
                    await self._write("Running", {}, waiting)
                await self._back_off(attempt)
            else:
                await self._finish("Complete", end.status, end.message)
                return

    async def _back_off(self, attempt: int) -> None:
        await self._clock.sleep(0.5 + backoff_seconds(attempt, cap=BACKOFF_SECONDS_MAX))

    async def _is_wanted(self) -> bool:
        """Whether the very object is still there, as far as one can know: work goes on without Kubernetes."""
        try:
            now = await self._cluster.read_object(self._plural, self._ref.name)
        except Retryable:
            return True
        return now is not None and now.ref.uid == self._ref.uid and not now.is_leaving

    async def _report(self, status: dict[str, Any], message: str) -> None:
        """See Report."""
        self._status |= status
        now = self._clock.monotonic()
        if now - self._reported_at < REPORT_SECONDS_MIN:
            return
        self._reported_at = now
        if not await self._is_wanted():
            raise Abandoned
        try:
            await self._write("Running", {}, Condition("Complete", "False", "Running", message))
        except Retryable as error:
            # A later report says it all.
            metrics.FAILURES.labels("kubernetes").inc()
            self._log.warning("progress is not told", object=self._ref.name, reason=str(error))

    async def _finish(self, phase: str, status: dict[str, Any], message: str) -> None:
        self._log.info("work ended", object=self._ref.name, phase=phase, what=message)
        is_good = phase == "Complete"
        status = {**status, "completedAt": instant_text(self._clock.now())}
        condition = Condition("Complete", "True" if is_good else "False", phase, message)
        attempt = 0
        while await self._is_wanted():
            try:
                await self._write(phase, status, condition)
                break
            except Retryable as error:
                attempt += 1
                self._log.warning("end is not told", object=self._ref.name, reason=str(error))
                await self._back_off(attempt)
        with suppress(Retryable):
            kind: Literal["Normal", "Warning"] = "Normal" if is_good else "Warning"
            await self._cluster.add_event(self._ref, kind, phase, message)

    async def _write(self, phase: str, status: dict[str, Any], condition: Condition) -> None:
        now = self._clock.now()
        conditions = self._status.get("conditions") or ()
        self._status |= {
            **status,
            "phase": phase,
            "message": condition.message,
            "observedGeneration": self._found.generation,
            "startedAt": self._status.get("startedAt") or instant_text(now),
            "conditions": merge_conditions(conditions, [condition], self._found.generation, now),
        }
        await self._cluster.write_status(self._plural, self._ref.name, self._status)
