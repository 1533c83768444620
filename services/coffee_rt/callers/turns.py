"""Work under way of each caller: a little at once, some waiting for its turn, the rest refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from coffee_rt.errors import Overload

RETRY_SECONDS = 1.0
"""Hint to who is refused: a turn takes less, as a rule."""


class _Line:
    """One caller's: who has a turn or waits for one."""

    __slots__ = ("present", "turns")

    def __init__(self, at_once: int) -> None:
        self.turns = asyncio.Semaphore(at_once)
        self.present = 0


class Turns:
    """One of a process, one event loop only. Each caller waits in a line of its own, so that whoever asks
    for much waits behind nobody but itself, and nobody else behind it. `wait_seconds_max` None: for ever."""

    def __init__(self, at_once: int, waiting_max: int, wait_seconds_max: float | None) -> None:
        self._at_once = at_once
        self._present_max = at_once + waiting_max
        self._wait_seconds_max = wait_seconds_max
        self._lines: dict[str, _Line] = {}

    @asynccontextmanager
    async def take(self, subject: str) -> AsyncIterator[None]:
        """The block is a turn of this caller. Raises Overload (429) when too many wait, or for too long."""
        line = self._lines.get(subject)
        if line is None:
            line = self._lines[subject] = _Line(self._at_once)
        if line.present >= self._present_max:
            raise _too_many()
        line.present += 1
        try:
            try:
                async with asyncio.timeout(self._wait_seconds_max):
                    await line.turns.acquire()
            except TimeoutError:
                raise _too_many() from None
            try:
                yield
            finally:
                line.turns.release()
        finally:
            line.present -= 1
            if not line.present:
                del self._lines[subject]


def _too_many() -> Overload:
    detail = "Too many of your requests are under way; wait for their answers."
    return Overload("too-many-requests", detail, RETRY_SECONDS, 429)
