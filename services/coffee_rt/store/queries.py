"""Reads of orders and dead letters from PostgreSQL."""

from __future__ import annotations

from typing import Any

from coffee_rt.store import dead_letters, ledger
from coffee_rt.store.contract import RECENT_ROWS_MAX, DeadLetter, StoredOrder
from coffee_rt.store.order_rows import SELECT_COLUMNS, from_row
from coffee_rt.store.pool import Pool

# Purpose: one order by its id, from the one partition that can hold it.
FIND = f"SELECT {SELECT_COLUMNS} FROM orders WHERE order_id = $1 AND tenant = $2"

_ID_MAX = b"\xff" * 16


class PostgresOrderReader:
    """OrderReader on PostgreSQL; give it a pool of the primary. Shared by all tasks."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def find_order(self, tenant: int, order_id: bytes) -> StoredOrder | None:
        """See OrderReader."""
        row = await self._pool.fetchrow(FIND, order_id.hex(), tenant)
        if row is None:
            # Only then the alias: with both in one statement no partition could be left out.
            target = await self._pool.fetchval(
                "SELECT target FROM order_aliases WHERE order_id = $1 AND tenant = $2",
                order_id.hex(),
                tenant,
            )
            row = target and await self._pool.fetchrow(FIND, target, tenant)
        return from_row(row) if row else None

    async def find_dead_letter(self, tenant: int, order_id: bytes) -> DeadLetter | None:
        """See OrderReader."""
        return await dead_letters.find_dead_letter(self._pool, tenant, order_id)

    async def recent_orders(
        self, tenant: int | None, limit: int, before: bytes | None = None, store: str | None = None
    ) -> list[StoredOrder]:
        """See OrderReader."""
        query, arguments = recent_query(tenant, limit, before, store)
        return [from_row(row) for row in await self._pool.fetch(query, *arguments)]

    async def dead_letters(
        self, tenant: int | None, limit: int, before: int | None
    ) -> list[DeadLetter]:
        """See OrderReader."""
        return await dead_letters.list_dead_letters(self._pool, tenant, limit, before)

    async def is_entry_stored(self, shard: int, batch_id: bytes) -> bool:
        """See OrderReader."""
        return await ledger.is_entry_stored(self._pool, shard, batch_id)


async def replay_seconds(pool: Pool) -> float | None:
    """How far a standby may be behind its primary, from above: since the commit it replayed last. 0 of a
    primary, None of a standby that replayed nothing yet."""
    seconds = await pool.fetchval(
        """SELECT CASE WHEN pg_is_in_recovery()
        THEN extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())
        ELSE 0 END::float8"""
    )
    return None if seconds is None else max(0.0, float(seconds))


def recent_query(
    tenant: int | None, limit: int, before: bytes | None, store: str | None
) -> tuple[str, list[Any]]:
    """The statement and arguments of recent_orders: backwards along the primary key."""
    arguments: list[Any] = [(before or _ID_MAX).hex(), limit]
    of_tenant = ""
    if tenant is not None:
        arguments.append(tenant)
        of_tenant = f" AND tenant = ${len(arguments)}"
    newest = f"FROM orders WHERE order_id < $1{of_tenant} ORDER BY order_id DESC"
    if store is None:
        return f"SELECT {SELECT_COLUMNS} {newest} LIMIT $2", arguments
    arguments.append(store)
    query = f"""
        SELECT {SELECT_COLUMNS} FROM (SELECT * {newest} LIMIT {RECENT_ROWS_MAX}) AS newest
        WHERE store = ${len(arguments)} ORDER BY order_id DESC LIMIT $2
    """
    return query, arguments
