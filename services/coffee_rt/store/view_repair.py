"""Recomputing views from the orders while orders flow: backfill, rebuild, audit.

A chunk (a span of buckets) is recomputed by one transaction of two statements: the lanes are locked in
order, which keeps folds out but no writer; then ONE statement drops the chunk's unfolded deltas, aggregates
its orders and replaces its rows. All three see one snapshot, so each order is in the new row or its delta
is still to be folded, never both and never neither. An audit compares in one statement too,
and locks nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg

from coffee_rt.domain.views import ViewDefinition
from coffee_rt.errors import Rejected, Retryable
from coffee_rt.store.order_rows import id_range
from coffee_rt.store.partitions import retired_to_ms
from coffee_rt.store.pool import Pool
from coffee_rt.store.view_contract import AuditDifference, Chunk
from coffee_rt.store.view_repair_sql import (
    audit_sql,
    chunks_sql,
    expire_sql,
    filter_values,
    rebuild_sql,
)
from coffee_rt.store.view_tables import decode_definition

CHUNK_SECONDS = 3600
"""Span of buckets recomputed at once. Longer means fewer scans and longer pauses of folding."""
AUDIT_DIFFERENCES_MAX = 1_000
"""Differences reported of one chunk."""
DAY_SECONDS = 86_400
CHUNK_SECONDS_MAX = 1800.0
"""How long recomputing one chunk may take; a view by day over many orders needs more than other statements."""
EXPIRE_ROWS_MAX = 20_000
"""Rows past a view's retention deleted by one statement."""

MARK_BACKFILLED = """
    -- How far a view is filled, unless it is of another epoch than the chunks were rebuilt in.
    UPDATE view_catalogue SET backfilled_to = $2
    WHERE internal = $1 AND ($3::text IS NULL OR $3 = generation || view_epoch_suffix())"""


class PostgresViewRepairer:
    """ViewRepairer. Shared by all tasks; `chunk_seconds` of a view is at least its bucket."""

    def __init__(self, pool: Pool, *, chunk_seconds: int = CHUNK_SECONDS) -> None:
        self._pool = pool
        self._chunk_seconds = chunk_seconds

    async def recomputable_from(self, view: str) -> int:
        """Two reasons freeze a bucket: retention took partitions that may hold its orders, or the view
        itself keeps it no longer."""
        definition = await self._definition(view)
        now: int = await self._pool.fetchval("SELECT extract(epoch FROM now())::bigint")
        kept_from = max(0, now - definition.retention_days * DAY_SECONDS)
        retired_to = await retired_to_ms(self._pool) // 1000
        # An order's time is at most a day and some minutes after the time in its id.
        return max(kept_from, retired_to + DAY_SECONDS) if retired_to else kept_from

    async def plan_chunks(self, view: str, start: int | None, end: int | None) -> list[Chunk]:
        definition = await self._definition(view)
        bucket = definition.bucket.seconds
        size = round_up(self._chunk_seconds, bucket)
        first = round_up(max(start or 0, await self.recomputable_from(view)), bucket)
        chunks = []
        for row in await self._fetch_slowly(view, chunks_sql(view, size)):
            stop = row["start"] + size if end is None else min(row["start"] + size, end)
            chunk = Chunk(view, max(row["start"], first), round_up(stop, bucket))
            if chunk.start < chunk.end:
                chunks.append(chunk)
        return chunks

    async def rebuild_chunk(self, chunk: Chunk) -> int:
        definition = await self._definition(chunk.view)
        with _known(chunk.view):
            return await self._rebuild(definition, chunk)

    async def _rebuild(self, definition: ViewDefinition, chunk: Chunk) -> int:
        async with self._pool.transaction() as connection:
            await connection.execute("SET LOCAL synchronous_commit = on")  # As of a fold.
            # In lane order, so that two repairs wait for each other instead of deadlocking.
            await connection.execute(
                "SELECT FROM view_lanes WHERE internal = $1 ORDER BY lane FOR UPDATE", chunk.view
            )
            changed: int = await connection.fetchval(
                rebuild_sql(definition, chunk.view),
                *_span(chunk),
                *filter_values(definition),
                timeout=CHUNK_SECONDS_MAX,
            )
        return changed

    async def audit_chunk(self, chunk: Chunk) -> list[AuditDifference]:
        definition = await self._definition(chunk.view)
        query = audit_sql(definition, chunk.view, AUDIT_DIFFERENCES_MAX)
        arguments = (*_span(chunk), *filter_values(definition))
        rows = await self._fetch_slowly(chunk.view, query, *arguments)
        return [_difference(definition, row) for row in rows]

    async def mark_backfilled(self, view: str, to: int | None, *, epoch: str | None = None) -> None:
        status = await self._pool.execute(MARK_BACKFILLED, view, to, epoch)
        if epoch is not None and status == "UPDATE 0":
            raise Retryable(f"{view} is not of epoch {epoch} any more")

    async def expire_rows(self, view: str) -> int:
        definition = await self._definition(view)
        with _known(view):
            status = await self._pool.execute(
                expire_sql(view, EXPIRE_ROWS_MAX), definition.retention_days
            )
        return int(status.rpartition(" ")[2])

    async def _fetch_slowly(self, view: str, query: str, *arguments: Any) -> list[Any]:
        with _known(view):
            async with self._pool.transaction() as connection:
                return list(await connection.fetch(query, *arguments, timeout=CHUNK_SECONDS_MAX))

    async def _definition(self, view: str) -> ViewDefinition:
        row = await self._pool.fetchrow(
            "SELECT definition::text, filter::text FROM view_catalogue WHERE internal = $1", view
        )
        if row is None:
            raise _unknown(view)
        return decode_definition(row["definition"], row["filter"])


@contextmanager
def _known(view: str) -> Iterator[None]:
    """A view that is dropped or replaced between two statements is as unknown as one that never was."""
    try:
        yield
    except asyncpg.UndefinedTableError as error:
        raise _unknown(view) from error


def _unknown(view: str) -> Rejected:
    return Rejected("unknown-view", f"there is no view {view}", status=404)


def round_up(value: int, unit: int) -> int:
    """The least multiple of `unit` that is not below `value`."""
    return -(-value // unit) * unit


def _span(chunk: Chunk) -> tuple[datetime, datetime, UUID, UUID]:
    low, high = id_range(chunk.start, chunk.end)
    start, end = (datetime.fromtimestamp(at, UTC) for at in (chunk.start, chunk.end))
    return start, end, UUID(bytes=low), UUID(bytes=high)


def _difference(definition: ViewDefinition, row: Any) -> AuditDifference:
    names = [measure.name for measure in definition.measures]

    def measures(side: str) -> dict[str, int] | None:
        values = {name: row[f"{side}_{name}"] for name in names}
        is_there = row[f"is_{side}"]
        return {name: int(value) for name, value in values.items()} if is_there else None

    group = (row["tenant"], int(row["bucket"].timestamp()))
    dimensions = (row[name] for name in definition.dimension_columns)
    return AuditDifference(
        definition.name, (*group, *dimensions), measures("stored"), measures("computed")
    )
