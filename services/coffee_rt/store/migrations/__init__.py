"""Schema migrations: numbered plain SQL files of this folder, applied in order, forward only.

Each file runs in a transaction of its own that holds an advisory lock, so any number of processes may
migrate at once, also through a transaction pooler: the later ones find the work done. The checksum of
an applied file is kept; a file changed afterwards is refused. Versions this release doesn't know are
left alone, since the previous release must run on the new schema.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from coffee_rt.errors import Bug
from coffee_rt.store.faults import mapped_errors

MIGRATION_LOCK = 0x636F_6666_0001
"""Advisory lock of migrations ("coff", 1)."""
_CONNECT_SECONDS_MAX = 30.0
_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql\Z")

_BEGIN = f"""
BEGIN;
SELECT pg_advisory_xact_lock({MIGRATION_LOCK});
CREATE TABLE IF NOT EXISTS schema_migrations (
    version int PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def known_migrations(folder: Path | None = None) -> list[Migration]:
    """The migrations of this release in order. Raises Bug when a number is missing or used twice."""
    found = []
    for path in sorted((folder or Path(__file__).parent).glob("*.sql")):
        match = _NAME.match(path.name)
        if match is None:
            raise Bug(f"{path.name} is not named NNNN_what.sql")
        found.append(Migration(int(match[1]), path.stem, path.read_text("utf-8")))
    versions = [migration.version for migration in found]
    if versions != list(range(1, len(found) + 1)):
        raise Bug(f"migrations are not numbered 1, 2, 3 ...: {versions}")
    return found


async def migrate(database_url: str, folder: Path | None = None) -> list[str]:
    """Apply what is missing; the names of what this call applied. Safe to call at every start.

    Raises Bug when an applied file was changed, Retryable when the database is away.
    """
    with mapped_errors():
        connection = await asyncpg.connect(
            database_url, statement_cache_size=0, timeout=_CONNECT_SECONDS_MAX
        )
        try:
            return [
                migration.name
                for migration in known_migrations(folder)
                if await _apply(connection, migration)
            ]
        finally:
            await connection.close()


async def pending_migrations(connection: Any) -> list[str]:
    """Names of this release's migrations that the database lacks: for readiness and doctor."""
    exists = await connection.fetchval("SELECT to_regclass('schema_migrations') IS NOT NULL")
    rows = await connection.fetch("SELECT version FROM schema_migrations") if exists else []
    applied = {row["version"] for row in rows}
    return [each.name for each in known_migrations() if each.version not in applied]


async def _apply(connection: Any, migration: Migration) -> bool:
    await connection.execute(_BEGIN)
    try:
        known = await connection.fetchval(
            "SELECT checksum FROM schema_migrations WHERE version = $1", migration.version
        )
        if known is None:
            await connection.execute(migration.sql)
            await connection.execute(
                "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
                migration.version,
                migration.name,
                migration.checksum,
            )
        elif known != migration.checksum:
            raise Bug(f"{migration.name} was changed after it had been applied")
    except BaseException:
        if not connection.is_closed():
            await connection.execute("ROLLBACK")
        raise
    await connection.execute("COMMIT")
    return known is None
