"""What a measurement runs on: servers of its own in a throw-away folder, processes, load generators.

Everything listens on loopback, lives below one temporary folder and ends with the `Stack`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import msgspec
import psutil

from coffee_rt.bench.load import Job, Outcome
from coffee_rt.embedded.launch import signal_group, spawn
from coffee_rt.embedded.server_process import LAPTOP, free_port, tail
from coffee_rt.embedded.servers import EmbeddedPostgres, EmbeddedValkey
from coffee_rt.runtime.environment import environment

READY_SECONDS_MAX = 60.0


class Child:
    """A process under measurement: its port, its log, its CPU time and memory."""

    def __init__(
        self, name: str, command: list[str], environ: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self.log = log
        self.port = int(environ.get("COFFEE_RT_HTTP_PORT", "0"))
        self.process: subprocess.Popen[bytes] = spawn(command, log, environ=environ)

    @property
    def cpu_seconds(self) -> float:
        """User and system time so far, of the process and its children."""
        me = psutil.Process(self.process.pid)
        times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
        return float(sum(time_.user + time_.system for time_ in times))

    @property
    def memory_bytes(self) -> int:
        """Resident memory now."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def wait_ready(self, path: str = "/readyz") -> None:
        """Until `path` answers 200, or with "" until the port takes connections. Raises RuntimeError with the end of the log when it does not become ready."""
        deadline = time.monotonic() + READY_SECONDS_MAX
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                if not path:
                    socket.create_connection(("127.0.0.1", self.port), 1).close()
                    return
                address = f"http://127.0.0.1:{self.port}{path}"
                with urllib.request.urlopen(address, timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        raise RuntimeError(f"{self.name} did not become ready:\n{tail(self.log)}")

    def stop(self, seconds: float = 40.0) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        signal_group(self.process, signal.SIGKILL)


class Stack:
    """Servers and processes of one measurement; a context manager."""

    def __init__(self, *, with_postgres: bool = True, shards: int = 4) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="coffee-rt-bench-"))
        self.folder.chmod(0o755)
        self.shards = shards
        self.valkey = EmbeddedValkey(
            self.folder / "valkey", durability=LAPTOP, memory_bytes_max=8 << 30
        )
        self.postgres = EmbeddedPostgres(self.folder / "postgres", durability=LAPTOP)
        self._with_postgres = with_postgres
        self._children: list[Child] = []

    def __enter__(self) -> Stack:
        self.valkey.start()
        if self._with_postgres:
            self.postgres.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for child in reversed(self._children):
            child.stop()
        self.valkey.stop()
        self.postgres.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def environ(self, **own: str) -> dict[str, str]:
        """Environment of a process on this stack; no key needed unless told otherwise."""
        environ = {
            name: value
            for name, value in environment().items()
            if not name.startswith("COFFEE_RT_")
        }
        environ |= {
            "COFFEE_RT_REDIS_URL": self.valkey.url,
            "COFFEE_RT_SHARDS": str(self.shards),
            "COFFEE_RT_AUTH": "off",
            "COFFEE_RT_ORDER_API_ANONYMOUS_PER_MINUTE": "0",
            "COFFEE_RT_QUERY_API_ANONYMOUS_PER_MINUTE": "0",
            "COFFEE_RT_LOG_LEVEL": "warning",
            "COFFEE_RT_HTTP_PORT": str(free_port()),
        }
        if self._with_postgres:
            environ["COFFEE_RT_DATABASE_URL"] = self.postgres.url
        return environ | own

    def process(self, name: str, **own: str) -> Child:
        """Start one of our processes and wait until it is ready."""
        return self.child(name, [sys.executable, "-m", "coffee_rt.cli", name], **own)

    def module(self, module: str, *arguments: str, ready_path: str = "/readyz") -> Child:
        """Start a module of the bench (a baseline or an echo) and wait until it answers."""
        command = [sys.executable, "-m", module, *arguments]
        return self.child(module.rpartition(".")[2], command, ready_path=ready_path)

    def child(
        self, name: str, command: list[str], ready_path: str = "/readyz", **own: str
    ) -> Child:
        child = Child(name, command, self.environ(**own), self.folder / f"{name}.log")
        self._children.append(child)
        child.wait_ready(ready_path)
        return child

    def end(self, child: Child) -> None:
        """End one process before the stack does."""
        child.stop()
        self._children.remove(child)


async def run_load(job: Job) -> Outcome:
    """Carry out a job in a process of its own, so that it does not share our loop."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "coffee_rt.bench.load",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment(),
    )
    answer, _ = await process.communicate(msgspec.json.encode(job))
    if process.returncode:
        raise RuntimeError("the load generator failed; its error is above")
    return msgspec.json.decode(answer, type=Outcome)


def machine() -> str:
    """One line about the machine, for the report."""
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, Python {sys.version.split()[0]}"
