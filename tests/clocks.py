"""Clocks that tests move."""

from __future__ import annotations


class StoppedClock:
    """A clock that only moves when told; a sleep is over at once, and it is that much later."""

    def __init__(self, at: float = 1000.0) -> None:
        self.at = at

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds
