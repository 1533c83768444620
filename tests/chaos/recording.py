"""The harness's side of a recorder: its process, how far it is, its notes."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import msgspec

from coffee_rt.runtime.environment import environment
from tests.chaos.notes import Job, Notes, read_notes

ROOT = Path(__file__).parents[2]
END_SECONDS_MAX = 120.0


class Recording:
    """One running recorder. `counts` follow within a fifth of a second."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.counts: dict[str, int] = {"ok": 0, "refused": 0, "away": 0, "unknown": 0, "denied": 0}
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.chaos.recorder",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env=environment(),
        )
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(self.job) + b"\n")
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self.counts = msgspec.json.decode(line)

    async def wait_accepted(self, more: int, seconds_max: float = 60.0) -> None:
        """Until so many more orders were accepted. Raises RuntimeError when they don't come."""
        wanted = self.counts["ok"] + more
        until = time.monotonic() + seconds_max
        while self.counts["ok"] < wanted:
            if time.monotonic() > until:
                raise RuntimeError(f"no {more} orders were accepted within {seconds_max:.0f} s")
            await asyncio.sleep(0.05)

    async def end(self) -> Notes:
        """Stop the schedule, let everything unsettled be settled; all that was noted."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(b"end\n")
        try:
            async with asyncio.timeout(END_SECONDS_MAX):
                code = await self._process.wait()
        except TimeoutError:
            self._process.kill()
            raise RuntimeError("the recorder did not end") from None
        if code:
            raise RuntimeError("the recorder failed; its error is above")
        return read_notes(Path(self.job.notes))

    async def abandon(self) -> None:
        """When the scenario failed: nothing more is sent."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self._reading is not None:
            self._reading.cancel()
