"""What a measurement is, and how a run of them is written down."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec


class Figure(msgspec.Struct, omit_defaults=True):
    """One named measurement. `ratio` is value / ceiling, or ceiling / value where less is better."""

    name: str
    what: str
    value: float
    unit: str
    ceiling: float | None = None
    ceiling_is: str = ""
    ratio: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    baselines: dict[str, float] = {}
    notes: dict[str, Any] = {}
    goal: str = ""


def with_ratio(figure: Figure) -> Figure:
    """The figure with its ratio worked out from value and ceiling."""
    if figure.ceiling and figure.value:
        figure.ratio = round(figure.value / figure.ceiling, 3)
    return figure


def percentile(ordered: list[float], fraction: float) -> float:
    """The value below which `fraction` of the sorted values lie (nearest rank); 0 for none."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def write_json(figures: Iterable[Figure], path: Path) -> None:
    """One object: name -> value, unit, ceiling, ratio, p50_ms, p99_ms, ..."""
    document = {figure.name: msgspec.to_builtins(figure) for figure in figures}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
