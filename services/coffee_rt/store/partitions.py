"""Partitions of `orders`, one a UTC day of the order id: made ahead, listed, retired.

A partition is made beside the table and then attached, so that writers never wait for it; an advisory lock
of the transaction lets one process make it and the others find it. Retiring detaches concurrently in one
call and drops in a later one. Up to where orders were retired is remembered: such a day is never made
again, since views of it could no longer be recomputed and its ids no longer be told apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from coffee_rt.domain.ids import format_id, id_floor, id_time_ms
from coffee_rt.errors import Rejected, Retryable
from coffee_rt.store.contract import KEEP_DAYS_MIN, BadData, PartitionState, RetentionPolicy
from coffee_rt.store.pool import Pool

PARTITION_LOCK = 0x636F_6666_0002
RETENTION_LOCK = 0x636F_6666_0003
DAY_MS = 86_400_000
DAYS_BEHIND = 1
"""A client's id may be a day old, so yesterday's partition is ensured too."""
MISSING_DAYS_BEHIND_MAX = 3660
MISSING_DAYS_AHEAD_MAX = 30
"""A day further off is never made for an order that asks for it: no such id was ever accepted, and a
stranger who writes to the log must not fill the catalogue with tables."""

_LOCK_SECONDS_MAX = 2
_RETIRED_TO = "orders_retired_to_ms"
_POLICY = "retention_policy"
_NAME = re.compile(r"orders_y(\d{4})m(\d{2})d(\d{2})\Z")
_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_ATTACHED = """
SELECT c.relname::text AS name, i.inhdetachpending AS is_leaving
FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = 'orders'::regclass ORDER BY c.relname
"""

# Purpose: tables that were detached and not dropped yet.
_DETACHED = """
SELECT c.relname::text AS name FROM pg_class AS c
WHERE c.relkind = 'r' AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'orders'::regclass)
  AND c.relname ~ '^orders_y[0-9]{4}m[0-9]{2}d[0-9]{2}$'
  AND NOT EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = c.oid)
ORDER BY c.relname
"""

_BEGIN = f"""
BEGIN;
SET LOCAL lock_timeout = '{_LOCK_SECONDS_MAX}s';
SELECT pg_advisory_xact_lock({PARTITION_LOCK})
"""

_MARK_RETIRED = f"""
INSERT INTO install AS i (name, value) VALUES ('{_RETIRED_TO}', $1)
ON CONFLICT (name) DO UPDATE SET value = excluded.value, set_at = now()
WHERE i.value::int8 < excluded.value::int8
"""


_SET_POLICY = f"""
INSERT INTO install AS i (name, value) VALUES ('{_POLICY}', $1)
ON CONFLICT (name) DO UPDATE SET value = excluded.value, set_at = now()
WHERE i.value <> excluded.value
"""


def partition_of(day_ms: int) -> PartitionState:
    """The partition that holds a day's ids."""
    day = _UNIX_EPOCH + timedelta(milliseconds=day_ms)
    return PartitionState(f"orders_y{day:%Y}m{day:%m}d{day:%d}", day_ms, day_ms + DAY_MS)


def parse_partition(name: str) -> PartitionState | None:
    """The partition of a table's name; None for a table that is none."""
    match = _NAME.match(name)
    if match is None:
        return None
    day = datetime(int(match[1]), int(match[2]), int(match[3]), tzinfo=UTC)
    return partition_of(round(day.timestamp()) * 1000)


def day_of(at_ms: int) -> int:
    return at_ms // DAY_MS * DAY_MS


def plan_days(now_ms: int, days_ahead: int) -> list[int]:
    """Days (Unix ms) that must have a partition at a time."""
    today = day_of(now_ms)
    return [today + offset * DAY_MS for offset in range(-DAYS_BEHIND, days_ahead + 1)]


def check_missing_days(days: Iterable[int], now_ms: int, retired_to_ms: int) -> None:
    """Raises BadData when orders of such days can never be stored."""
    for day in days:
        distance = (day - day_of(now_ms)) // DAY_MS
        if distance > MISSING_DAYS_AHEAD_MAX:
            raise BadData("the time in the order id is far ahead")
        if day < retired_to_ms or distance < -MISSING_DAYS_BEHIND_MAX:
            raise BadData(f"the orders of {partition_of(day).name[7:]} have been retired")


async def ensure_partitions(pool: Pool, now_ms: int, days_ahead: int) -> list[str]:
    """See StoreKeeper."""
    return await _ensure_days(pool, plan_days(now_ms, days_ahead))


async def ensure_days_of(pool: Pool, order_ids: Sequence[bytes]) -> list[str]:
    """Make the partitions that orders lack, as far as such orders can have been accepted. Raises BadData
    for the others."""
    days = sorted({day_of(id_time_ms(order_id)) for order_id in order_ids})
    attached = {state.start_ms for state in await list_partitions(pool)}
    missing = [day for day in days if day not in attached]
    # The database's clock: one for all workers.
    check_missing_days(missing, await _database_ms(pool), await retired_to_ms(pool))
    return await _ensure_days(pool, missing)


async def list_partitions(pool: Pool) -> list[PartitionState]:
    """The attached partitions, oldest first."""
    states = [parse_partition(row["name"]) for row in await pool.fetch(_ATTACHED)]
    return [state for state in states if state is not None]


async def retired_to_ms(pool: Pool) -> int:
    """Orders whose ids are older than this (Unix ms) were retired; 0: none ever were."""
    value = await pool.fetchval("SELECT value FROM install WHERE name = $1", _RETIRED_TO)
    return int(value or 0)


async def _database_ms(pool: Pool) -> int:
    return int(await pool.fetchval("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::int8"))


async def _ensure_days(pool: Pool, days: Sequence[int]) -> list[str]:
    attached = {state.start_ms for state in await list_partitions(pool)}
    retired_to = await retired_to_ms(pool)
    made = []
    for day in days:
        if day not in attached and day >= retired_to and await _make(pool, partition_of(day)):
            made.append(partition_of(day).name)
    return made


async def _make(pool: Pool, state: PartitionState) -> bool:
    low = format_id(id_floor(state.start_ms))
    high = format_id(id_floor(state.end_ms))
    name = state.name
    async with pool.transaction(_BEGIN) as connection:
        if await connection.fetchval("SELECT to_regclass($1::text) IS NOT NULL", name):
            return False
        # The CHECK says what the bounds say: attaching needs no scan and only a weak lock.
        await connection.execute(
            f"""
            CREATE TABLE {name} (LIKE orders INCLUDING ALL);
            ALTER TABLE {name} ADD CONSTRAINT {name}_bounds
                CHECK (order_id >= '{low}' AND order_id < '{high}');
            ALTER TABLE orders ATTACH PARTITION {name} FOR VALUES FROM ('{low}') TO ('{high}');
            ALTER TABLE {name} DROP CONSTRAINT {name}_bounds
            """
        )
    return True


async def detached_partitions(pool: Pool) -> list[PartitionState]:
    """See StoreKeeper."""
    states = [parse_partition(row["name"]) for row in await pool.fetch(_DETACHED)]
    return [state for state in states if state is not None]


async def retention_policy(pool: Pool) -> RetentionPolicy | None:
    """The installation's policy; None where none was set."""
    value = await pool.fetchval("SELECT value FROM install WHERE name = $1", _POLICY)
    if value is None:
        return None
    days, _, expired = str(value).partition(" ")
    return RetentionPolicy(int(days), expired == "drop")


async def set_retention_policy(pool: Pool, policy: RetentionPolicy | None) -> None:
    """See StoreKeeper."""
    if policy is None:
        await pool.execute("DELETE FROM install WHERE name = $1", _POLICY)
        return
    _check_days(policy.keep_days)
    expired = "drop" if policy.is_dropped else "keep"
    await pool.execute(_SET_POLICY, f"{policy.keep_days} {expired}")


def _check_days(keep_days: int) -> None:
    if keep_days < KEEP_DAYS_MIN:
        raise Rejected("keep-days", f"must be at least {KEEP_DAYS_MIN}", "/keep_days")


async def apply_retention(pool: Pool, now_ms: int, keep_days: int) -> list[str]:
    """See StoreKeeper. One process at a time; the others do nothing."""
    _check_days(keep_days)
    # The earlier of two clocks: one that is days ahead must not retire what is still written.
    now_ms = min(now_ms, await _database_ms(pool))
    async with pool.transaction() as guard:
        if not await guard.fetchval("SELECT pg_try_advisory_xact_lock($1)", RETENTION_LOCK):
            return []
        policy = await retention_policy(pool) or RetentionPolicy(keep_days, is_dropped=True)
        before_ms = day_of(now_ms) - policy.keep_days * DAY_MS
        # Replaces the portal of the statement before, and with it a snapshot: finalizing a detachment
        # waits for older snapshots, so this transaction would wait for itself.
        await guard.execute("SELECT 1")
        done = []
        if policy.is_dropped:
            done = await _drop_detached(pool, await retired_to_ms(pool))
        return done + await _detach(pool, before_ms)


async def _drop_detached(pool: Pool, before_ms: int) -> list[str]:
    done = []
    for row in await pool.fetch(_DETACHED):
        state = parse_partition(row["name"])
        if state is not None and state.end_ms <= before_ms:
            await pool.execute(f"DROP TABLE {state.name}")
            done.append(f"dropped {state.name}")
    return done


async def _detach(pool: Pool, before_ms: int) -> list[str]:
    done = []
    rows = await pool.fetch(_ATTACHED)
    for row in rows:
        state = parse_partition(row["name"])
        if state is None or (state.end_ms > before_ms and not row["is_leaving"]):
            continue
        # Known before it happens: nothing recomputes from a day that is going.
        await pool.execute(_MARK_RETIRED, str(state.end_ms))
        how = "FINALIZE" if row["is_leaving"] else "CONCURRENTLY"
        await _alter_alone(pool, f"ALTER TABLE orders DETACH PARTITION {state.name} {how}")
        done.append(f"detached {state.name}")
    return done


async def _alter_alone(pool: Pool, statement: str) -> Any:
    """Run what refuses to be inside a transaction."""
    async with pool.connection() as connection:
        try:
            return await connection.execute(statement)
        except TimeoutError:
            # It waits for transactions under way; the partition is left leaving, to be finalized later.
            raise Retryable("a long transaction holds orders; its partition leaves later") from None
