"""Facts about a PostgreSQL for the doctor: settings, connections, clock, schema, partitions, intake. Reads only."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg

from coffee_rt.domain.wire import WIRE_VERSIONS_READABLE
from coffee_rt.store.faults import mapped_errors
from coffee_rt.store.migrations import pending_migrations

_CONNECT_SECONDS_MAX = 5.0

# Purpose: everything about the server itself in one round trip.
_SERVER = """
SELECT current_setting('server_version_num')::int AS version,
       current_setting('max_connections')::int AS connections_max,
       current_setting('superuser_reserved_connections')::int
         + coalesce(current_setting('reserved_connections', true)::int, 0) AS connections_reserved,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
       current_setting('fsync') AS fsync,
       current_setting('synchronous_commit') AS synchronous_commit,
       current_setting('full_page_writes') AS full_page_writes,
       current_setting('synchronous_standby_names') AS standby_names,
       pg_is_in_recovery() AS is_replica
"""

# Purpose: the end of the newest attached partition of orders, from its name.
_HORIZON = """
SELECT max(to_date(substring(c.relname FROM 'y(\\d{4})m'), 'YYYY') + make_interval(
         months => substring(c.relname FROM 'm(\\d\\d)d')::int - 1,
         days => substring(c.relname FROM 'd(\\d\\d)$')::int))
FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = to_regclass('orders') AND NOT i.inhdetachpending
"""

# Purpose: how much waits in the intake, for how long, and what of it this release cannot read.
_INTAKE = """
SELECT coalesce(sum(records), 0)::int8 AS records,
       coalesce(extract(epoch FROM clock_timestamp() - min(appended_at)), 0)::float8 AS oldest_seconds,
       coalesce(sum(records) FILTER (WHERE version <> ALL($1::int2[])), 0)::int8 AS unreadable
FROM intake
"""


@dataclass(frozen=True, slots=True)
class IntakeFacts:
    """What waits in the database's intake."""

    records: int = 0
    oldest_seconds: float = 0.0
    unreadable: int = 0
    """Records of a release newer than this one."""


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """A PostgreSQL as it answered. Times in seconds."""

    version: int
    connections_max: int
    connections_reserved: int
    connections: int
    fsync: str
    synchronous_commit: str
    full_page_writes: str
    standby_names: str
    is_replica: bool
    clock_offset_seconds: float
    missing_migrations: tuple[str, ...]
    partitions_end_at: float | None
    """Unix time up to which partitions exist; None without any."""
    intake: IntakeFacts | None = None
    """None before the migration that makes it."""


async def inspect_database(url: str) -> DatabaseFacts:
    """Ask a server. Raises Retryable when it is away, asyncpg's errors when it refuses us."""
    with mapped_errors():
        connection = await asyncpg.connect(
            url, statement_cache_size=0, timeout=_CONNECT_SECONDS_MAX
        )
        try:
            return await _inspect(connection)
        finally:
            await connection.close()


async def _inspect(connection: Any) -> DatabaseFacts:
    row = dict(await connection.fetchrow(_SERVER))
    missing = await pending_migrations(connection)
    horizon = await connection.fetchval(_HORIZON)
    intake = None
    if await connection.fetchval("SELECT to_regclass('intake') IS NOT NULL"):
        waiting = await connection.fetchrow(_INTAKE, sorted(WIRE_VERSIONS_READABLE))
        intake = IntakeFacts(**dict(waiting))
    before = time.time()
    theirs = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
    middle = (before + time.time()) / 2
    return DatabaseFacts(
        **row,
        clock_offset_seconds=theirs - middle,
        missing_migrations=tuple(missing),
        partitions_end_at=None if horizon is None else _unix(horizon),
        intake=intake,
    )


def _unix(naive_utc: datetime) -> float:
    return naive_utc.replace(tzinfo=UTC).timestamp()
