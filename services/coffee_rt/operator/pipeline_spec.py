"""An OrderPipeline's spec as the tender uses it. The API server has checked it and filled in the defaults;
what is missing here comes of a definition older than this release, and gets the same defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FloorSpec:
    """Limits of one floor. `pods_min` and `pods_max` narrow those of the autoscaler, never widen them."""

    is_enabled: bool = True
    pods_min: int | None = None
    pods_max: int | None = None
    lower_after_seconds: float = 120.0
    lower_every_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class WorkersSpec:
    deployment: str
    autoscaler: str | None = None
    floor: FloorSpec = FloorSpec()
    target_seconds: float = 60.0
    assumed_rate: float = 5000.0
    """Records a second a pod, until it was measured."""


@dataclass(frozen=True, slots=True)
class FanoutSpec:
    deployment: str
    autoscaler: str | None = None
    floor: FloorSpec = FloorSpec(lower_after_seconds=300.0, lower_every_seconds=60.0)
    sessions_per_pod: int = 5000


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    is_paused: bool = False
    days_ahead: int = 7
    retention_days: int = 400
    is_expired_dropped: bool = True
    compact_every_seconds: float = 3600.0
    compact_margin_seconds: float = 3600.0
    workers: WorkersSpec | None = None
    fanout: FanoutSpec | None = None


def parse_spec(spec: Mapping[str, Any]) -> PipelineSpec:
    """The spec of an object that the API server took."""
    partitions = spec.get("partitions") or {}
    ledger = spec.get("ledger") or {}
    return PipelineSpec(
        is_paused=bool(spec.get("paused", False)),
        days_ahead=partitions.get("daysAhead", 7),
        retention_days=partitions.get("retentionDays", 400),
        is_expired_dropped=partitions.get("expired", "Drop") == "Drop",
        compact_every_seconds=ledger.get("compactEverySeconds", 3600),
        compact_margin_seconds=ledger.get("marginSeconds", 3600),
        workers=_parse_workers(spec.get("workers")),
        fanout=_parse_fanout(spec.get("fanout")),
    )


def _parse_workers(given: Mapping[str, Any] | None) -> WorkersSpec | None:
    if given is None:
        return None
    floor = given.get("floor") or {}
    return WorkersSpec(
        given["deployment"],
        given.get("autoscaler"),
        _parse_floor(floor, 120, 30),
        floor.get("targetSeconds", 60),
        floor.get("assumedRecordsPerSecond", 5000),
    )


def _parse_fanout(given: Mapping[str, Any] | None) -> FanoutSpec | None:
    if given is None:
        return None
    floor = given.get("floor") or {}
    return FanoutSpec(
        given["deployment"],
        given.get("autoscaler"),
        _parse_floor(floor, 300, 60),
        floor.get("sessionsPerPod", 5000),
    )


def _parse_floor(floor: Mapping[str, Any], lower_after: float, lower_every: float) -> FloorSpec:
    return FloorSpec(
        floor.get("enabled", True),
        floor.get("min"),
        floor.get("max"),
        floor.get("lowerAfterSeconds", lower_after),
        floor.get("lowerEverySeconds", lower_every),
    )
