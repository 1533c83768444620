"""The figures as one HTML file with plots: no script, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from io import StringIO
from pathlib import Path

import msgspec

from coffee_rt.bench.results import Figure

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: right; padding: .3rem .6rem; }
th:first-child, td:first-child, .left { text-align: left; } tr + tr { border-top: 1px solid #ccc; }
svg { max-width: 100%; height: auto; } code { font-size: .85em; }
"""


def write_html(figures: Sequence[Figure], path: Path, machine: str) -> None:
    """Write the report. Without matplotlib (the extra `bench`) it has the table but no plots, and says so."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    path.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>coffee-rt bench</title>"
        f"<style>{STYLE}</style><h1>coffee-rt bench</h1><p>{escape(machine)}, {now}. Value and ceiling "
        f"of a row were measured in turns in the same run.</p>"
        f"{_table(figures)}{_plots(figures)}{_notes(figures)}"
    )


def _table(figures: Sequence[Figure]) -> str:
    rows = []
    for figure in figures:
        ceiling = "" if figure.ceiling is None else f"{figure.ceiling:,.6g}"
        latency = "" if figure.p50_ms is None else f"{figure.p50_ms} / {figure.p99_ms}"
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        rows.append(
            f"<tr><td>{escape(figure.name)}<td class=left>{escape(figure.what)}"
            f"<td>{figure.value:,.6g} {escape(figure.unit)}<td>{ceiling}<td>{ratio}<td>{latency}"
            f"<td class=left>{escape(figure.goal)}"
        )
    head = "".join(
        f"<th>{name}"
        for name in ("figure", "what", "value", "ceiling", "ratio", "p50/p99 ms", "goal")
    )
    return f"<table><tr>{head}{''.join(rows)}</table>"


def _plots(figures: Sequence[Figure]) -> str:
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return "<p>No plots: install coffee-rt[bench] for them.</p>"
    made = []
    for unit in sorted({figure.unit for figure in figures if figure.ceiling}):
        shown = [figure for figure in figures if figure.unit == unit and figure.ceiling]
        canvas = Canvas(figsize=(8, 1 + 0.6 * len(shown)))
        axes = canvas.subplots()
        places = list(range(len(shown)))
        axes.barh(
            [place - 0.2 for place in places], [f.value for f in shown], 0.4, label="coffee-rt"
        )
        axes.barh(
            [place + 0.2 for place in places],
            [f.ceiling or 0 for f in shown],
            0.4,
            label="ceiling of the same run",
            color="#bbb",
        )
        axes.set_yticks(places, [f.name for f in shown])
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        axes.legend()
        canvas.tight_layout()
        text = StringIO()
        canvas.savefig(text, format="svg")
        made.append(text.getvalue()[text.getvalue().index("<svg") :])
    return "".join(f"<figure>{plot}</figure>" for plot in made)


def _notes(figures: Sequence[Figure]) -> str:
    items = []
    for figure in figures:
        extra = {"ceiling is": figure.ceiling_is, **figure.baselines, **figure.notes}
        text = msgspec.json.format(msgspec.json.encode(extra), indent=0).decode()
        items.append(f"<dt>{escape(figure.name)}<dd><code>{escape(text)}</code>")
    return f"<h2>Notes</h2><dl>{''.join(items)}</dl>"
