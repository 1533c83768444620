"""Keeps a process's ring of API keys fresh from the store."""

from __future__ import annotations

from coffee_rt.domain.keys import KeyRing
from coffee_rt.errors import Retryable
from coffee_rt.runtime.clock import Clock
from coffee_rt.store.contract import ApiKeyStore

FIRST_RETRY_SECONDS = 0.5
"""Without any keys every caller is refused: until the first load, a failed one is soon tried again."""


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
        while not await self.refresh():
            await self._clock.sleep(min(FIRST_RETRY_SECONDS, self._refresh_seconds))
        while True:
            await self._clock.sleep(self._refresh_seconds)
            await self.refresh()

    async def refresh(self) -> bool:
        """Load once, and whether that went well; while the store is away the keys of before stay, and age."""
        try:
            keys = await self._store.api_keys()
        except Retryable:
            return False
        self._ring.load(keys, self._clock.monotonic())
        return True
