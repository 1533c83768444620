"""Waiting for the schema, for processes that only read: they are not ready until it is there, and never crash for it.

An installation starts all its parts at once, and an upgrade starts new pods while the migration still runs.
"""

from __future__ import annotations

from collections.abc import Callable

from coffee_rt.errors import Retryable
from coffee_rt.runtime.breaker import backoff_seconds
from coffee_rt.runtime.clock import Clock
from coffee_rt.store.migrations import pending_migrations
from coffee_rt.store.pool import Pool

WAIT_SECONDS_MAX = 5.0


async def lacking_schema(pool: Pool) -> str:
    """Why this release can't use the database yet, in words; empty when it can."""
    try:
        async with pool.transaction() as connection:
            missing = await pending_migrations(connection)
    except Retryable as error:
        return str(error)
    return f"the database lacks {', '.join(missing)}: run coffee-rt migrate" if missing else ""


async def wait_for_schema(pool: Pool, clock: Clock, on_wait: Callable[[str], None]) -> None:
    """Until the database is there with all migrations of this release; `on_wait` hears what it waits for."""
    attempt = 0
    while reason := await lacking_schema(pool):
        on_wait(reason)
        attempt += 1
        await clock.sleep(0.1 + backoff_seconds(attempt, cap=WAIT_SECONDS_MAX))
