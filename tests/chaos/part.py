"""One process of a platform: its ports, its log, its runs."""

from __future__ import annotations

import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path


def port_of(held: socket.socket) -> int:
    return int(held.getsockname()[1])


@dataclass
class Part:
    """One process: its port, its log, its runs."""

    name: str
    held: socket.socket
    held_live: socket.socket
    """For WebSockets, where it is a fanout."""
    log: Path
    environ: dict[str, str]
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    unasked_ends: list[int] = field(default_factory=list)
    """Exit codes of runs that ended without our doing."""
    is_wanted: bool = False
    peak_memory_bytes: int = 0

    @property
    def port(self) -> int:
        return port_of(self.held)

    @property
    def live_port(self) -> int:
        return port_of(self.held_live)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None
