"""Builds the worker from its settings: the only place where its logic meets Redis and PostgreSQL."""

from __future__ import annotations

import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from coffee_rt.channels.redis import RedisChannels
from coffee_rt.errors import Retryable
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.lifecycle import Lifecycle
from coffee_rt.store.intake import PostgresIntake
from coffee_rt.store.keeper import PostgresKeeper
from coffee_rt.store.migrations import pending_migrations
from coffee_rt.store.orders import PostgresOrderWriter
from coffee_rt.store.pool import create_pool
from coffee_rt.streams.contract import STORE_GROUP
from coffee_rt.streams.redis_log import RedisLog
from coffee_rt.worker.care import CareLimits
from coffee_rt.worker.parts import WorkerLimits, WorkerParts
from coffee_rt.worker.pipeline import Worker
from coffee_rt.worker.reading import ReadLimits
from coffee_rt.worker.settings import WorkerSettings
from coffee_rt.worker.storing import StoreLimits, run_in_thread

THREAD_SWITCH_SECONDS = 0.0005
"""How long encoding keeps the interpreter while the transaction's next step waits for it. Python's own
5 ms would make a commit of eight round trips 40 ms longer."""


ALLOCATIONS_A_COLLECTION = 100_000
"""New objects between two searches for garbage in cycles. A batch is tens of thousands of objects that live
for a moment and hold no cycles; Python's own 700 made the search a third of the work."""


def tune_interpreter() -> None:
    """For the whole process, so only its entry calls this."""
    sys.setswitchinterval(THREAD_SWITCH_SECONDS)
    gc.freeze()
    gc.set_threshold(ALLOCATIONS_A_COLLECTION, 50, 100)


def limits_of(settings: WorkerSettings) -> WorkerLimits:
    """The core's limits from the settings."""
    return WorkerLimits(
        batch_records_max=settings.batch_records_max,
        batch_bytes_max=settings.batch_bytes_max,
        linger_seconds=settings.linger_ms / 1000,
        drain_seconds_max=settings.drain_seconds_max,
        currency_decimals=settings.currency_decimals,
        read=ReadLimits(
            entries_max=settings.read_entries_max,
            wait_seconds=settings.read_wait_seconds,
            claim_every_seconds=settings.claim_every_seconds,
            claim_idle_seconds_min=settings.claim_idle_seconds_min,
            claim_entries_max=settings.claim_entries_max,
            suspect_attempts_min=settings.suspect_attempts_min,
            backoff_seconds_max=settings.backoff_seconds_max,
        ),
        store=StoreLimits(
            suspect_attempts_min=settings.suspect_attempts_min,
            park_failures=settings.park_failures,
            backoff_seconds_max=settings.backoff_seconds_max,
        ),
        care=CareLimits(
            instance=settings.instance,
            care_seconds=settings.care_seconds,
            partition_days_ahead=settings.partition_days_ahead,
            retention_days=settings.retention_days,
            trim_keep_seconds=settings.trim_keep_seconds,
            trim_memory_percent_max=settings.trim_memory_percent_max,
            compact_margin_seconds=settings.compact_margin_seconds,
            keys_keep_seconds=settings.keys_noted_hours * 3600,
        ),
    )


@asynccontextmanager
async def build_worker(settings: WorkerSettings, lifecycle: Lifecycle) -> AsyncIterator[Worker]:
    """A worker with its connections, closed at the end."""
    log = RedisLog(settings.redis, settings.namespace, settings.shards, lifecycle.clock)
    log_keeper = log.keeper()
    channels = RedisChannels(settings.redis, namespace=settings.namespace)
    pool = await create_pool(settings.database, application_name="coffee-rt worker")

    def make_breaker(name: str, open_seconds: float) -> CircuitBreaker:
        return CircuitBreaker(
            name,
            failures=settings.breaker_failures,
            open_seconds=open_seconds,
            clock=lifecycle.clock,
        )

    intake = PostgresIntake(pool)

    async def check_store() -> None:
        async with pool.connection() as connection:
            missing = await pending_migrations(connection)
        if missing:
            raise Retryable(f"the database lacks {', '.join(missing)}: run coffee-rt migrate")
        await intake.note_keys(settings.keys_noted)

    parts = WorkerParts(
        reader=log.reader(STORE_GROUP, settings.instance),
        log_keeper=log_keeper,
        writer=PostgresOrderWriter(pool, are_keys_noted=settings.keys_noted),
        store_keeper=PostgresKeeper(pool),
        channels=channels,
        log_breaker=make_breaker(
            "redis", settings.redis.breaker_seconds(settings.breaker_open_seconds)
        ),
        store_breaker=make_breaker("postgresql", settings.breaker_open_seconds),
        clock=lifecycle.clock,
        health=lifecycle.health,
        log=lifecycle.log,
        intake=intake,
        offload=run_in_thread,
        check_store=check_store,
        check_log=log_keeper.start,
    )
    try:
        yield Worker(parts, limits_of(settings))
    finally:
        await channels.close()
        await log_keeper.close()
        await pool.close()
