"""An installation whose autoscalers and operator act within seconds, and the objects that tests make in it."""

from __future__ import annotations

from typing import Any

from kube import CommandFailed, Json, Kube, wait_until

GROUP = "coffee-rt.dev/v1alpha1"
KINDS = {"OrderPipeline": "orp", "MetricView": "mv", "Redrive": "rdr", "Replay": "rpl"}
AT_ONCE = {
    "scaleUp": {
        "stabilizationWindowSeconds": 0,
        "policies": [{"type": "Pods", "value": 4, "periodSeconds": 5}],
    },
    "scaleDown": {
        "stabilizationWindowSeconds": 5,
        "policies": [{"type": "Pods", "value": 4, "periodSeconds": 5}],
    },
}
WORKERS_MAX = FANOUT_MAX = 3
SESSIONS_PER_POD = 4


def values() -> Json:
    """order-api scales on little CPU; worker and fanout by their floors alone; the others stay as they are."""
    return {
        "orderApi": _scaled(100, 50, 3),
        "worker": _scaled(100, 1000, WORKERS_MAX),
        "fanout": _scaled(100, 1000, FANOUT_MAX),
        "aggregator": {"autoscaling": {"enabled": False}, "replicas": 1},
        "queryApi": {"autoscaling": {"enabled": False}, "replicas": 1},
        "operator": {
            "settings": {"tendSeconds": 1, "statusSeconds": 2, "careSeconds": 5},
            "pipeline": {
                "spec": {
                    "workers": {"floor": _floor(targetSeconds=5, assumedRecordsPerSecond=20)},
                    "fanout": {"floor": _floor(sessionsPerPod=SESSIONS_PER_POD)},
                }
            },
        },
    }


def _scaled(millicores: int, percent: int, pods_max: int) -> Json:
    return {
        "resources": {"requests": {"cpu": f"{millicores}m"}},
        "autoscaling": {
            "minReplicas": 1,
            "maxReplicas": pods_max,
            "targetCPUUtilizationPercentage": percent,
            "behavior": AT_ONCE,
        },
    }


def _floor(**wishes: int) -> Json:
    return {"lowerAfterSeconds": 6, "lowerEverySeconds": 4, **wishes}


def make(kube: Kube, kind: str, name: str, **spec: Any) -> None:
    """Create an object, or change it to this spec. Raises CommandFailed with what the API server says."""
    metadata = {"name": name, "namespace": kube.namespace}
    kube.apply({"apiVersion": GROUP, "kind": kind, "metadata": metadata, "spec": spec})


def refusal(kube: Kube, kind: str, name: str = "wrong", **spec: Any) -> str:
    """What the API server says to a spec that it must not take."""
    try:
        make(kube, kind, name, **spec)
    except CommandFailed as error:
        return str(error)
    raise AssertionError(f"a {kind} of {spec} was taken")


def status_of(kube: Kube, kind: str, name: str) -> Json:
    """Empty where there is no object or nobody has seen it yet."""
    found = kube.find(KINDS[kind], name) or {}
    status: Json = found.get("status") or {}
    # What was said of an older spec does not count.
    generation = found.get("metadata", {}).get("generation")
    return status if status.get("observedGeneration") == generation else {}


def until_phase(kube: Kube, kind: str, name: str, phase: str, seconds_max: float = 90) -> Json:
    """The status, once it has this phase."""
    wait_until(
        lambda: status_of(kube, kind, name).get("phase") == phase,
        f"{kind} {name} is {phase}",
        seconds_max=seconds_max,
        last_words=lambda: kube.kubectl("describe", KINDS[kind], name) + kube.describe_trouble(),
    )
    return status_of(kube, kind, name)


def remove(kube: Kube, kind: str, name: str) -> None:
    """Delete an object and return when it is gone: its finalizer has done its work."""
    kube.kubectl("delete", KINDS[kind], name, "--timeout=60s")


def condition(status: Json, kind: str) -> Json:
    found: list[Json] = [one for one in status.get("conditions", ()) if one["type"] == kind]
    return found[0] if found else {}
