"""Keeps a process's ring of API keys fresh from the store."""

from __future__ import annotations

from collections.abc import Callable

from coffee_rt.domain.keys import KeyRing
from coffee_rt.errors import Retryable
from coffee_rt.runtime.clock import Clock
from coffee_rt.runtime.lifecycle import Lifecycle
from coffee_rt.store.contract import ApiKeyStore
from coffee_rt.store.keys import PostgresApiKeys
from coffee_rt.store.pool import Pool

MISSED_SECONDS = 1.0
"""Between loads while unknown keys are used: a new key works this soon, and guesses cost one small query each time."""
FIRST_RETRY_SECONDS = 0.5
"""Without any keys every caller is refused: until the first load, a failed one is soon tried again."""


class KeyRefresher:
    """Owned by the process; `run` is its only task and is cancelled by its owner. Loads every `refresh_seconds`, and
    sooner where somebody used a key that the ring does not know.

    `on_refresh` is told after each load: of the failure, or of None when it went well.
    """

    def __init__(
        self,
        store: ApiKeyStore,
        ring: KeyRing,
        clock: Clock,
        refresh_seconds: float,
        on_refresh: Callable[[Retryable | None], None] = lambda failure: None,
    ) -> None:
        self._store = store
        self._ring = ring
        self._clock = clock
        self._refresh_seconds = refresh_seconds
        self._on_refresh = on_refresh
        self._is_loaded = False

    async def run(self) -> None:
        """Refresh for ever; the first time a while from now, for whoever starts has called `refresh`."""
        while True:
            first = min(FIRST_RETRY_SECONDS, self._refresh_seconds)
            left = self._refresh_seconds if self._is_loaded else first
            while left > 0:
                pause = min(MISSED_SECONDS, left)
                await self._clock.sleep(pause)
                left = 0 if self._ring.has_missed else left - pause
            await self.refresh()

    async def refresh(self) -> None:
        """Load once; while the store is away the keys of before stay, and age."""
        failure = None
        try:
            keys = await self._store.api_keys()
        except Retryable as error:
            failure = error
        else:
            self._ring.load(keys, self._clock.monotonic())
            self._is_loaded = True
        self._on_refresh(failure)


async def keep_fresh(
    ring: KeyRing,
    pool: Pool,
    lifecycle: Lifecycle,
    refresh_seconds: float,
    on_refresh: Callable[[Retryable | None], None] = lambda failure: None,
) -> None:
    """Load a process's keys now, if PostgreSQL is there, and from now on as one of its tasks."""
    store = PostgresApiKeys(pool)
    refresher = KeyRefresher(store, ring, lifecycle.clock, refresh_seconds, on_refresh)
    await refresher.refresh()
    lifecycle.spawn(refresher.run(), "keys")
