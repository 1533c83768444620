"""Start the processes from one warmed-up interpreter instead of five cold ones.

A cold process spends more than a second of CPU on imports, and five of them on two cores several. So one
helper (multiprocessing's fork server) imports what they share, once, while the servers start; each
process is then a fork of it, which takes milliseconds and shares its memory. A fork is a process like any
other: its own session and log, its environment set before its first line runs. It drains when we die,
however we die: the helper outlives us as long as a fork does, so each fork watches us itself.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_PR_SET_NAME = 15

_PRELOADED = (
    "asyncpg",
    "fastapi",
    "picows",
    "redis.asyncio",
    "yaml",
    "msgspec.yaml",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.httptools_impl",
    "coffee_rt.runtime.lifecycle",
    "coffee_rt.cli",
)
"""What most processes import. No process's own modules: each would then show the others' metrics."""


Entry = Callable[[], None]


class ForkedProcess:
    """One running process; looks like a subprocess.Popen where the supervisor needs it."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process
        self.pid = process.pid or 0

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Warm:
    """The helper. One a supervisor; `fork` waits until its imports are done. `entry` is what the command
    `coffee-rt` calls: given, since nothing here may import the command line."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._context = multiprocessing.get_context("forkserver")

    def begin(self) -> None:
        """Start the helper and return at once."""
        self._context.set_forkserver_preload(list(_PRELOADED))
        multiprocessing.forkserver.ensure_running()

    def fork(self, arguments: list[str], environ: dict[str, str], log: Path) -> ForkedProcess:
        """Run `coffee-rt ARGUMENTS` with exactly this environment. May be called from any thread."""
        process = self._context.Process(
            target=_become, args=(self._entry, arguments, environ, str(log))
        )
        process.start()
        return ForkedProcess(process)


def _end_with_parent() -> None:
    """In the fork: drain once the supervisor is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _become(entry: Entry, arguments: list[str], environ: dict[str, str], log: str) -> None:
    """In the fork: become `coffee-rt ARGUMENTS`."""
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, f"crt-{arguments[0]}".encode()[:15], 0, 0, 0)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for output in (1, 2):
        os.dup2(descriptor, output)
    os.close(descriptor)
    # Signals as in a fresh process: the helper ignores SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Written, never read, here: what the process will load its settings from.
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = ["coffee-rt", *arguments]
    entry()
