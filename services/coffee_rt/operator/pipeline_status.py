"""The status of an OrderPipeline from what was seen and planned: pure.

Nothing unknown is told as 0: a value that could not be seen is left out. A status is written when something
other than a number changed, and for numbers only now and then, so that a busy log makes no busy API server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from coffee_rt.operator.floors import FloorPlan
from coffee_rt.operator.object_status import Condition, instant_text, merge_conditions
from coffee_rt.operator.observing import Look, Pods
from coffee_rt.operator.pipeline_spec import FanoutSpec, PipelineSpec, WorkersSpec
from coffee_rt.store.contract import PartitionState

DAY_MS = 86_400_000
NUMBER_SHARE = 0.1
"""Share by which a number must differ to be worth a write."""
NUMBERS = (
    "backlogRecords",
    "backlogSeconds",
    "freshnessSeconds",
    "drainRatePerPod",
    "sessions",
)


@dataclass(frozen=True, slots=True)
class Tended:
    """One look with what came of it."""

    look: Look
    workers: FloorPlan | None = None
    fanout: FloorPlan | None = None
    rate: float | None = None
    faults: Mapping[str, str] | None = None
    """Of what was to be done, beside those of the look; by part (log, store, cluster)."""
    is_imbalance_sure: bool = False
    """It was there at the look before too: two servers are asked one after the other."""


_FAULTS = {
    "log": ("LogUnavailable", "the log can't be read"),
    "store": ("DatabaseUnavailable", "the database can't be used"),
    "cluster": ("ClusterUnavailable", "Kubernetes refuses"),
}


def conditions_of(spec: PipelineSpec, tended: Tended) -> list[Condition]:
    """Ready, Draining and Degraded."""
    degraded = degraded_of(spec, tended)
    if spec.is_paused:
        ready = Condition("Ready", "False", "Paused", "nothing is tended while spec.paused is set")
    elif degraded.status == "True":
        ready = Condition("Ready", "False", degraded.reason, degraded.message)
    else:
        ready = Condition("Ready", "True", "Tended")
    return [ready, _draining(spec, tended), degraded]


def degraded_of(spec: PipelineSpec, tended: Tended) -> Condition:
    """The first thing that is wrong, gravest first."""
    look = tended.look
    faults = {**look.faults, **(tended.faults or {})}
    imbalance = look.store.imbalance if look.store else None
    if imbalance and tended.is_imbalance_sure:
        reason = "RecordsMissing" if imbalance > 0 else "CountSetBack"
        message = f"a shard is {abs(imbalance)} records off: coffee-rt audit names them"
        return Condition("Degraded", "True", reason, message)
    for part, (reason, sentence) in _FAULTS.items():
        if faults.get(part):
            return Condition("Degraded", "True", reason, f"{sentence}: {faults[part]}")
    if look.store is not None and ahead_days(look.store.partitions, look.now) < 1:
        message = "tomorrow's orders have no partition"
        return Condition("Degraded", "True", "PartitionsShort", message)
    for name, part_spec, pods in (
        ("workers", spec.workers, look.workers),
        ("fanout", spec.fanout, look.fanout),
    ):
        if problem := _missing(name, part_spec, pods):
            return problem
    return Condition("Degraded", "False", "NothingWrong")


def _missing(
    name: str, spec: WorkersSpec | FanoutSpec | None, pods: Pods | None
) -> Condition | None:
    if spec is None or pods is None:
        return None
    if pods.workload is None:
        message = f"there is no Deployment {spec.deployment} ({name})"
        return Condition("Degraded", "True", "DeploymentMissing", message)
    if spec.floor.is_enabled and spec.autoscaler and pods.autoscaler is None:
        message = f"there is no HorizontalPodAutoscaler {spec.autoscaler} ({name})"
        return Condition("Degraded", "True", "AutoscalerMissing", message)
    return None


def _draining(spec: PipelineSpec, tended: Tended) -> Condition:
    plan, log = tended.workers, tended.look.log
    if plan is not None and plan.floor > plan.base:
        message = f"at least {plan.floor} worker pods, until the backlog is stored"
        return Condition("Draining", "True", "FloorRaised", message)
    target = spec.workers.target_seconds if spec.workers else None
    if log is not None and target is not None and log.seconds > target:
        return Condition(
            "Draining", "True", "BacklogOld", f"an order has waited longer than {target:g} s"
        )
    return Condition("Draining", "False", "BacklogYoung")


def status_of(
    spec: PipelineSpec, tended: Tended, generation: int, previous: Mapping[str, Any]
) -> dict[str, Any]:
    """The status to write: every field, None for what is not known."""
    look = tended.look
    log, store = look.log, look.store
    ages = [log.seconds if log else None, store.waiting_seconds if store else None]
    fresh = [age for age in ages if age is not None]
    is_fresh_known = len(fresh) == len(ages)
    return {
        "observedGeneration": generation,
        "observedAt": instant_text(look.now),
        "backlogRecords": log.records if log else None,
        "backlogSeconds": round(log.seconds, 1) if log else None,
        "freshnessSeconds": round(max(fresh), 1) if is_fresh_known else None,
        "conservationImbalance": store.imbalance if store else None,
        "drainRatePerPod": None if tended.rate is None else round(tended.rate, 1),
        "sessions": look.sessions.sessions if look.sessions else None,
        "partitions": _partitions(store.partitions, store.detached, look.now) if store else None,
        "floors": {"workers": _floor(tended.workers), "fanout": _floor(tended.fanout)},
        "conditions": merge_conditions(
            previous.get("conditions") or (), conditions_of(spec, tended), generation, look.now
        ),
    }


def superseded_status(
    generation: int, by: str, previous: Mapping[str, Any], now: float
) -> dict[str, Any]:
    """Of an object that is not tended because an older one is."""
    message = f"only the oldest OrderPipeline of a namespace is tended, which is {by}"
    conditions = [
        Condition("Ready", "False", "Superseded", message),
        Condition("Draining", "False", "Superseded"),
        Condition("Degraded", "True", "Superseded", message),
    ]
    known = previous.get("conditions") or ()
    return {
        "observedGeneration": generation,
        "observedAt": instant_text(now),
        "conditions": merge_conditions(known, conditions, generation, now),
    }


def is_material(
    previous: Mapping[str, Any], status: Mapping[str, Any], number_seconds: float
) -> bool:
    """Whether a status is worth a write over the one that is there."""
    if _facts(previous) != _facts(status):
        return True
    if _seconds_between(previous.get("observedAt"), status["observedAt"]) < number_seconds:
        return False
    return any(_differs(previous.get(name), status.get(name)) for name in NUMBERS)


def _facts(status: Mapping[str, Any]) -> Any:
    """What is told of at once. Messages are not: some carry a number of seconds."""
    floors = status.get("floors") or {}
    partitions = status.get("partitions") or {}
    return (
        status.get("observedGeneration"),
        status.get("conservationImbalance"),
        {name: value for name, value in partitions.items() if value is not None},
        [
            (one.get("type"), one.get("status"), one.get("reason"))
            for one in status.get("conditions") or ()
        ],
        [
            (floor.get("floor"), floor.get("base"), floor.get("reason")) if floor else None
            for floor in (floors.get("workers"), floors.get("fanout"))
        ],
        [status.get(name) is None for name in NUMBERS],
    )


def _differs(old: Any, new: Any) -> bool:
    if old is None or new is None:
        return old is not new
    return bool(abs(new - old) > NUMBER_SHARE * max(abs(old), abs(new)))


def ahead_days(partitions: Sequence[PartitionState], now: float) -> int:
    """Whole days after today that have a partition, without a break."""
    starts = {partition.start_ms for partition in partitions}
    today = int(now * 1000) // DAY_MS * DAY_MS
    days = 0
    while today + (days + 1) * DAY_MS in starts:
        days += 1
    return days if today in starts else 0


def _partitions(partitions: Sequence[PartitionState], detached: int, now: float) -> dict[str, Any]:
    oldest = min((partition.start_ms for partition in partitions), default=None)
    return {
        "count": len(partitions),
        "aheadDays": ahead_days(partitions, now),
        "oldest": None if oldest is None else instant_text(oldest / 1000)[:10],
        "detached": detached,
    }


def _floor(plan: FloorPlan | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    return {
        "floor": plan.floor,
        "base": plan.base,
        "needed": plan.needed,
        "reason": plan.reason,
    }


def _seconds_between(before: Any, after: str) -> float:
    if not isinstance(before, str):
        return float("inf")
    try:
        span = datetime.fromisoformat(after) - datetime.fromisoformat(before)
    except ValueError:
        return float("inf")
    return abs(span.total_seconds())
