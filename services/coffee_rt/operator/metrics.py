"""Metrics of the operator."""

from __future__ import annotations

from coffee_rt.runtime import metrics

LEADING = metrics.gauge(
    "coffee_rt_operator_leading_ratio",
    "1 while this operator is the one that works. 0 everywhere: nothing is tended; look at the Lease.",
)
FAILURES = metrics.counter(
    "coffee_rt_operator_failures_total",
    "Calls that failed and are tried again, by dependency (kubernetes, postgresql, redis, pods).",
    ("dependency",),
)
FLOOR_PODS = metrics.gauge(
    "coffee_rt_operator_floor_pods",
    "Fewest pods as set on the autoscaler, by process. At the autoscaler's maximum for long: raise that.",
    ("process",),
)
NEEDED_PODS = metrics.gauge(
    "coffee_rt_operator_needed_pods",
    "Pods needed at the last look, before limits, by process. Above the floor for long: a limit is too low.",
    ("process",),
)
DRAIN_RATE = metrics.gauge(
    "coffee_rt_operator_drain_rate_records",
    "Records a second that a worker pod stores, as measured under a backlog. Falling: look at PostgreSQL.",
)
DEGRADED = metrics.gauge(
    "coffee_rt_operator_degraded_ratio",
    "1 while the OrderPipeline is degraded; its condition Degraded says why.",
)
ACTIONS = metrics.counter(
    "coffee_rt_operator_actions_total",
    "Changes made, by action (floor, partitions, retention, compaction, status).",
    ("action",),
)
TEND_SECONDS = metrics.histogram(
    "coffee_rt_operator_tend_seconds",
    "Time of one turn of the tender. Near the pause between turns: Kubernetes or a server answers slowly.",
)
