"""The one place of the operator where adapters meet logic.

`Operator` is what every handler gets as its `memo`: the contracts it may use, and nothing of how they are
reached. kopf gives each object a shallow copy of it, so all copies share the same contracts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from coffee_rt.errors import Rejected, Retryable
from coffee_rt.operator.care import Chores
from coffee_rt.operator.cluster import LightkubeCluster
from coffee_rt.operator.contract import Cluster, Leases
from coffee_rt.operator.objects import Objects, make_objects
from coffee_rt.operator.observing import Observer
from coffee_rt.operator.pipelines import PipelineChanges
from coffee_rt.operator.sessions import SessionCounter
from coffee_rt.operator.settings import OperatorSettings
from coffee_rt.operator.tending import Tender
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import Clock
from coffee_rt.runtime.lifecycle import Lifecycle
from coffee_rt.runtime.logs import Log
from coffee_rt.store.contract import OrderReader, StoreKeeper
from coffee_rt.store.keeper import PostgresKeeper
from coffee_rt.store.letter_redriver import PostgresLetterRedriver
from coffee_rt.store.migrations import pending_migrations
from coffee_rt.store.pool import Pool, create_pool
from coffee_rt.store.queries import PostgresOrderReader
from coffee_rt.store.view_catalogue import PostgresViewCatalogue
from coffee_rt.store.view_contract import ViewCatalogueStore, ViewFolder, ViewRepairer
from coffee_rt.store.view_fold import PostgresViewFolder
from coffee_rt.store.view_repair import PostgresViewRepairer
from coffee_rt.streams.keeper import RedisKeeper
from coffee_rt.streams.redis_log import RedisLog


@dataclass(frozen=True, slots=True)
class Operator:
    """What handlers work with. Shared by all tasks of the process; owned by `wired`."""

    settings: OperatorSettings
    clock: Clock
    log: Log
    pool: Pool
    store_keeper: StoreKeeper
    orders: OrderReader
    catalogue: ViewCatalogueStore
    folder: ViewFolder
    repairer: ViewRepairer
    redis_log: RedisLog
    """Makes producers and readers for those who need one."""
    log_keeper: RedisKeeper
    database: CircuitBreaker
    redis: CircuitBreaker
    cluster: Cluster
    leases: Leases
    pipeline_changes: PipelineChanges
    objects: Objects
    """The tenders of MetricView, Redrive and Replay."""


@asynccontextmanager
async def wired(settings: OperatorSettings, lifecycle: Lifecycle) -> AsyncIterator[Operator]:
    """The parts with their connections, closed again at the end. Connects nowhere by itself: servers that
    are away are found out, and told of, by whoever needs them."""
    database, redis = (
        CircuitBreaker(
            name,
            failures=settings.breaker_failures,
            open_seconds=min(settings.breaker_open_seconds, settings.backoff_seconds_max),
            clock=lifecycle.clock,
        )
        for name in ("postgresql", "redis")
    )
    pool = await create_pool(settings.database, application_name="coffee-rt operator")
    redis_log = RedisLog(settings.redis, settings.namespace, settings.shards, lifecycle.clock)
    log_keeper = redis_log.keeper()
    cluster = LightkubeCluster(settings.watch_namespace)
    catalogue = PostgresViewCatalogue(pool, clock=lifecycle.clock)
    repairer = PostgresViewRepairer(pool)
    try:
        yield Operator(
            settings=settings,
            clock=lifecycle.clock,
            log=lifecycle.log,
            pool=pool,
            store_keeper=PostgresKeeper(pool),
            orders=PostgresOrderReader(pool),
            catalogue=catalogue,
            folder=PostgresViewFolder(pool),
            repairer=repairer,
            redis_log=redis_log,
            log_keeper=log_keeper,
            database=database,
            redis=redis,
            cluster=cluster,
            leases=cluster,
            pipeline_changes=PipelineChanges(),
            objects=make_objects(
                catalogue=catalogue,
                repairer=repairer,
                redriver=PostgresLetterRedriver(pool),
                database=database,
                cluster=cluster,
                clock=lifecycle.clock,
                log=lifecycle.log,
            ),
        )
    finally:
        await cluster.close()
        await log_keeper.close()
        await pool.close()


def make_tender(operator: Operator) -> Tender:
    """What tends the OrderPipelines, with nothing remembered: one for each time of leading."""
    settings, clock = operator.settings, operator.clock

    async def check_store() -> None:
        async with operator.pool.connection() as connection:
            missing = await pending_migrations(connection)
        if missing:
            raise Retryable(f"it lacks {', '.join(missing)}: run coffee-rt migrate")

    async def check_log() -> None:
        try:
            await operator.log_keeper.start()
        except Rejected as error:
            raise Retryable(error.detail) from None

    observer = Observer(
        cluster=operator.cluster,
        log_keeper=operator.log_keeper,
        store_keeper=operator.store_keeper,
        folder=operator.folder,
        counter=SessionCounter(),
        redis=operator.redis,
        database=operator.database,
        clock=clock,
        check_log=check_log,
        check_store=check_store,
    )
    chores = Chores(
        log_keeper=operator.log_keeper,
        store_keeper=operator.store_keeper,
        redis=operator.redis,
        database=operator.database,
        clock=clock,
        log=operator.log,
        care_seconds=settings.care_seconds,
    )
    return Tender(
        cluster=operator.cluster,
        observer=observer,
        chores=chores,
        changes=operator.pipeline_changes,
        clock=clock,
        log=operator.log,
        tend_seconds=settings.tend_seconds,
        status_seconds=settings.status_seconds,
    )
