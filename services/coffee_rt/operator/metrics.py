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
