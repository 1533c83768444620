"""What the operator asks of Kubernetes beside watching its own objects. `cluster.py` implements it.

Every method raises Retryable when the API server is away, refuses, or says that the object has changed
since it was read; nothing was done then, or it is harmless to do it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

GROUP = "coffee-rt.dev"
VERSION = "v1alpha1"


@dataclass(frozen=True, slots=True)
class Lease:
    """A coordination.k8s.io Lease. `version` changes with every write, by whomever."""

    name: str
    holder: str
    """Empty when nobody holds it."""
    duration_seconds: int
    version: str = ""
    transitions: int = 0


class Leases(Protocol):
    async def lease(self, name: str) -> Lease | None: ...

    async def create_lease(self, lease: Lease) -> bool:
        """False when somebody else was first."""

    async def replace_lease(self, lease: Lease, *, is_taken: bool) -> bool:
        """Write holder and duration, renewed now. False when it was changed since it was read."""


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """The object an event is about."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class CustomObject:
    """An object of ours. `spec` is as the API server checked and completed it."""

    ref: ObjectRef
    created_at: str
    generation: int
    spec: Mapping[str, Any]
    status: Mapping[str, Any]
    is_leaving: bool = False


@dataclass(frozen=True, slots=True)
class Autoscaler:
    """A HorizontalPodAutoscaler. `floor` and `base` are what the operator noted on it: the minimum it set
    last, and the one it found before; None where it set none."""

    name: str
    replicas_min: int
    replicas_max: int
    version: str
    floor: int | None = None
    base: int | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """A Deployment, as far as floors need it."""

    name: str
    pods_ready: int
    selector: dict[str, str]


@dataclass(frozen=True, slots=True)
class PodAddress:
    name: str
    host: str
    port: int


class Cluster(Protocol):
    """One namespace of a cluster. Shared by the tasks of the operator."""

    @property
    def namespace(self) -> str: ...

    async def read_object(self, plural: str, name: str) -> CustomObject | None: ...

    async def list_objects(self, plural: str) -> list[CustomObject]:
        """All of the namespace. Raises Retryable where the API server does not know this kind of ours."""

    async def autoscaler(self, name: str) -> Autoscaler | None: ...

    async def floored_autoscalers(self) -> list[Autoscaler]:
        """Those that carry a floor of the operator's."""

    async def set_floor(self, autoscaler: Autoscaler, floor: int, base: int | None) -> None:
        """Set minReplicas and note floor and base on it; base None removes the notes."""

    async def workload(self, name: str) -> Workload | None: ...

    async def running_pods(self, workload: Workload) -> list[PodAddress]:
        """Pods that run, with the address of their port `http`; also those not ready."""

    async def write_status(self, plural: str, name: str, status: dict[str, Any]) -> None:
        """Replace the parts of an object's status that are given; None removes one."""

    async def delete_object(self, plural: str, ref: ObjectRef) -> None:
        """Delete one of our objects; nothing where it is gone, or another has its name."""

    async def add_event(
        self, ref: ObjectRef, kind: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None: ...
