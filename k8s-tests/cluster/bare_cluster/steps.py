"""What every step shares: saying what it does and how long it took, running a program, waiting.

`ClusterProblem` is the one error that ends the command; its text is plain and says what to do.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_POLL_SECONDS = 0.1


class ClusterProblem(Exception):
    """The cluster can't be had or used; the text says why and what to do."""


def say(text: str) -> None:
    """One line for whoever watches. On standard error: standard output is for answers."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def step(title: str) -> Iterator[None]:
    """Says the title and, at the end, the seconds. Whole lines only: steps may overlap."""
    began = time.monotonic()
    try:
        yield
    except BaseException:
        say(f"{time.monotonic() - began:7.1f} s  FAILED  {title}")
        raise
    say(f"{time.monotonic() - began:7.1f} s  {title}")


def run(
    *command: str | Path,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    seconds_max: float = 120.0,
) -> str:
    """Runs a program to its end and returns its standard output; a failure carries its last lines."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            input=stdin,
            env=None if env is None else dict(env),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=seconds_max,
            check=False,
        )
    except FileNotFoundError as error:
        raise ClusterProblem(f"{words[0]} is not installed.") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterProblem(f"{shown(words)} did not end in {seconds_max:.0f} s.") from error
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise ClusterProblem(f"{shown(words)} failed:\n{said}")
    return done.stdout


def shown(words: Sequence[str]) -> str:
    """A command for people: its first words."""
    return " ".join(words[:6]) + (" ..." if len(words) > 6 else "")


def wait_until(
    condition: Callable[[], bool],
    what: str,
    seconds_max: float,
    explain: Callable[[], str] = str,
) -> None:
    """Returns when the condition holds; raises `ClusterProblem` with `explain()` after the limit."""
    ends = time.monotonic() + seconds_max
    while not condition():
        if time.monotonic() > ends:
            raise ClusterProblem(
                f"{what} did not come in {seconds_max:.0f} s.\n{explain()}".rstrip()
            )
        time.sleep(_POLL_SECONDS)


def last_lines(log: Path, lines: int = 12) -> str:
    """The end of a log file, under its name."""
    if not log.exists():
        return f"{log} was not written."
    text = log.read_text(errors="replace").splitlines()[-lines:]
    return "\n".join([f"The end of {log}:", *text])
