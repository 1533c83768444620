"""Who may read what live, and in how many sessions at once."""

from __future__ import annotations

from collections.abc import Callable

from coffee_rt.domain.keys import ANYONE, Access, KeyRing
from coffee_rt.errors import Overload, Retryable
from coffee_rt.fanout import metrics
from coffee_rt.runtime.clock import Clock


def allow_anyone(token: str | None) -> int:
    """Keys are off: everybody reads the default tenant."""
    return ANYONE.tenant


class KeyAuthority:
    """Shared by all sessions; the ring is kept fresh by the wiring, which tells of each load by `on_refresh`."""

    def __init__(self, ring: KeyRing, clock: Clock) -> None:
        self._ring = ring
        self._clock = clock
        self._generation = ring.generation
        self._listeners: list[Callable[[], None]] = []

    def tenant_of(self, token: str | None) -> int:
        """Raises Rejected (unknown key, scope) or Overload (the keys are too old to be believed)."""
        return self._ring.check(token, Access.READ, self._clock.monotonic()).tenant

    def listen(self, on_change: Callable[[], None]) -> None:
        """Call `on_change` when keys have come, gone or changed."""
        self._listeners.append(on_change)

    def on_refresh(self, failure: Retryable | None) -> None:
        if self._ring.generation != self._generation:
            self._generation = self._ring.generation
            for on_change in self._listeners:
                on_change()


class KeySessions:
    """Counts the open sessions of each API key: sockets, streams and dashboards of one process together. Each
    `enter` that did not raise is followed by one `leave` with the same token. `per_key_max` 0: not counted,
    as where keys are off.

    By the key's whole text, as callers show it: it has been checked, so no two texts are one key.
    """

    def __init__(self, per_key_max: int = 0) -> None:
        self._per_key_max = per_key_max
        self._open: dict[str, int] = {}

    def check(self, token: str | None) -> None:
        """Raises Overload (429) when the key has as many as it may."""
        if token is None or not self._per_key_max:
            return
        if self._open.get(token, 0) >= self._per_key_max:
            metrics.refused.labels("key").inc()
            raise Overload("too-many-sessions", "too many sessions of this API key", 10.0, 429)

    def enter(self, token: str | None) -> None:
        """Count a session in. Raises Overload (429)."""
        self.check(token)
        if token is not None and self._per_key_max:
            self._open[token] = self._open.get(token, 0) + 1

    def leave(self, token: str | None) -> None:
        if token is None or not self._per_key_max:
            return
        left = self._open[token] - 1
        if left:
            self._open[token] = left
        else:
            del self._open[token]
