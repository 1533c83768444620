"""The page docs/reliability-report.md, from the verdicts of one run: good numbers and bad ones alike."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from coffee_rt.bench.stack import machine
from tests.chaos.verdict import Verdict

ROOT = Path(__file__).parents[2]

_HEAD = """# Reliability report

Written by `scripts/chaos --report`, not by hand. {date}; commit {commit}; {machine}; seed {seed}. Servers, processes,
proxies and the recorder shared that machine, with whatever else ran on it: the times are those of a busy small one.

Each line is one scenario. The real processes and servers run, every link between them through a proxy; a recorder
outside, which nothing hurts, posts orders (100 a second unless a scenario says otherwise) and writes down every answer.
The fault is made and healed; what is unknown is repeated under its key; then the notes are held against PostgreSQL, the
log, the views and the money. Waits are shorter than an installation's defaults (`QUICK` in
tests/chaos/platform.py) but where a fault says otherwise.

- **accepted**: orders answered 202. **stored**: of those, in PostgreSQL at the end. **lost**: not there.
  **double**: rows too many. **resolved**: orders whose outcome was unknown once and known at the end.
- **recovery**: seconds from the end of the fault until nothing in the log is older than a second and the last answer
  that was an error has come.
- **answered**, **p50**, **p99**: of orders first sent while the fault lasted: accepted at the first attempt, and how
  long these took. Those that failed at first are in "resolved", not in the latencies.
- **observer**: seconds from recovery until a browser that watched all the while over a WebSocket, through a proxy that is
  hurt too, shows what the database held then. At the end it must show every row of both views, and no version may go back.
- **after**: accepted at the first attempt in the seconds after recovery.
- A *negative control* takes a protection away and must lose orders: else the harness would not see a loss.

"""


def commit_of_the_code() -> str:
    """Asked before the first scenario: the page that is written after each is a change itself."""
    return _git("rev-parse", "--short=12", "HEAD") + (
        " with changes" if _git("status", "--porcelain", "--untracked-files=no") else ""
    )


def report_of(verdicts: Sequence[Verdict], seed: int, commit: str) -> str:
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    page = _HEAD.format(date=date, commit=commit, machine=machine(), seed=seed)
    promised = [verdict for verdict in verdicts if not verdict.negative_control]
    broken = [verdict for verdict in verdicts if not verdict.kept]
    page += (
        f"{len(verdicts)} scenarios. Without the negative controls: {_sum(promised, 'accepted')} orders accepted,"
        f" {_sum(promised, 'lost')} lost, {_sum(promised, 'duplicated')} double,"
        f" {_sum(promised, 'resolved')} unknown and then resolved.\n\n"
    )
    page += _table(verdicts)
    if broken:
        page += "\n## Broken\n\n"
        for verdict in broken:
            page += f"- {verdict.name}: {'; '.join(verdict.problems)}\n"
    figures = [verdict for verdict in verdicts if verdict.figures]
    if figures:
        page += "\n## Further figures\n\n"
        for verdict in figures:
            told = ", ".join(
                f"{name.replace('_', ' ')} {value:g}" for name, value in verdict.figures.items()
            )
            page += f"- {verdict.name}: {told}\n"
    return page


def _table(verdicts: Sequence[Verdict]) -> str:
    page = (
        "| scenario | fault | accepted | stored | lost | double | resolved | recovery s | observer s |"
        " answered % | p50 ms | p99 ms | after % | |\n"
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|\n"
    )
    for each in verdicts:
        outcome = "kept" if each.kept else "**broken**"
        if each.negative_control:
            outcome = "negative control: " + ("loss seen" if each.kept else "**no loss seen**")
        cells = (
            each.name,
            each.fault.replace("|", "/"),
            each.accepted,
            each.stored,
            each.lost,
            each.duplicated,
            each.resolved,
            each.recovery_seconds,
            _shown(each.observer_seconds),
            _shown(each.answered_percent),
            _shown(each.p50_ms),
            _shown(each.p99_ms),
            _shown(each.throughput_after_percent),
            outcome,
        )
        page += "| " + " | ".join(map(str, cells)) + " |\n"
    return page


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _sum(verdicts: Sequence[Verdict], field: str) -> int:
    return sum(int(getattr(verdict, field)) for verdict in verdicts)


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()
