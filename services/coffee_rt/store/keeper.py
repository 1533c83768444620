"""Care of the store in PostgreSQL: partitions, ledger compaction, heartbeats, facts of the installation."""

from __future__ import annotations

from coffee_rt.errors import Rejected, Retryable
from coffee_rt.store import ledger, partitions
from coffee_rt.store.contract import EntryKey, PartitionState, RetentionPolicy
from coffee_rt.store.pool import Pool

_SHARDS = "shards"


class PostgresKeeper:
    """StoreKeeper on PostgreSQL. Shared by the tasks of a process; any number of processes may run it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def ensure_partitions(self, now_ms: int, days_ahead: int) -> list[str]:
        """See StoreKeeper."""
        return await partitions.ensure_partitions(self._pool, now_ms, days_ahead)

    async def partitions(self) -> list[PartitionState]:
        """See StoreKeeper."""
        return await partitions.list_partitions(self._pool)

    async def apply_retention(self, now_ms: int, keep_days: int) -> list[str]:
        """See StoreKeeper."""
        return await partitions.apply_retention(self._pool, now_ms, keep_days)

    async def detached_partitions(self) -> list[PartitionState]:
        """See StoreKeeper."""
        return await partitions.detached_partitions(self._pool)

    async def set_retention_policy(self, policy: RetentionPolicy | None) -> None:
        """See StoreKeeper."""
        await partitions.set_retention_policy(self._pool, policy)

    async def compact_ledger(self, shard: int, below: EntryKey) -> int:
        """See StoreKeeper."""
        return await ledger.compact_ledger(self._pool, shard, below)

    async def ledger_sums(self, shard: int, below: EntryKey | None) -> dict[str, int]:
        """See StoreKeeper."""
        return await ledger.ledger_sums(self._pool, shard, below)

    async def uncounted_records(self, shard: int, below: EntryKey, counter: int) -> int:
        """See StoreKeeper."""
        return await ledger.uncounted_records(self._pool, shard, below, counter)

    async def heartbeat(self, process: str, instance: str, feature_level: int) -> None:
        """See StoreKeeper."""
        await self._pool.execute(
            # Purpose: say that a process lives, and forget those that have been silent for a day.
            """WITH gone AS (
                DELETE FROM heartbeats WHERE beat_at < now() - interval '1 day'
                AND (process, instance) <> ($1::text, $2::text)
            )
            INSERT INTO heartbeats (process, instance, feature_level) VALUES ($1, $2, $3)
            ON CONFLICT (process, instance)
            DO UPDATE SET beat_at = now(), feature_level = excluded.feature_level""",
            process,
            instance,
            feature_level,
        )

    async def timeline(self) -> str:
        """See StoreKeeper."""
        # Purpose: what the epochs of the views end with. A standby would tell of a timeline it will leave.
        suffix = await self._pool.fetchval(
            "SELECT view_epoch_suffix() WHERE NOT pg_is_in_recovery()"
        )
        if suffix is None:
            raise Retryable("the database is a standby: its timeline is not the primary's")
        return str(suffix).lstrip(".")

    async def ensure_shards(self, shards: int) -> None:
        """See StoreKeeper."""
        await self._pool.execute(
            "INSERT INTO install (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            _SHARDS,
            str(shards),
        )
        stored = await self._pool.fetchval("SELECT value FROM install WHERE name = $1", _SHARDS)
        check_shards(shards, int(stored))


def check_shards(shards: int, stored: int) -> None:
    """Raises Rejected where the number of shards is not the one this installation was made with."""
    if shards != stored:
        raise Rejected(
            "shards-changed",
            f"this installation was made with {stored} shards and is now told {shards}; "
            "a key would meet another shard, so the number can't change",
            "/shards",
        )
