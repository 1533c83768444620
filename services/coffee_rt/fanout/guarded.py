"""The store behind a circuit breaker: while PostgreSQL keeps failing, nothing is sent to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from coffee_rt.fanout.contract import (
    Catalogue,
    LaneVersions,
    RecentOrderReader,
    SnapshotReader,
    ViewQueries,
)
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.store.contract import StoredOrder
from coffee_rt.store.view_contract import (
    LaneVersion,
    SnapshotScope,
    ViewAnswer,
    ViewQuery,
    ViewSnapshot,
    ViewState,
)

T = TypeVar("T")

OPEN_SECONDS = 2.0
"""Much shorter than elsewhere: loads are single-flight and back off already, and every browser must show the
right numbers again within 5 s of PostgreSQL's return."""


class GuardedStore:
    """What the hub and the dashboard feed read, of one primary. Shared by all tasks."""

    def __init__(
        self,
        breaker: CircuitBreaker,
        *,
        catalogue: Catalogue,
        snapshots: SnapshotReader,
        queries: ViewQueries,
        orders: RecentOrderReader,
        versions: LaneVersions,
    ) -> None:
        self._breaker = breaker
        self._catalogue = catalogue
        self._snapshots = snapshots
        self._queries = queries
        self._orders = orders
        self._versions = versions

    async def views(self) -> list[ViewState]:
        return await self._call(self._catalogue.views)

    async def snapshot(
        self, view: str, start: int, scope: SnapshotScope | None = None
    ) -> ViewSnapshot:
        return await self._call(self._snapshots.snapshot, view, start, scope)

    async def rows_above(self, view: str, lane: int, version: int, start: int) -> ViewSnapshot:
        return await self._call(self._snapshots.rows_above, view, lane, version, start)

    async def query(self, query: ViewQuery) -> ViewAnswer:
        return await self._call(self._queries.query, query)

    async def recent_orders(self, tenant: int | None, limit: int) -> list[StoredOrder]:
        return await self._call(self._orders.recent_orders, tenant, limit)

    async def lane_versions(self) -> tuple[dict[str, str], list[LaneVersion]]:
        return await self._call(self._versions.lane_versions)

    async def _call(self, read: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        async with self._breaker:
            return await read(*arguments)
