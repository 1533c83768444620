"""What the database, the log and the views hold at the end: one half of the verdict, read past all proxies."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import asyncpg

from coffee_rt.runtime.settings import DatabaseSettings, RedisSettings
from coffee_rt.store.contract import accounted_records
from coffee_rt.store.keeper import PostgresKeeper
from coffee_rt.store.pool import create_pool
from coffee_rt.store.view_catalogue import PostgresViewCatalogue
from coffee_rt.store.view_repair import PostgresViewRepairer
from coffee_rt.streams.contract import STORE_GROUP
from coffee_rt.streams.redis_log import RedisLog
from tests.chaos.platform import Platform

GONE_SECONDS = 1.0
"""Backlog and deltas younger than this are those of a platform at work."""


@dataclass(frozen=True)
class Row:
    """One stored order."""

    order_id: str
    store: str
    drink: str
    price_minor: int
    quantity: int
    ordered_at: int

    @property
    def money(self) -> int:
        return self.price_minor * self.quantity


@dataclass
class Facts:
    """Of one run's orders (by prefix), except where said."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    """Name -> rows; more than one is a duplicate."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Id that was answered -> id that is stored, of all runs."""
    hourly: Counter[tuple[int, str, str, str]] = field(default_factory=Counter)
    """(hour, store, drink, measure) -> value, measures orders, quantity, revenue."""
    minutely: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    differences: int = 0
    """Groups of any view, of all runs, that the product's own audit says differ."""
    imbalances: list[int] = field(default_factory=list)
    """Per shard, of all runs: accepted by the log minus accounted for by the ledger."""
    lost_in_gaps: int = 0
    """Records of all runs that the log itself knows to be lost."""
    dead_letters: int = 0


async def read_facts(platform: Platform, prefix: str) -> Facts:
    facts = Facts()
    connection = await asyncpg.connect(platform.postgres.url)
    try:
        await _read_orders(connection, prefix, facts)
        await _read_views(connection, prefix, facts)
    finally:
        await connection.close()
    await _read_sums(platform, facts)
    facts.differences = await _audit(platform.database)
    return facts


async def _read_orders(connection: asyncpg.Connection, prefix: str, facts: Facts) -> None:
    rows = await connection.fetch(
        "SELECT order_id::text, note, store, drink, price_minor, quantity,"
        " extract(epoch FROM ordered_at)::bigint AS ordered_at FROM orders"
        " WHERE starts_with(note, $1)",
        prefix,
    )
    for row in rows:
        stored = Row(
            row["order_id"],
            row["store"],
            row["drink"],
            row["price_minor"],
            row["quantity"],
            row["ordered_at"],
        )
        facts.rows.setdefault(row["note"], []).append(stored)
    aliases = await connection.fetch("SELECT order_id::text AS id, target::text FROM order_aliases")
    facts.aliases = {row["id"]: row["target"] for row in aliases}
    facts.dead_letters = await connection.fetchval("SELECT count(*) FROM dead_letters")


async def _read_views(connection: asyncpg.Connection, prefix: str, facts: Facts) -> None:
    tables = await connection.fetch(
        "SELECT name, internal FROM view_catalogue WHERE is_current AND name IN ('hourly', 'minutely')"
    )
    table = {row["name"]: f"mv_{row['internal']}" for row in tables}
    bucket = "extract(epoch FROM bucket)::bigint AS bucket"
    for row in await connection.fetch(
        f"SELECT {bucket}, store, drink, orders, quantity, revenue FROM {table['hourly']}"
        " WHERE starts_with(store, $1)",
        prefix,
    ):
        for measure in ("orders", "quantity", "revenue"):
            facts.hourly[row["bucket"], row["store"], row["drink"], measure] += int(row[measure])
    for row in await connection.fetch(
        f"SELECT {bucket}, store, orders, revenue FROM {table['minutely']}"
        " WHERE starts_with(store, $1)",
        prefix,
    ):
        for measure in ("orders", "revenue"):
            facts.minutely[row["bucket"], row["store"], measure] += int(row[measure])


async def _read_sums(platform: Platform, facts: Facts) -> None:
    keeper = _log(platform).keeper()
    pool = await create_pool(platform.database)
    try:
        for shard in range(platform.shape.shards):
            horizon = await keeper.horizon(shard)
            sums = await PostgresKeeper(pool).ledger_sums(shard, None)
            facts.imbalances.append(horizon.counter - accounted_records(sums))
            facts.lost_in_gaps += sums["lost"]
    finally:
        await pool.close()
        await keeper.close()


async def _audit(database: DatabaseSettings) -> int:
    pool = await create_pool(database)
    try:
        repairer = PostgresViewRepairer(pool)
        differences = 0
        for state in await PostgresViewCatalogue(pool).views():
            for chunk in await repairer.plan_chunks(state.internal, None, None):
                differences += len(await repairer.audit_chunk(chunk))
        return differences
    finally:
        await pool.close()


def _log(platform: Platform) -> RedisLog:
    return RedisLog(RedisSettings(url=platform.valkey.url), "coffee-rt", platform.shape.shards)


class Watch:
    """Looks from outside whether the platform has caught up. One a scenario; `close()` it."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._keeper = _log(platform).keeper()

    async def close(self) -> None:
        await self._keeper.close()

    async def wait_caught_up(self, seconds_max: float, *, is_at_rest: bool) -> None:
        """Until nothing accepted waits for a worker and no delta for a fold. While orders flow (not
        `is_at_rest`): nothing that is older than a second. Raises RuntimeError with what still waits."""
        until = time.monotonic() + seconds_max
        while True:
            records, oldest, deltas = await self._waiting()
            if not records and not deltas:
                return
            if not is_at_rest and oldest < GONE_SECONDS and deltas < 2000:
                return
            if time.monotonic() > until:
                raise RuntimeError(
                    f"not caught up after {seconds_max:.0f} s: {records} records in the log,"
                    f" the oldest {oldest:.1f} s old, {deltas} deltas"
                )
            await asyncio.sleep(0.1)

    async def _waiting(self) -> tuple[int, float, int]:
        backlog = await self._keeper.backlog(STORE_GROUP)
        connection = await asyncpg.connect(self._platform.postgres.url)
        try:
            tables = await connection.fetch("SELECT internal FROM view_catalogue")
            counts = [
                await connection.fetchval(f"SELECT count(*) FROM mv_{row['internal']}_deltas")
                for row in tables
            ]
        finally:
            await connection.close()
        # Until the aggregator has made the views there is nothing to be caught up with.
        deltas = sum(counts) if counts else 1
        oldest = max((shard.oldest_seconds for shard in backlog), default=0.0)
        return sum(shard.records for shard in backlog), oldest, deltas
