"""The data directory of `coffee-rt up`: one owner at a time, what lies where, bounded logs.

DIR/lock           held while an `up` runs here        DIR/postgres, DIR/valkey   the data
DIR/address        the dashboard's address             DIR/logs/*.log             output of each child
DIR/environment    settings to reach the running servers with (secret: readable by the owner only)
"""

from __future__ import annotations

import fcntl
import os
import shlex
from pathlib import Path

from coffee_rt.embedded.server_process import ServerProblem

LOG_BYTES_MAX = 16 << 20
"""A child's log is moved to *.log.1 at this size, replacing the one there: two of them at most."""


class DataDirectory:
    """A directory this process owns from `open` to `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: int | None = None

    @property
    def postgres(self) -> Path:
        return self.path / "postgres"

    @property
    def valkey(self) -> Path:
        return self.path / "valkey"

    @property
    def environment_file(self) -> Path:
        return self.path / "environment"

    @property
    def address_file(self) -> Path:
        return self.path / "address"

    def log(self, name: str) -> Path:
        """Where the child `name` writes."""
        return self.path / "logs" / f"{name}.log"

    def open(self) -> None:
        """Make it and take it. Raises ServerProblem when it can't be written or another holds it."""
        try:
            (self.path / "logs").mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ServerProblem(
                f"The data directory {self.path} can't be written ({error.strerror}). "
                "Give a directory of yours with --data-dir, or mend its rights."
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 32).decode().strip() or "unknown"
            os.close(descriptor)
            raise ServerProblem(
                f"Another `coffee-rt up` (process {holder}) is running on {self.path}. Stop it with "
                f"Ctrl-C (or kill {holder}), or give another directory with --data-dir."
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._lock = descriptor
        for stale in (self.address_file, self.environment_file):
            stale.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others have it; what only holds while we run is removed."""
        if self._lock is None:
            return
        for mine in (self.address_file, self.environment_file):
            mine.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None

    def write_address(self, address: str) -> None:
        replace_file(self.address_file, address + "\n", 0o644)

    def write_environment(self, environ: dict[str, str]) -> None:
        lines = [f"{name}={shlex.quote(value)}\n" for name, value in sorted(environ.items())]
        replace_file(self.environment_file, "".join(lines), 0o600)

    def bound_logs(self) -> None:
        """Move logs that grew too long aside. Children append, so a truncated file goes on from 0."""
        for log in (self.path / "logs").glob("*.log"):
            if log.stat().st_size > LOG_BYTES_MAX:
                log.with_suffix(".log.1").write_bytes(log.read_bytes()[-LOG_BYTES_MAX:])
                os.truncate(log, 0)


def running_environment(path: Path) -> dict[str, str] | None:
    """The settings of the `up` that runs on a directory; None when none does."""
    try:
        text = (path / "environment").read_text()
    except OSError:
        return None
    words = (line.partition("=") for line in text.splitlines())
    return {name: "".join(shlex.split(value)) for name, _, value in words}


def replace_file(path: Path, text: str, mode: int) -> None:
    """Replace a file as a whole: a reader sees the old text or the new."""
    staged = path.with_name(path.name + ".new")
    staged.unlink(missing_ok=True)
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
    staged.rename(path)
