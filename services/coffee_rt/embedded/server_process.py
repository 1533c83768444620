"""What the embedded servers have in common: one child process, waiting for it, ending it.

A server object owns one data folder and at most one running process. `launch()` starts it and returns at
once, `wait_ready()` returns when it answers, `start()` does both; `stop()` ends it in an orderly way. Data
stays in the folder. Not for use by several threads; spawn from the main thread only (see launch).
`ServerProblem` carries a plain sentence that says what to do.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import psutil

from coffee_rt.embedded.launch import signal_group
from coffee_rt.errors import CoffeeRtError

READY_SECONDS_MAX = 120.0
"""A crash recovery with much WAL takes tens of seconds on a slow disk; longer means it is stuck."""

STOP_SECONDS_MAX = 60.0
"""PostgreSQL writes a checkpoint when it stops; after this long it is told to end without one."""

_POLL_SECONDS = 0.01


class ServerProblem(CoffeeRtError):
    """A server can't be used; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Durability:
    """How much a server does to survive a power cut. `LAPTOP` for data, `TEST` for throw-away data."""

    is_synced: bool


LAPTOP = Durability(is_synced=True)
TEST = Durability(is_synced=False)


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that is free now. Another program may take it before we do: callers try again."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def ensure_secret(path: Path) -> str:
    """The password kept in `path` (readable by us only), made at first use."""
    if not path.exists():
        staged = path.with_name(path.name + ".new")
        staged.unlink(missing_ok=True)
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(24))
            file.flush()
            os.fsync(file.fileno())
        staged.rename(path)
    return path.read_text().strip()


def tail(log: Path, lines: int = 8) -> str:
    """The last lines of a log, for an error message."""
    try:
        text = log.read_bytes()[-4000:].decode(errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join("    " + line for line in text.splitlines()[-lines:])


def end_leftover(pid: int, program: str, number: signal.Signals) -> None:
    """End a server that an earlier run left behind, when `pid` is really that program.

    Raises ServerProblem when it doesn't end.
    """
    try:
        process = psutil.Process(pid)
        if program not in process.name():
            return
        process.send_signal(number)
        process.wait(STOP_SECONDS_MAX)
    except psutil.NoSuchProcess:
        return
    except (psutil.TimeoutExpired, psutil.AccessDenied):
        raise ServerProblem(
            f"{program} of an earlier run (process {pid}) still uses this data directory and "
            f"can't be ended. End it (kill {pid}), then start again."
        ) from None


class Server(ABC):
    """One embedded server: its folder, its port, its process."""

    name = "server"
    stop_signal = signal.SIGTERM
    force_signal = signal.SIGKILL

    def __init__(self, data_dir: Path, log: Path | None, port: int, durability: Durability) -> None:
        # The server runs with another working directory: a relative path would mean another place.
        self.data_dir = data_dir.absolute()
        self.log = log.absolute() if log else data_dir.absolute().with_suffix(".log")
        self.port = port
        self.durability = durability
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The child, running or ended; only after `launch`."""
        assert self._process is not None
        return self._process

    @property
    def is_running(self) -> bool:
        return self.pid is not None

    def start(self) -> None:
        """Launch and wait until it answers. Raises ServerProblem."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start the process; the data folder is made at first use. Raises ServerProblem."""
        if self.is_running:
            return
        self.prepare()
        if not self.port:
            self.port = free_port()
        self._process = self.spawn()

    def wait_ready(self, seconds: float = READY_SECONDS_MAX) -> None:
        """Return when it answers. Raises ServerProblem when it ends or stays silent."""
        deadline = time.monotonic() + seconds
        while not self.is_ready():
            self.check_alive()
            if time.monotonic() > deadline:
                raise ServerProblem(
                    f"{self.name} doesn't answer after {seconds:.0f} s. Its log: {self.log}"
                )
            time.sleep(_POLL_SECONDS)

    def check_alive(self) -> None:
        """Raises ServerProblem with the end of its log when the process has ended."""
        if not self.is_running:
            raise ServerProblem(
                f"{self.name} ended while starting. The end of its log ({self.log}):\n{tail(self.log)}"
            )

    def stop(self, seconds: float = STOP_SECONDS_MAX) -> None:
        """End it in an orderly way, forcibly after `seconds`. Nothing happens when it isn't running."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(self.stop_signal)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(self.force_signal)
                process.wait()
        signal_group(process, signal.SIGKILL)
        self._process = None

    @abstractmethod
    def prepare(self) -> None:
        """Make the data folder usable, and end what an earlier run left. Raises ServerProblem."""

    @abstractmethod
    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the server's process on `self.port`."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it answers now."""
