"""The objects of one namespace in memory, as the operator's Cluster gives them: for tests without a server.

Faults are injected through `fault_hook`, called with the name of each call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Literal

from coffee_rt.operator.contract import (
    Autoscaler,
    CustomObject,
    ObjectRef,
    PodAddress,
    Workload,
)

KINDS = {"metricviews": "MetricView", "redrives": "Redrive", "replays": "Replay"}


@dataclass
class MemoryCluster:
    """A Cluster of custom objects only: there are no pods, and no autoscalers."""

    namespace: str = "shop"
    objects: dict[tuple[str, str], CustomObject] = field(default_factory=dict)
    events: list[tuple[str, str, str]] = field(default_factory=list)
    """(object, reason, message)."""
    fault_hook: Callable[[str], None] | None = None
    _uids: count[int] = field(default_factory=lambda: count(1))

    def put(self, plural: str, name: str, spec: Mapping[str, Any]) -> CustomObject:
        """Create an object, or change its spec."""
        known = self.objects.get((plural, name))
        if known is not None:
            made = replace(known, spec=spec, generation=known.generation + 1)
        else:
            uid = f"uid-{next(self._uids)}"
            made = CustomObject(ObjectRef(KINDS[plural], name, uid), uid, 1, spec, {})
        self.objects[plural, name] = made
        return made

    def mark_leaving(self, plural: str, name: str) -> CustomObject:
        """Delete an object that has a finalizer."""
        leaving = replace(self.objects[plural, name], is_leaving=True)
        self.objects[plural, name] = leaving
        return leaving

    def status(self, plural: str, name: str) -> Mapping[str, Any]:
        return self.objects[plural, name].status

    async def read_object(self, plural: str, name: str) -> CustomObject | None:
        self._reach("read")
        return self.objects.get((plural, name))

    async def list_objects(self, plural: str) -> list[CustomObject]:
        self._reach("list")
        return [found for (kind, _), found in self.objects.items() if kind == plural]

    async def write_status(self, plural: str, name: str, status: dict[str, Any]) -> None:
        self._reach("write")
        found = self.objects[plural, name]
        merged = _merged(found.status, status)
        self.objects[plural, name] = replace(found, status=merged)

    async def delete_object(self, plural: str, ref: ObjectRef) -> None:
        self._reach("delete")
        found = self.objects.get((plural, ref.name))
        if found is not None and found.ref.uid == ref.uid:
            del self.objects[plural, ref.name]

    async def add_event(
        self, ref: ObjectRef, kind: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None:
        self._reach("event")
        self.events.append((ref.name, reason, message))

    async def autoscaler(self, name: str) -> Autoscaler | None:
        return None

    async def floored_autoscalers(self) -> list[Autoscaler]:
        return []

    async def set_floor(self, autoscaler: Autoscaler, floor: int, base: int | None) -> None:
        raise AssertionError("there are no autoscalers")

    async def workload(self, name: str) -> Workload | None:
        return None

    async def running_pods(self, workload: Workload) -> list[PodAddress]:
        return []

    def _reach(self, call: str) -> None:
        if self.fault_hook is not None:
            self.fault_hook(call)


def _merged(before: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON merge patch: None removes."""
    merged = dict(before)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            old = merged.get(key)
            merged[key] = _merged(old if isinstance(old, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged
