"""Declares Prometheus metrics, and keeps the catalogue of all of them.

Every name starts with coffee_rt_, has a help text that says what to do when it is bad, and labels from a
closed list (never an id). Declared once at import, in each package's `metrics.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

SECONDS_BUCKETS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.02,
    0.035,
    0.05,
    0.09,
    0.15,
    0.3,
    0.6,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)
"""Bounds for latencies: dense around the promised ones (22, 35, 45 and 90 ms)."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as documentation shows it."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]


_catalogue: dict[str, Metric] = {}


def counter(name: str, help: str, labels: Sequence[str] = ()) -> Counter:  # noqa: A002
    """A count of events; its name ends in _total."""
    if not name.endswith("_total"):
        raise ValueError(f"the counter {name} must end in _total")
    _declare(name, "counter", help, labels)
    return Counter(name, help, labels)


def gauge(name: str, help: str, labels: Sequence[str] = ()) -> Gauge:  # noqa: A002
    """A value that rises and falls."""
    _declare(name, "gauge", help, labels)
    return Gauge(name, help, labels)


def histogram(
    name: str,
    help: str,  # noqa: A002
    labels: Sequence[str] = (),
    buckets: Sequence[float] = SECONDS_BUCKETS,
) -> Histogram:
    """A distribution, by default of seconds."""
    _declare(name, "histogram", help, labels)
    return Histogram(name, help, labels, buckets=buckets)


def catalogue() -> list[Metric]:
    """All metrics declared by the modules imported so far, by name."""
    return [_catalogue[name] for name in sorted(_catalogue)]


def exposition() -> bytes:
    """All values in Prometheus's text format (CONTENT_TYPE)."""
    return generate_latest(REGISTRY)


def _declare(name: str, kind: str, help_text: str, labels: Sequence[str]) -> None:
    if not name.startswith("coffee_rt_"):
        raise ValueError(f"the metric {name} must start with coffee_rt_")
    if len(help_text) < 10:
        raise ValueError(f"the metric {name} needs a help text")
    _catalogue[name] = Metric(name, kind, help_text, tuple(labels))
