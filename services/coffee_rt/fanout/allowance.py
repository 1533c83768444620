"""How much a client may say: a bucket that fills evenly. Pure."""

from __future__ import annotations


class Allowance:
    """Messages and pings of one connection. `take` counts one."""

    __slots__ = ("_at", "_burst", "_left", "_per_second")

    def __init__(self, per_second: float, burst: int, now: float) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._left = float(burst)
        self._at = now

    def take(self, now: float) -> bool:
        """False when there was none left."""
        earned = (now - self._at) * self._per_second
        self._left = min(self._left + earned, self._burst) - 1
        self._at = now
        return self._left >= 0
