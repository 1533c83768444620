"""Folding in PostgreSQL: one call of a view's own function in autocommit moves lanes' deltas into their rows.

The function (view_schema) takes the lane rows first and picks deltas in a later statement, with a later
snapshot: one statement for both would use a snapshot older than the locks, and miss or double what the last
holder of a lane did. Which deltas are unfolded is decided by committed transactions alone; there is no
watermark that a late commit could miss.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import asyncpg

from coffee_rt.errors import Retryable
from coffee_rt.store.contract import FEATURE_LEVEL
from coffee_rt.store.pool import Pool
from coffee_rt.store.view_contract import Fold, LaneKey, LaneVersion, LaneWork
from coffee_rt.store.view_schema import row_columns
from coffee_rt.store.view_tables import (
    Catalogue,
    LiveView,
    deltas_table_of,
    load_catalogue,
)

WAITING_ROWS_MAX = 1_000
"""Unfolded deltas counted a lane; more is only "many"."""


class PostgresViewFolder:
    """ViewFolder. Shared by all tasks; keeps only the catalogue, which it reloads when it is outdated."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._catalogue = Catalogue(-1, ())

    async def announce(self, instance: str, alive_seconds: float) -> list[str]:
        rows = await self._pool.fetch(
            # The own row is added by hand: the statement doesn't see what it inserts.
            """
            WITH beat AS (
                INSERT INTO heartbeats (process, instance, feature_level)
                VALUES ('aggregator', $1, $2)
                ON CONFLICT (process, instance) DO UPDATE
                SET beat_at = now(), feature_level = excluded.feature_level
            )
            SELECT instance FROM heartbeats
            WHERE process = 'aggregator' AND beat_at > now() - make_interval(secs => $3)
            """,
            instance,
            FEATURE_LEVEL,
            alive_seconds,
        )
        return sorted({instance, *(row["instance"] for row in rows)})

    async def withdraw(self, instance: str) -> None:
        await self._pool.execute(
            "DELETE FROM heartbeats WHERE process = 'aggregator' AND instance = $1", instance
        )

    async def fold_lane(self, key: LaneKey, deltas_max: int, rows_max: int) -> Fold | None:
        folds = await self.fold_lanes(key.view, [key.lane], deltas_max, rows_max)
        return folds[0] if folds else None

    async def fold_lanes(
        self, view: str, lanes: Sequence[int], deltas_max: int, rows_max: int
    ) -> list[Fold]:
        """One call, one commit for all lanes; those that another holds are left out."""
        live = await self._find(view)
        if live is None:
            return []
        try:
            rows = await self._pool.fetch(
                # On disk before it is published, whatever the server's default: a browser never forgets a version.
                "SELECT f.* FROM set_config('synchronous_commit', 'on', true),"
                f" mv_{view}_fold($1, $2, $3) f ORDER BY _lane",
                list(lanes),
                deltas_max,
                rows_max,
            )
        except asyncpg.UndefinedFunctionError as error:
            raise self._outdated(view, error) from error
        except Retryable:
            # Perhaps another server answers next time, of another timeline: the epoch is read again.
            self._catalogue = Catalogue(-1, ())
            raise
        return [_fold(live, row, rows_max) for row in rows]

    async def waiting_lanes(self) -> list[LaneWork]:
        """Lanes with unfolded deltas, one probe of an index each."""
        views = (await self._load()).views
        if not views:
            return []
        query = " UNION ALL ".join(_waiting(view.internal) for view in views)
        try:
            rows = await self._pool.fetch(query)
        except asyncpg.UndefinedTableError as error:
            raise Retryable("the set of views just changed") from error
        return [
            LaneWork(
                LaneKey(row["internal"], row["lane"]),
                row["waiting_rows"],
                max(0.0, float(row["waiting_seconds"])),
                row["version"],
            )
            for row in rows
            if row["waiting_rows"]
        ]

    async def lane_versions(self) -> tuple[dict[str, str], list[LaneVersion]]:
        catalogue = await self._load()
        views = {view.internal: view for view in catalogue.views if view.is_current}
        if not views:
            return {}, []
        query = " UNION ALL ".join(map(_versions, views))
        try:
            rows = await self._pool.fetch(f"{query} ORDER BY internal, lane")
        except asyncpg.UndefinedTableError as error:
            raise Retryable("the set of views just changed") from error
        names = {internal: view.definition.name for internal, view in views.items()}
        lanes = [
            LaneVersion(names[row["internal"]], row["lane"], row["version"], row["floor"])
            for row in rows
        ]
        return {view.definition.name: view.epoch for view in views.values()}, lanes

    async def quarantine(self, key: LaneKey, deltas_max: int) -> int:
        try:
            number = await self._pool.fetchval(
                f"SELECT mv_{key.view}_quarantine($1, $2)", key.lane, deltas_max
            )
        except asyncpg.UndefinedFunctionError as error:
            raise self._outdated(key.view, error) from error
        return number or 0

    async def _load(self) -> Catalogue:
        self._catalogue = await load_catalogue(self._pool)
        return self._catalogue

    async def _find(self, internal: str) -> LiveView | None:
        for catalogue in (self._catalogue, None):
            views = (catalogue or await self._load()).views
            for view in views:
                if view.internal == internal:
                    return view
        return None

    def _outdated(self, view: str, error: Exception) -> Retryable:
        self._catalogue = Catalogue(-1, ())
        return Retryable(f"view {view} is gone: {error}")


def _fold(view: LiveView, row: Any, rows_max: int) -> Fold:
    columns = row_columns(view.definition)
    newest_at = row["_newest_at"]
    return Fold(
        view=view.definition.name,
        epoch=view.epoch,
        lane=row["_lane"],
        version=row["_folded_version"],
        previous=row["_previous"],
        floor=int(row["_floor"]),
        folded_deltas=row["_folded"],
        rows=[
            dict(zip(columns, values, strict=True)) for values in json.loads(row["_rows"] or "[]")
        ],
        newest_at_ms=0 if newest_at is None else int(newest_at.timestamp() * 1000),
        is_drained=row["_is_drained"],
        is_reload=row["_changed"] > rows_max,
        expired_deltas=row["_expired"],
    )


def _waiting(internal: str) -> str:
    return f"""
        SELECT '{internal}' AS internal, l.lane, l.version, w.waiting_rows, w.waiting_seconds
        FROM view_lanes l CROSS JOIN LATERAL (
            SELECT count(*)::integer AS waiting_rows,
                   coalesce(extract(epoch FROM now() - min(x.newest_at)), 0) AS waiting_seconds
            FROM (SELECT d.newest_at FROM {deltas_table_of(internal)} d
                  WHERE d.lane = l.lane AND d.xid >= l.floor
                  ORDER BY d.xid LIMIT {WAITING_ROWS_MAX}) x
        ) w WHERE l.internal = '{internal}'"""


def _versions(internal: str) -> str:
    return f"""
        SELECT '{internal}' AS internal, l.lane, l.version, (CASE
            WHEN EXISTS (SELECT FROM {deltas_table_of(internal)} d
                         WHERE d.lane = l.lane AND d.xid >= l.floor) THEN l.floor
            ELSE greatest(l.floor, pg_snapshot_xmin(pg_current_snapshot())) END
        )::text::bigint AS floor
        FROM view_lanes l WHERE l.internal = '{internal}'"""
