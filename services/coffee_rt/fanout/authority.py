"""Who may read what: API keys from the store, kept fresh in the background."""

from __future__ import annotations

from coffee_rt.domain.keys import ANYONE, Access, KeyRing
from coffee_rt.errors import Retryable
from coffee_rt.runtime.clock import Clock
from coffee_rt.store.contract import ApiKeyStore


def allow_anyone(token: str | None) -> int:
    """Keys are off: everybody reads the default tenant."""
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

    def tenant_of(self, token: str | None) -> int:
        """Raises Rejected (unknown key, scope) or Overload (the keys are too old to be believed)."""
        return self._ring.check(token, Access.READ, self._clock.monotonic()).tenant

    async def run(self) -> None:
        while True:
            await self.refresh()
            await self._clock.sleep(self._refresh_seconds)

    async def refresh(self) -> None:
        """Load once; while the store is away the keys of before stay, and age."""
        try:
            keys = await self._store.api_keys()
        except Retryable:
            return
        self._ring.load(keys, self._clock.monotonic())
