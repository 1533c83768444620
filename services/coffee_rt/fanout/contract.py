"""What the fan-out reads of the store: narrow parts of store.view_contract, so that tests and simulations can
give just these. Every method raises Retryable while the store is away."""

from __future__ import annotations

from typing import Protocol

from coffee_rt.store.contract import StoredOrder
from coffee_rt.store.view_contract import (
    LaneVersion,
    SnapshotScope,
    ViewAnswer,
    ViewQuery,
    ViewSnapshot,
    ViewState,
)


class Catalogue(Protocol):
    """Which views exist (of ViewCatalogueStore)."""

    async def views(self) -> list[ViewState]: ...


class LaneVersions(Protocol):
    """Where lane versions are polled from when no beacon comes (of ViewFolder)."""

    async def lane_versions(self) -> tuple[dict[str, str], list[LaneVersion]]:
        """(view -> epoch, all lanes)."""


class SnapshotReader(Protocol):
    """Folded rows and lane versions of one statement, from the primary (of ViewReader)."""

    async def snapshot(
        self, view: str, start: int, scope: SnapshotScope | None = None
    ) -> ViewSnapshot: ...
    async def rows_above(self, view: str, lane: int, version: int, start: int) -> ViewSnapshot: ...


class ViewQueries(Protocol):
    """Aggregated answers (of ViewReader)."""

    async def query(self, query: ViewQuery) -> ViewAnswer: ...


class RecentOrderReader(Protocol):
    """The newest orders (of OrderReader)."""

    async def recent_orders(self, tenant: int | None, limit: int) -> list[StoredOrder]: ...
