"""Who may read: API keys from the store, kept fresh in the background."""

from __future__ import annotations

from coffee_rt.domain.keys import ANYONE, Access, KeyRing, token_of
from coffee_rt.errors import Retryable
from coffee_rt.query_api.app import HeaderMap
from coffee_rt.runtime.clock import Clock
from coffee_rt.store.contract import ApiKeyStore


class OpenAuthority:
    """Keys are off: everybody is the default tenant."""

    def tenant_of(self, headers: HeaderMap, access: Access) -> int:
        return ANYONE.tenant


class KeyAuthority:
    """Owned by the process; `run` keeps the ring fresh and is cancelled by its owner."""

    def __init__(
        self, store: ApiKeyStore, ring: KeyRing, clock: Clock, refresh_seconds: float
    ) -> None:
        self._store = store
        self._ring = ring
        self._clock = clock
        self._refresh_seconds = refresh_seconds

    def tenant_of(self, headers: HeaderMap, access: Access) -> int:
        """Raises Rejected (401, 403), or Overload (503) when the keys are too old to be believed."""
        token = token_of(headers.get("authorization"), headers.get("x-api-key"))
        return self._ring.check(token, access, self._clock.monotonic()).tenant

    async def refresh(self) -> None:
        """Load once; the keys of before stay, ageing, when the store is away."""
        try:
            keys = await self._store.api_keys()
        except Retryable:
            return
        self._ring.load(keys, self._clock.monotonic())

    async def run(self) -> None:
        while True:
            await self.refresh()
            await self._clock.sleep(self._refresh_seconds)
