"""Reading views in PostgreSQL: queries with the unfolded tail, and snapshots of folded rows for live sessions.

The catalogue is kept and checked by age: a view that was made or replaced a moment ago is known after
CATALOGUE_SECONDS_MAX at the latest, one that was dropped at once (its tables are gone).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeVar

import asyncpg

from coffee_rt.errors import Rejected, Retryable
from coffee_rt.runtime.clock import Clock, SystemClock
from coffee_rt.store.pool import Pool
from coffee_rt.store.view_contract import SnapshotScope, ViewAnswer, ViewQuery, ViewSnapshot
from coffee_rt.store.view_read_sql import (
    answer_keys,
    check_query,
    query_sql,
    rows_above_sql,
    scoped_snapshot_sql,
    snapshot_sql,
)
from coffee_rt.store.view_schema import measure_columns, row_columns
from coffee_rt.store.view_tables import Catalogue, LiveView, load_catalogue

T = TypeVar("T")

TAIL_DELTAS_MAX = 20_000
"""Unfolded deltas read beside folded rows. More would slow every read down while folding lags."""
CATALOGUE_SECONDS_MAX = 1.0
PAGE_ROWS = 5_000
"""Rows of one page of `iterate`."""


class PostgresViewReader:
    """ViewReader. Shared by all tasks. `query` and `iterate` may be given a replica's pool; snapshots for
    live sessions must come from the primary."""

    def __init__(
        self, pool: Pool, *, clock: Clock | None = None, tail_deltas_max: int = TAIL_DELTAS_MAX
    ) -> None:
        self._pool = pool
        self._clock = clock or SystemClock()
        self._tail_deltas_max = tail_deltas_max
        self._catalogue = Catalogue(-1, ())
        self._loaded_at = float("-inf")

    async def query(self, query: ViewQuery) -> ViewAnswer:
        """Raises Rejected for an unknown view, dimension or measure."""
        return await self._with_view(query.view, lambda view: self._query(view, query))

    async def snapshot(
        self, view: str, start: int, scope: SnapshotScope | None = None
    ) -> ViewSnapshot:
        async def read(live: LiveView) -> ViewSnapshot:
            if scope is None:
                sql = snapshot_sql(live.definition, live.internal)
                rows = await self._pool.fetch(sql, datetime.fromtimestamp(start, UTC))
            else:
                sql, arguments = scoped_snapshot_sql(live.definition, live.internal, start, scope)
                rows = await self._pool.fetch(sql, *arguments)
            return _snapshot(live, rows)

        return await self._with_view(view, read)

    async def rows_above(self, view: str, lane: int, version: int, start: int) -> ViewSnapshot:
        async def read(live: LiveView) -> ViewSnapshot:
            rows = await self._pool.fetch(
                rows_above_sql(live.definition, live.internal),
                datetime.fromtimestamp(start, UTC),
                lane,
                version,
            )
            return _snapshot(live, rows)

        return await self._with_view(view, read)

    async def iterate(self, query: ViewQuery) -> AsyncIterator[dict[str, Any]]:
        """All rows of an answer, page by page (each page is a snapshot of its own)."""
        return self._pages(query)

    async def _pages(self, query: ViewQuery) -> AsyncIterator[dict[str, Any]]:
        while True:
            page = await self.query(replace(query, limit=PAGE_ROWS))
            for row in page.rows:
                yield row
            if len(page.rows) < PAGE_ROWS:
                return
            view = await self._find(query.view)
            last = page.rows[-1]
            query = replace(
                query, after=tuple(last[key] for key in answer_keys(view.definition, query))
            )

    async def _query(self, view: LiveView, query: ViewQuery) -> ViewAnswer:
        check_query(view.definition, query)
        sql, arguments = query_sql(view.definition, view.internal, query, self._tail_deltas_max)
        rows = await self._pool.fetch(sql, *arguments)
        first = rows[0]
        keys = answer_keys(view.definition, query)
        names = measure_columns(view.definition)
        newest_at = first["_newest_at"]
        is_skipped = first["_unfolded"] > self._tail_deltas_max
        return ViewAnswer(
            rows=[_answer_row(row, keys, names) for row in rows if row["_is_row"]],
            epoch=view.epoch,
            version=first["_version"],
            unfolded=0 if is_skipped else first["_unfolded"],
            is_tail_skipped=is_skipped,
            newest_at_ms=0 if newest_at is None else int(newest_at.timestamp() * 1000),
        )

    async def _with_view(self, name: str, read: Callable[[LiveView], Awaitable[T]]) -> T:
        view = await self._find(name)
        try:
            return await read(view)
        except asyncpg.UndefinedTableError:
            # Replaced or dropped since the catalogue was read: once more with a new one.
            self._loaded_at = float("-inf")
        except Retryable:
            self._loaded_at = float("-inf")
            raise
        return await read(await self._find(name))

    async def _find(self, name: str) -> LiveView:
        now = self._clock.monotonic()
        if now - self._loaded_at > CATALOGUE_SECONDS_MAX:
            self._catalogue = await load_catalogue(self._pool)
            self._loaded_at = now
        for view in self._catalogue.views:
            if view.is_current and view.definition.name == name:
                return view
        known = ", ".join(v.definition.name for v in self._catalogue.views if v.is_current)
        raise Rejected(
            "unknown-view", f"there is no view {name}; known are: {known or 'none'}", status=404
        )


def _answer_row(row: Any, keys: tuple[str, ...], names: tuple[str, ...]) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for key in keys:
        answer[key] = int(row[key].timestamp()) if key == "bucket" else row[key]
    for name in names:
        answer[name] = _whole(row[name])
    return answer


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, Decimal) else value


def _snapshot(view: LiveView, rows: list[Any]) -> ViewSnapshot:
    columns = row_columns(view.definition)
    return ViewSnapshot(
        view=view.definition.name,
        epoch=view.epoch,
        versions=list(rows[0]["_versions"] or ()),
        rows=[
            {column: _whole(row[column]) for column in columns}
            for row in rows
            if row["tenant"] is not None
        ],
    )
