"""The one place of query_api where adapters meet logic."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI

from coffee_rt.callers.identity import callers_of, key_ring_of
from coffee_rt.callers.rate import RateLimiter
from coffee_rt.callers.turns import Turns
from coffee_rt.errors import Rejected, Retryable
from coffee_rt.query_api.app import build_app
from coffee_rt.query_api.finding import OrderFinder
from coffee_rt.query_api.freshness import LagTracker
from coffee_rt.query_api.gate import Gate
from coffee_rt.query_api.letters import LetterService
from coffee_rt.query_api.service import QueryService
from coffee_rt.query_api.settings import QueryApiSettings
from coffee_rt.redis_nodes.counts import SharedCounts
from coffee_rt.runtime.breaker import CircuitBreaker, backoff_seconds
from coffee_rt.runtime.lifecycle import Lifecycle
from coffee_rt.runtime.settings import DatabaseSettings, SettingsError
from coffee_rt.store.amending import LetterAmender
from coffee_rt.store.intake import PostgresIntake
from coffee_rt.store.key_refresh import keep_fresh
from coffee_rt.store.letter_desk import PostgresLetterDesk
from coffee_rt.store.letter_redriver import PostgresLetterRedriver
from coffee_rt.store.pool import Pool, create_pool
from coffee_rt.store.queries import PostgresOrderReader, replay_seconds
from coffee_rt.store.schema_wait import lacking_schema, wait_for_schema
from coffee_rt.store.view_catalogue import PostgresViewCatalogue
from coffee_rt.store.view_contract import ViewReader
from coffee_rt.store.view_reads import PostgresViewReader
from coffee_rt.streams.contract import STORE_GROUP
from coffee_rt.streams.keeper import RedisKeeper
from coffee_rt.streams.redis_log import RedisLog


@asynccontextmanager
async def wired(settings: QueryApiSettings, lifecycle: Lifecycle) -> AsyncIterator[FastAPI]:
    """The application with its connections open; closed again at the end."""
    clock = lifecycle.clock
    breakers = [
        CircuitBreaker(
            name,
            failures=settings.breaker_failures,
            open_seconds=open_seconds,
            clock=clock,
        )
        for name, open_seconds in (
            ("postgresql", settings.breaker_open_seconds),
            ("postgresql-replica", settings.breaker_open_seconds),
            ("redis", settings.redis.breaker_seconds(settings.breaker_open_seconds)),
        )
    ]
    database, replica_breaker, log_breaker = breakers
    primary = await _open_pool(settings, settings.database)
    replica = await _replica_pool(settings)
    keeper = RedisLog(settings.redis, settings.namespace, settings.shards, clock).keeper()
    orders = PostgresOrderReader(primary)
    lag = LagTracker(
        keeper, STORE_GROUP, clock, None if replica is None else partial(replay_seconds, replica)
    )
    service = QueryService(
        primary=PostgresViewReader(primary, clock=clock),
        replica=_view_reader(replica, lifecycle),
        replica_breaker=replica_breaker,
        catalogue=PostgresViewCatalogue(primary, clock=clock),
        orders=orders,
        finder=OrderFinder(keeper, orders, log_breaker, database, PostgresIntake(primary)),
        lag=lag,
        database=database,
        clock=clock,
        decimals=settings.currency_decimals,
        position_wait_seconds=settings.position_wait_seconds_max,
        catalogue_seconds=settings.catalogue_seconds_max,
    )
    letters = LetterService(
        desk=PostgresLetterDesk(primary),
        redriver=PostgresLetterRedriver(primary),
        amender=LetterAmender(settings.currency_decimals),
        database=database,
        clock=clock,
        decimals=settings.currency_decimals,
    )
    lifecycle.spawn(lag.run(), "lag")
    lifecycle.spawn(_check_install(keeper, lifecycle), "install")
    counts = SharedCounts(settings.redis, settings.namespace)
    gate = await _gate(settings, primary, counts, lifecycle)
    await _ensure_ready(primary, lifecycle)
    try:
        yield build_app(service, letters, gate, lifecycle.health, clock)
    finally:
        await lifecycle.stop_tasks()
        await keeper.close()
        await counts.close()
        for pool in (primary, replica):
            if pool is not None:
                await pool.close()


async def _ensure_ready(pool: Pool, lifecycle: Lifecycle) -> None:
    """Ready once the schema was seen, now or later. From then on always: reads degrade one by one, and each
    answer says what is away."""

    def on_wait(reason: str) -> None:
        lifecycle.health.set("query-api", False, reason)

    async def wait() -> None:
        await wait_for_schema(pool, lifecycle.clock, on_wait)
        lifecycle.health.set("query-api", True, "serving")

    if reason := await lacking_schema(pool):
        on_wait(reason)
        lifecycle.spawn(wait(), "schema")
    else:
        lifecycle.health.set("query-api", True, "serving")


async def _check_install(keeper: RedisKeeper, lifecycle: Lifecycle) -> None:
    """End the process where the log has another number of shards: it would look for orders in vain."""
    attempt = 0
    while True:
        try:
            await keeper.start()
            return
        except Rejected as error:
            raise SettingsError(error.detail) from None
        except Retryable:
            await lifecycle.clock.sleep(backoff_seconds(attempt))
            attempt += 1


async def _replica_pool(settings: QueryApiSettings) -> Pool | None:
    url = settings.database.replica_url
    if not url:
        return None
    replica = settings.database.model_copy(update={"url": url})
    return await _open_pool(settings, replica)


async def _open_pool(settings: QueryApiSettings, database: DatabaseSettings) -> Pool:
    return await create_pool(
        database,
        application_name="coffee-rt-query-api",
        statement_seconds_max=settings.statement_seconds_max,
    )


def _view_reader(pool: Pool | None, lifecycle: Lifecycle) -> ViewReader | None:
    return None if pool is None else PostgresViewReader(pool, clock=lifecycle.clock)


async def _gate(
    settings: QueryApiSettings, pool: Pool, counts: SharedCounts, lifecycle: Lifecycle
) -> Gate:
    rate = RateLimiter(counts, lifecycle.clock, "query")
    lifecycle.spawn(rate.run(settings.rate_settle_seconds), "rates")
    ring = key_ring_of(settings)
    if ring is not None:
        await keep_fresh(ring, pool, lifecycle, settings.keys_refresh_seconds)
    callers = callers_of(settings, ring, rate, lifecycle.clock)
    at_once = min(settings.caller_requests_max, max(1, settings.database.pool_size_max // 2))
    turns = Turns(at_once, settings.caller_waiting_max, settings.caller_wait_seconds_max)
    return Gate(callers, turns)
