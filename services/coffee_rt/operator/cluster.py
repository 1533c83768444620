"""Kubernetes by lightkube: autoscalers, pods, statuses, events, the lease. A Cluster and a Leases.

The account is the pod's own, else that of KUBECONFIG. Whatever the API server refuses is Retryable with its
reason: a right that is missing, like a server that is away, is mended outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, cast

import httpx2
from lightkube import ApiError, AsyncClient
from lightkube.core.exceptions import ConfigError
from lightkube.generic_resource import create_namespaced_resource
from lightkube.models import autoscaling_v2, coordination_v1, core_v1
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources import apps_v1 as apps
from lightkube.resources import autoscaling_v2 as autoscaling
from lightkube.resources import coordination_v1 as coordination
from lightkube.resources import core_v1 as core
from lightkube.types import PatchType

from coffee_rt.errors import Retryable
from coffee_rt.operator.contract import (
    GROUP,
    VERSION,
    Autoscaler,
    CustomObject,
    Lease,
    ObjectRef,
    PodAddress,
    Workload,
)
from coffee_rt.runtime.settings import SettingsError

COMPONENT = "coffee-rt-operator"
FLOOR = f"{GROUP}/floor"
BASE = f"{GROUP}/floor-base"
"""Notes on an autoscaler: the minimum the operator set last, and the one it found."""
PORT = "http"
REQUEST_SECONDS_MAX = 5.0
_MISSING, _CONFLICT = 404, 409


class LightkubeCluster:
    """Owned by the wiring, used by all tasks of the operator; its loop's only."""

    def __init__(self, namespace: str = "") -> None:
        """Raises SettingsError where no cluster is configured. An empty namespace means the account's own."""
        try:
            self._client = AsyncClient(
                namespace=namespace or None,
                timeout=httpx2.Timeout(REQUEST_SECONDS_MAX),
                field_manager=COMPONENT,
            )
        except ConfigError as error:
            raise SettingsError(
                f"no cluster to speak to: {error}; run in a pod, or set KUBECONFIG"
            ) from None

    @property
    def namespace(self) -> str:
        return str(self._client.namespace)

    async def close(self) -> None:
        await self._client.close()

    async def read_object(self, plural: str, name: str) -> CustomObject | None:
        found = await self._get(_kind(plural), name)
        return None if found is None else parse_object(found)

    async def list_objects(self, plural: str) -> list[CustomObject]:
        with _mapped():
            return [parse_object(found) async for found in self._client.list(_kind(plural))]

    async def autoscaler(self, name: str) -> Autoscaler | None:
        found = await self._get(autoscaling.HorizontalPodAutoscaler, name)
        return None if found is None else _autoscaler(found)

    async def floored_autoscalers(self) -> list[Autoscaler]:
        with _mapped():
            found = self._client.list(autoscaling.HorizontalPodAutoscaler)
            every = [_autoscaler(one) async for one in found]
        return [one for one in every if one.floor is not None]

    async def set_floor(self, autoscaler: Autoscaler, floor: int, base: int | None) -> None:
        notes = {
            FLOOR: None if base is None else str(floor),
            BASE: None if base is None else str(base),
        }
        patch = {
            # The version makes it fail where somebody changed it since it was read.
            "metadata": {"resourceVersion": autoscaler.version, "annotations": notes},
            "spec": {"minReplicas": floor},
        }
        with _mapped():
            await self._client.patch(
                autoscaling.HorizontalPodAutoscaler,
                autoscaler.name,
                patch,
                patch_type=PatchType.MERGE,
            )

    async def workload(self, name: str) -> Workload | None:
        found = await self._get(apps.Deployment, name)
        if found is None:
            return None
        ready = found.status.readyReplicas if found.status else 0
        return Workload(name, ready or 0, dict(found.spec.selector.matchLabels or {}))

    async def running_pods(self, workload: Workload) -> list[PodAddress]:
        with _mapped():
            pods = self._client.list(core.Pod, labels=dict(workload.selector))
            return [address async for pod in pods if (address := _address(pod)) is not None]

    async def write_status(self, plural: str, name: str, status: dict[str, Any]) -> None:
        with _mapped():
            await self._client.patch(
                _kind(plural).Status, name, {"status": status}, patch_type=PatchType.MERGE
            )

    async def delete_object(self, plural: str, ref: ObjectRef) -> None:
        found = await self.read_object(plural, ref.name)
        if found is None or found.ref.uid != ref.uid:
            return
        with _mapped():
            await self._client.delete(_kind(plural), ref.name)

    async def add_event(
        self, ref: ObjectRef, kind: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None:
        now = datetime.now(UTC).replace(microsecond=0)
        event = core.Event(
            metadata=ObjectMeta(generateName=f"{ref.name[:200]}-", namespace=self.namespace),
            involvedObject=core_v1.ObjectReference(
                apiVersion=f"{GROUP}/{VERSION}",
                kind=ref.kind,
                name=ref.name,
                namespace=self.namespace,
                uid=ref.uid,
            ),
            type=kind,
            reason=reason,
            message=message[:1024],
            count=1,
            firstTimestamp=now,
            lastTimestamp=now,
            source=core_v1.EventSource(component=COMPONENT),
            reportingComponent=COMPONENT,
        )
        with _mapped():
            await self._client.create(event)

    async def lease(self, name: str) -> Lease | None:
        found = await self._get(coordination.Lease, name)
        if found is None:
            return None
        spec = found.spec or coordination_v1.LeaseSpec()
        return Lease(
            name,
            spec.holderIdentity or "",
            spec.leaseDurationSeconds or 0,
            found.metadata.resourceVersion or "",
            spec.leaseTransitions or 0,
        )

    async def create_lease(self, lease: Lease) -> bool:
        return await self._write_lease(lease, is_taken=True, is_new=True)

    async def replace_lease(self, lease: Lease, *, is_taken: bool) -> bool:
        return await self._write_lease(lease, is_taken=is_taken, is_new=False)

    async def _write_lease(self, lease: Lease, *, is_taken: bool, is_new: bool) -> bool:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec: dict[str, Any] = {
            "holderIdentity": lease.holder,
            "leaseDurationSeconds": lease.duration_seconds,
            "renewTime": now,
        }
        if is_taken:
            spec |= {"acquireTime": now, "leaseTransitions": lease.transitions + (not is_new)}
        try:
            if is_new:
                new = {"metadata": {"name": lease.name}, "spec": spec}
                await self._client.create(
                    cast(coordination.Lease, coordination.Lease.from_dict(new))
                )
            else:
                patch = {"metadata": {"resourceVersion": lease.version}, "spec": spec}
                await self._client.patch(
                    coordination.Lease, lease.name, patch, patch_type=PatchType.MERGE
                )
        except ApiError as error:
            if error.status.code == _CONFLICT:
                return False
            raise Retryable(_reason(error)) from error
        except httpx2.HTTPError as error:
            raise Retryable(_reason(error)) from error
        return True

    async def _get(self, kind: Any, name: str) -> Any:
        try:
            return await self._client.get(kind, name)
        except ApiError as error:
            if error.status.code == _MISSING:
                return None
            raise Retryable(_reason(error)) from error
        except httpx2.HTTPError as error:
            raise Retryable(_reason(error)) from error


def parse_object(raw: Any) -> CustomObject:
    """One of our objects, as lightkube or kopf hands it over: a mapping."""
    metadata = raw["metadata"]
    ref = ObjectRef(raw.get("kind", ""), metadata["name"], metadata["uid"])
    return CustomObject(
        ref=ref,
        created_at=metadata.get("creationTimestamp", ""),
        generation=metadata.get("generation", 0),
        spec=raw.get("spec") or {},
        status=raw.get("status") or {},
        is_leaving=bool(metadata.get("deletionTimestamp")),
    )


_KINDS = {
    plural: create_namespaced_resource(GROUP, VERSION, kind, plural)
    for kind, plural in {
        "OrderPipeline": "orderpipelines",
        "MetricView": "metricviews",
        "Redrive": "redrives",
        "Replay": "replays",
    }.items()
}


def _kind(plural: str) -> Any:
    return _KINDS[plural]


def _autoscaler(found: autoscaling_v2.HorizontalPodAutoscaler) -> Autoscaler:
    assert found.metadata is not None
    assert found.spec is not None
    notes = found.metadata.annotations or {}
    # Absent means 1 (the API server fills it in).
    replicas_min = found.spec.minReplicas
    return Autoscaler(
        name=str(found.metadata.name),
        replicas_min=1 if replicas_min is None else replicas_min,
        replicas_max=found.spec.maxReplicas,
        version=found.metadata.resourceVersion or "",
        floor=_number(notes.get(FLOOR)),
        base=_number(notes.get(BASE)),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _address(pod: core_v1.Pod) -> PodAddress | None:
    """None of a pod that is not running or is on its way out."""
    assert pod.metadata is not None
    status = pod.status
    if status is None or status.phase != "Running" or not status.podIP:
        return None
    if pod.metadata.deletionTimestamp is not None:
        return None
    for container in pod.spec.containers if pod.spec else ():
        for port in container.ports or ():
            if port.name == PORT:
                return PodAddress(str(pod.metadata.name), status.podIP, port.containerPort)
    return None


@contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except httpx2.HTTPError as error:  # ApiError is one too
        raise Retryable(_reason(error)) from error


def _reason(error: httpx2.HTTPError) -> str:
    # Only the sentence: httpx adds where to read about the status.
    sentence = str(error).partition("\n")[0]
    return f"Kubernetes: {sentence or type(error).__name__}"
