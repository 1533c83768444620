"""Who may read, and look after dead letters."""

from __future__ import annotations

from coffee_rt.domain.keys import ANYONE, Access, KeyRing, Principal, token_of
from coffee_rt.query_api.app import HeaderMap
from coffee_rt.runtime.clock import Clock


class OpenAuthority:
    """Keys are off: everybody is the default tenant, and may do all."""

    def principal_of(self, headers: HeaderMap, access: Access) -> Principal:
        return ANYONE


class KeyAuthority:
    """Shared by all requests; the ring is kept fresh by the wiring."""

    def __init__(self, ring: KeyRing, clock: Clock) -> None:
        self._ring = ring
        self._clock = clock

    def principal_of(self, headers: HeaderMap, access: Access) -> Principal:
        """Raises Rejected (401, 403), or Overload (503) when the keys are too old to be believed."""
        token = token_of(headers.get("authorization"), headers.get("x-api-key"))
        return self._ring.check(token, access, self._clock.monotonic())
