"""How far a long command is: bars where standard error is a terminal, plain lines where it is not.

Standard error, because standard output is for the result. The drawing library is only loaded for a terminal:
processes take `bar_of` from here, too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_SECONDS = 5.0
"""Between two lines about the same thing: a log of hours stays readable."""


class Bars(Protocol):
    """Made by `drawn_bars`, usable while its context is open."""

    def show(self, label: str, done: int, total: int, unit: str = "chunks") -> None:
        """Say how far a label is; it is known from its first step on."""


class DrawnBars:
    """A bar for each label, on a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def show(self, label: str, done: int, total: int, unit: str = "chunks") -> None:
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label, total=total, unit=unit)
        self._progress.update(self._tasks[label], completed=done, total=total)


class PlainLines:
    """A line for each label when it is done, and every few seconds until then."""

    def __init__(self, file: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._now = now
        self._told_at: dict[str, float] = {}
        self._finished: set[str] = set()

    def show(self, label: str, done: int, total: int, unit: str = "chunks") -> None:
        now = self._now()
        told_at = self._told_at.setdefault(label, now)
        is_finished = done >= total
        if label in self._finished if is_finished else now - told_at < LINE_SECONDS:
            return
        self._told_at[label] = now
        if is_finished:
            self._finished.add(label)
        print(f"{label}: {bar_of(done, total, unit=unit)}", file=self._file, flush=True)


@contextmanager
def drawn_bars() -> Iterator[Bars]:
    """Progress on standard error, as what it is can show it."""
    if not sys.stderr.isatty():
        yield PlainLines(sys.stderr)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield DrawnBars(progress)


def bar_of(done: int, total: int, width: int = 20, unit: str = "chunks") -> str:
    """A progress bar for a line of text; nothing to do is done."""
    filled = width * done // total if total else width
    return f"[{'#' * filled}{'.' * (width - filled)}] {done} of {total} {unit}"
