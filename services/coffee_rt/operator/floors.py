"""How many pods an autoscaler may not go below: pure. Up at once, down slowly.

The operator never scales a Deployment: it raises the autoscaler's minReplicas, within its maxReplicas, and
notes on the autoscaler what it set and what it found. While nothing is raised there is no note. Somebody
else's change of minReplicas (an upgrade of the chart, say) counts as the new one found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from coffee_rt.operator.contract import Autoscaler
from coffee_rt.operator.pipeline_spec import FloorSpec

TOLERANCE = 0.1
"""Pods needed may exceed the floor by this share before it is raised: at a boundary it would flap."""
NEED_MAX = 1e6
"""Pods beyond which nobody counts: keeps arithmetic finite when a rate is nearly nothing."""


@dataclass(frozen=True, slots=True)
class Descent:
    """The way down so far. Times on the caller's monotonic clock; kept in memory only: a new operator waits
    anew before it lowers anything."""

    enough_since: float | None = None
    """Since when fewer pods would have been enough."""
    lowered_at: float = -math.inf


@dataclass(frozen=True, slots=True)
class FloorPlan:
    """`floor` is what minReplicas is to be; `base` what it is without the operator."""

    floor: int
    base: int
    needed: int
    descent: Descent
    reason: str


def plan_floor(
    need: float, autoscaler: Autoscaler, spec: FloorSpec, descent: Descent, now: float
) -> FloorPlan:
    """The floor for a need of pods (a fraction is a pod not quite busy).

    Raised at once to the pods needed; lowered one pod at a time, the first only when fewer were enough for
    `lower_after_seconds` without a break, the next ones `lower_every_seconds` apart.
    """
    base = base_of(autoscaler)
    low, high = limits_of(autoscaler, spec)
    current = _clamp(autoscaler.replicas_min, low, high)
    needed = math.ceil(min(need, NEED_MAX))
    wanted = _clamp(needed, low, high)
    if current < wanted and need > current * (1 + TOLERANCE):
        return FloorPlan(wanted, base, needed, Descent(), "Raised")
    if wanted >= current:
        at_limit = needed > high
        reason = "AtMost" if at_limit else "Held" if current > low else "AtLeast"
        return FloorPlan(current, base, needed, Descent(None, descent.lowered_at), reason)
    since = now if descent.enough_since is None else descent.enough_since
    due = max(since + spec.lower_after_seconds, descent.lowered_at + spec.lower_every_seconds)
    if now < due:
        return FloorPlan(current, base, needed, Descent(since, descent.lowered_at), "Lowering")
    return FloorPlan(current - 1, base, needed, Descent(since, now), "Lowering")


def plan_unknown(autoscaler: Autoscaler, spec: FloorSpec, descent: Descent) -> FloorPlan:
    """What is needed can't be seen: the floor stays, within its limits."""
    low, high = limits_of(autoscaler, spec)
    current = _clamp(autoscaler.replicas_min, low, high)
    held = Descent(None, descent.lowered_at)
    return FloorPlan(current, base_of(autoscaler), 0, held, "Unknown")


def base_of(autoscaler: Autoscaler) -> int:
    """minReplicas without the operator."""
    is_ours = autoscaler.floor == autoscaler.replicas_min and autoscaler.base is not None
    return autoscaler.base if is_ours and autoscaler.base is not None else autoscaler.replicas_min


def limits_of(autoscaler: Autoscaler, spec: FloorSpec) -> tuple[int, int]:
    """Lowest and highest floor: the spec's, within what the autoscaler itself is told."""
    most = autoscaler.replicas_max
    high = most if spec.pods_max is None else min(spec.pods_max, most)
    base = min(base_of(autoscaler), most)
    low = base if spec.pods_min is None else max(spec.pods_min, base)
    # A limit above may not push the pods below what was there without us.
    high = max(high, base)
    return min(low, high), high


def is_due(plan: FloorPlan, autoscaler: Autoscaler) -> bool:
    """Whether the autoscaler must be written for this plan."""
    if plan.floor == plan.base:
        return autoscaler.floor is not None or autoscaler.replicas_min != plan.floor
    return (plan.floor, plan.floor, plan.base) != (
        autoscaler.replicas_min,
        autoscaler.floor,
        autoscaler.base,
    )


def worker_need(backlog_records: int, rate_per_pod: float, target_seconds: float) -> float:
    """Pods that store a backlog within the target, each at the measured rate."""
    if backlog_records <= 0:
        return 0.0
    return min(NEED_MAX, backlog_records / max(rate_per_pod * target_seconds, 1e-9))


def fanout_need(sessions: int, sessions_per_pod: int) -> float:
    """Pods that serve the sessions there are."""
    return sessions / sessions_per_pod


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))
