"""Keeps a process's ring of API keys fresh from the store."""

from __future__ import annotations

from coffee_rt.domain.keys import KeyRing
from coffee_rt.errors import Retryable
from coffee_rt.runtime.clock import Clock
from coffee_rt.store.contract import ApiKeyStore


class KeyRefresher:
    """Owned by the process; `run` is its only task and is cancelled by its owner."""

    def __init__(
        self, store: ApiKeyStore, ring: KeyRing, clock: Clock, refresh_seconds: float
    ) -> None:
        self._store = store
        self._ring = ring
        self._clock = clock
        self._refresh_seconds = refresh_seconds

    async def run(self) -> None:
        """Refresh for ever."""
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
