"""Who may read what live."""

from __future__ import annotations

from coffee_rt.domain.keys import ANYONE, Access, KeyRing
from coffee_rt.runtime.clock import Clock


def allow_anyone(token: str | None) -> int:
    """Keys are off: everybody reads the default tenant."""
    return ANYONE.tenant


class KeyAuthority:
    """Shared by all sessions; the ring is kept fresh by the wiring."""

    def __init__(self, ring: KeyRing, clock: Clock) -> None:
        self._ring = ring
        self._clock = clock

    def tenant_of(self, token: str | None) -> int:
        """Raises Rejected (unknown key, scope) or Overload (the keys are too old to be believed)."""
        return self._ring.check(token, Access.READ, self._clock.monotonic()).tenant
