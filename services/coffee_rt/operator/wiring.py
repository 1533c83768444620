"""The one place of the operator where adapters meet logic.

`Operator` is what every handler gets as its `memo`: the contracts it may use, and nothing of how they are
reached. kopf gives each object a shallow copy of it, so all copies share the same contracts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from coffee_rt.operator.cluster import LightkubeCluster
from coffee_rt.operator.contract import Cluster, Leases
from coffee_rt.operator.pipelines import Pipelines
from coffee_rt.operator.settings import OperatorSettings
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import Clock
from coffee_rt.runtime.lifecycle import Lifecycle
from coffee_rt.runtime.logs import Log
from coffee_rt.store.contract import (
    OrderReader,
    StoreKeeper,
    ViewCatalogueStore,
    ViewFolder,
    ViewRepairer,
)
from coffee_rt.store.keeper import PostgresKeeper
from coffee_rt.store.pool import Pool, create_pool
from coffee_rt.store.queries import PostgresOrderReader
from coffee_rt.store.view_catalogue import PostgresViewCatalogue
from coffee_rt.store.view_fold import PostgresViewFolder
from coffee_rt.store.view_repair import PostgresViewRepairer
from coffee_rt.streams.contract import LogKeeper
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
    log_keeper: LogKeeper
    database: CircuitBreaker
    redis: CircuitBreaker
    cluster: Cluster
    leases: Leases
    pipelines: Pipelines
    """The OrderPipeline objects as last seen."""


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
    try:
        yield Operator(
            settings=settings,
            clock=lifecycle.clock,
            log=lifecycle.log,
            pool=pool,
            store_keeper=PostgresKeeper(pool),
            orders=PostgresOrderReader(pool),
            catalogue=PostgresViewCatalogue(pool, clock=lifecycle.clock),
            folder=PostgresViewFolder(pool),
            repairer=PostgresViewRepairer(pool),
            redis_log=redis_log,
            log_keeper=log_keeper,
            database=database,
            redis=redis,
            cluster=cluster,
            leases=cluster,
            pipelines=Pipelines(),
        )
    finally:
        await cluster.close()
        await log_keeper.close()
        await pool.close()
