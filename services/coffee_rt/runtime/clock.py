"""Time as a dependency: cores ask a Clock, so that a simulation can run them in virtual time."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Shared by all tasks of a process."""

    def now(self) -> float:
        """Unix seconds of the wall clock; may jump."""

    def monotonic(self) -> float:
        """Seconds that only rise; for spans and deadlines."""

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
