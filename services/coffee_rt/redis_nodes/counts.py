"""Counts that the pods of a process share: what callers.rate settles with."""

from __future__ import annotations

from typing import Any

from limits.aio.storage import RedisStorage
from limits.errors import StorageError

from coffee_rt.callers.rate import StorageAway
from coffee_rt.redis_nodes.nodes import RedisNodes
from coffee_rt.runtime.settings import RedisSettings


class SharedCounts:
    """The library's Redis storage as callers.rate.RateStorage.

    All counts carry one hash tag. In a Cluster they thus share a node: they are few and small (settled a few
    times a second, gone after two minutes), and need no second idea of where keys live.
    """

    def __init__(self, settings: RedisSettings, namespace: str) -> None:
        prefix = f"{namespace}:{{counts}}"
        self._pool = RedisNodes(settings).pool(
            prefix.encode(),
            socket_timeout=settings.connect_seconds_max,
            socket_connect_timeout=settings.connect_seconds_max,
            # No retries: the next settlement is one.
            retry=None,
        )
        options: Any = {"connection_pool": self._pool}
        self._storage = RedisStorage(
            "async+redis://",
            wrap_exceptions=True,
            implementation="redispy",
            key_prefix=prefix,
            **options,
        )

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        try:
            return int(await self._storage.incr(key, expiry, amount))
        except StorageError as error:
            raise StorageAway from error

    async def close(self) -> None:
        await self._pool.aclose()
