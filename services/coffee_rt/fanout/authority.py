"""Who may read what live."""

from __future__ import annotations

from collections.abc import Callable

from coffee_rt.domain.keys import ANYONE, Access, KeyRing
from coffee_rt.errors import Retryable
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
