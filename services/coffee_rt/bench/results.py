"""What a measurement is, and how a run of them is written down."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
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


def write_markdown(figures: Iterable[Figure], path: Path, machine: str) -> None:
    """The figures as a page of documentation, the bad ones too."""
    lines = [
        "# Benchmarks",
        "",
        f"Made by `coffee-rt bench --markdown`, {datetime.now(UTC):%Y-%m-%d}, on {machine}; load generator",
        "and servers included. A ratio compares a value with the ceiling measured beside it in the same",
        "run: on a busy machine believe the ratios.",
        "",
        "| figure | what | value | ceiling | ratio | p50 / p99 ms | goal |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    notes = ["", "## Beside them", ""]
    for figure in figures:
        ceiling = "" if figure.ceiling is None else f"{figure.ceiling:,.6g} ({figure.ceiling_is})"
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        latency = "" if figure.p50_ms is None else f"{figure.p50_ms} / {figure.p99_ms}"
        lines.append(
            f"| `{figure.name}` | {figure.what} | {figure.value:,.6g} {figure.unit} | {ceiling} | {ratio} "
            f"| {latency} | {figure.goal} |"
        )
        extra = figure.baselines | figure.notes
        if extra:
            notes.append(f"- `{figure.name}`: `{msgspec.json.encode(extra).decode()}`")
    path.write_text("\n".join(lines + notes) + "\n")
