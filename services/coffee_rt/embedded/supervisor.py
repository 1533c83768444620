"""Keeps the parts of `coffee-rt up` running: start and wait until ready, start again, stop in order.

A part is anything that can be launched and probed: a server, a forked process, the proxy. A part that
ends by itself is said so and started again, at once the first time and then after growing pauses. One
that refuses its settings before it was ever ready ends the whole start instead: repeating that can't help.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from coffee_rt.embedded.directory import replace_file
from coffee_rt.embedded.log_tail import LogTail
from coffee_rt.embedded.server_process import ServerProblem, tail

READY_SECONDS_MAX = 120.0
READY_POLL_SECONDS = 0.02
EXIT_POLL_SECONDS = 0.2
BACKOFF_SECONDS_MIN = 0.5
BACKOFF_SECONDS_MAX = 30.0
STEADY_SECONDS = 60.0
"""A part that ran this long starts again without a pause."""

REFUSED_SETTINGS = 2
"""Exit code of a process that can't start as configured."""

Say = Callable[[str], None]


class Handle(Protocol):
    """A running part. subprocess.Popen is one."""

    pid: int

    def poll(self) -> int | None: ...

    def send_signal(self, number: int) -> None: ...


@dataclass(slots=True)
class Part:
    """What to keep running. `launch` must be called in the main thread (the kernel's death signal)."""

    name: str
    launch: Callable[[], Awaitable[Handle]]
    probe: Callable[[], Awaitable[bool]]
    log: Path
    stop_signal: signal.Signals = signal.SIGTERM
    force_signal: signal.Signals = signal.SIGKILL
    stop_seconds: float = 30.0
    handle: Handle | None = None
    restarts: int = 0
    _keeper: asyncio.Task[None] | None = field(default=None, repr=False)


class Supervisor:
    """Owned by one event loop; `say` gets one plain line per event. Writes each part's pid to a folder."""

    def __init__(self, say: Say, pids: Path) -> None:
        self._say = say
        self._begun = time.monotonic()
        self._pids = pids
        self._pids.mkdir(exist_ok=True)
        for stale in pids.iterdir():
            stale.unlink()

    async def launch(self, part: Part) -> None:
        """Start a part without waiting for it."""
        part.handle = await part.launch()
        replace_file(self._pids / part.name, f"{part.handle.pid}\n", mode=0o644)

    async def bring_up(self, part: Part) -> None:
        """Start a part (unless launched) and return when it is ready; from then on it is kept running.

        Raises ServerProblem when it ends first, or stays unready too long.
        """
        if part.handle is None:
            await self.launch(part)
        await self._wait_ready(part)
        self._say(f"  {part.name:<11} ready   {time.monotonic() - self._begun:5.1f} s")
        part._keeper = asyncio.create_task(self._keep(part), name=f"keep-{part.name}")

    async def stop(self, parts: Sequence[Part]) -> bool:
        """Stop parts side by side; whether all ended by themselves in time."""
        for part in parts:
            if part._keeper:
                part._keeper.cancel()
            if part.handle and part.handle.poll() is None:
                part.handle.send_signal(part.stop_signal)
        return all(await asyncio.gather(*(self._wait_end(part) for part in parts)))

    async def _wait_ready(self, part: Part) -> None:
        assert part.handle is not None
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not await part.probe():
            code = part.handle.poll()
            if code is not None:
                raise ServerProblem(_explain_end(part, code))
            if time.monotonic() > deadline:
                raise ServerProblem(
                    f"{part.name} is not ready after {READY_SECONDS_MAX:.0f} s. The end of its log "
                    f"({part.log}):\n{tail(part.log)}"
                )
            await asyncio.sleep(READY_POLL_SECONDS)

    async def _keep(self, part: Part) -> None:
        """Start the part again whenever it ends, until cancelled."""
        backoff = 0.0
        since = time.monotonic()
        errors = LogTail(part.log)
        while True:
            await asyncio.sleep(EXIT_POLL_SECONDS)
            assert part.handle is not None
            code = part.handle.poll()
            for line in errors.new_errors():
                self._say(f"  {part.name}: {line}")
            if code is None:
                continue
            if time.monotonic() - since > STEADY_SECONDS:
                backoff = 0.0
            self._say(
                f"  {part.name} ended ({describe_exit(code)}); starting it again"
                + (f" in {backoff:.1f} s" if backoff else "")
                + f". Its log: {part.log}"
            )
            await asyncio.sleep(backoff)
            backoff = min(BACKOFF_SECONDS_MAX, max(BACKOFF_SECONDS_MIN, backoff * 2))
            since = time.monotonic()
            part.restarts += 1
            await self._start_again(part)

    async def _start_again(self, part: Part) -> None:
        started = time.monotonic()
        try:
            await self.launch(part)
            await self._wait_ready(part)
        except ServerProblem as problem:
            self._say(f"  {part.name}: {problem}")
        else:
            self._say(f"  {part.name:<11} ready again after {time.monotonic() - started:.1f} s")

    async def _wait_end(self, part: Part) -> bool:
        if part.handle is None:
            return True
        is_in_time = await wait_end(part.handle, part.stop_seconds) is not None
        if not is_in_time:
            self._say(f"  {part.name} did not stop in {part.stop_seconds:.0f} s; ending it")
            part.handle.send_signal(part.force_signal)
            await wait_end(part.handle, part.stop_seconds)
        (self._pids / part.name).unlink(missing_ok=True)
        return is_in_time


async def wait_end(handle: Handle, seconds: float) -> int | None:
    """The exit code, or None when it still runs after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (code := handle.poll()) is not None:
            return code
        await asyncio.sleep(READY_POLL_SECONDS)
    return handle.poll()


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def _explain_end(part: Part, code: int) -> str:
    reason = LogTail(part.log, from_start=True).last_reason()
    if code == REFUSED_SETTINGS and reason:
        return f"{part.name} can't start: {reason}"
    return (
        f"{part.name} ended while starting ({describe_exit(code)}). The end of its log "
        f"({part.log}):\n{tail(part.log)}"
    )
