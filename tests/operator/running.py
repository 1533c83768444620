"""The operator as a process of its own, with real stores and a real API server."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any, TypeVar

T = TypeVar("T")

END_SECONDS_MAX = 30.0


class RunningOperator:
    """One process. `environ` is all it knows of the world."""

    def __init__(self, name: str, folder: Path, environ: dict[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self._process = Popen(
                [sys.executable, "-m", "coffee_rt", "operator"],
                env={**os.environ, **environ, "COFFEE_RT_INSTANCE": name},
                stdout=log,
                stderr=log,
            )

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit code."""
        self._process.send_signal(number)
        return self._process.wait(END_SECONDS_MAX)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def text(self) -> str:
        return self.log.read_text()


class Operators:
    """Starts operators that share one world; all are gone at the end."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self._folder = folder
        self._environ = environ
        self._all: list[RunningOperator] = []

    def start(self, name: str = "one", **environ: str) -> RunningOperator:
        made = RunningOperator(name, self._folder, {**self._environ, **environ})
        self._all.append(made)
        return made

    def end(self) -> None:
        for each in self._all:
            each.kill()

    def tell(self) -> str:
        return "\n".join(f"--- {each.name}\n{each.text()[-6000:]}" for each in self._all)


@contextmanager
def operators(folder: Path, environ: dict[str, str]) -> Iterator[Operators]:
    made = Operators(folder, environ)
    try:
        yield made
    finally:
        made.end()


async def eventually(
    ask: Callable[[], T], seconds_max: float = 30.0, tell: Callable[[], str] = str
) -> T:
    """The first answer that is true; fails with what `tell` knows when there is none in time."""
    limit = time.monotonic() + seconds_max
    while not (answer := ask()):
        assert time.monotonic() < limit, tell()
        await asyncio.sleep(0.1)
    return answer


def condition(found: dict[str, Any], name: str) -> tuple[str, str]:
    """Status and reason of an object's condition; empty before it is told."""
    for one in found.get("status", {}).get("conditions", ()):
        if one["type"] == name:
            return one["status"], one["reason"]
    return "", ""
