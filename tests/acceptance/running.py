"""The whole platform as `coffee-rt up` starts it, for tests that look at it from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil

START_SECONDS_MAX = 120


class Platform:
    """A running `coffee-rt up` and its folder."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "coffee_rt.cli", "up", "--data-dir", str(folder)]
        self.output = (folder.parent / "up.log").open("wb+")
        self.process = subprocess.Popen(
            [*command, "--port", "0", *options], stdout=self.output, stderr=subprocess.STDOUT
        )

    @property
    def address(self) -> str:
        return (self.folder / "address").read_text().strip().rstrip("/")

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self.is_ready():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def is_ready(self) -> bool:
        try:
            with urlopen(f"{self.address}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def log(self) -> str:
        self.output.seek(0)
        return self.output.read().decode()

    def pid_of(self, part: str) -> int:
        [path] = self.folder.rglob(f"pids/{part}")
        return int(path.read_text())

    def kill(self, part: str) -> int:
        """kill -9 of one process (the supervisor starts it again); its process id."""
        pid = self.pid_of(part)
        os.kill(pid, signal.SIGKILL)
        return pid

    @contextmanager
    def frozen(self, part: str) -> Iterator[None]:
        """SIGSTOP of one process and all its children; SIGCONT at the end."""
        process = psutil.Process(self.pid_of(part))
        stopped = [process, *process.children(recursive=True)]
        for each in stopped:
            each.suspend()
        try:
            yield
        finally:
            for each in stopped:
                each.resume()

    def get(self, path: str) -> Any:
        with urlopen(f"{self.address}{path}", timeout=10) as answer:
            return json.load(answer)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`coffee-rt ARGUMENTS` on this platform's data."""
        return subprocess.run(
            [sys.executable, "-m", "coffee_rt.cli", *arguments, "--data-dir", str(self.folder)],
            capture_output=True,
            text=True,
            timeout=120,
        )

    def post(self, store: str, price: str, quantity: int = 1, drink: str = "latte") -> None:
        order = {"store": store, "drink": drink, "price": price, "quantity": quantity}
        request = Request(
            f"{self.address}/api/v1/orders",
            data=json.dumps(order).encode(),
            headers={"Content-Type": "application/json", "Idempotency-Key": uuid.uuid4().hex},
        )
        with urlopen(request, timeout=10) as answer:
            assert answer.status == 202

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self.output.close()
