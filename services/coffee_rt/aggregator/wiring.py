"""The one place of the aggregator where adapters meet logic."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from coffee_rt.aggregator.backfill import Backfiller
from coffee_rt.aggregator.core import FoldLimits, FoldLoop
from coffee_rt.aggregator.lanes import LaneShare
from coffee_rt.aggregator.publishing import Publisher
from coffee_rt.aggregator.settings import AggregatorSettings
from coffee_rt.channels.redis import RedisChannels
from coffee_rt.domain.views import ViewDefinition
from coffee_rt.errors import Rejected, Retryable
from coffee_rt.runtime.breaker import CircuitBreaker, backoff_seconds
from coffee_rt.runtime.lifecycle import Lifecycle
from coffee_rt.runtime.settings import SettingsError
from coffee_rt.store.definitions import load_definitions
from coffee_rt.store.migrations import pending_migrations
from coffee_rt.store.pool import Pool, create_pool
from coffee_rt.store.view_catalogue import PostgresViewCatalogue
from coffee_rt.store.view_contract import FILE_OWNER, NO_OWNER, ViewState
from coffee_rt.store.view_fold import PostgresViewFolder
from coffee_rt.store.view_repair import PostgresViewRepairer


@dataclass(slots=True)
class Aggregator:
    """The process's parts, wired; `start` makes the views and sets everything going."""

    settings: AggregatorSettings
    lifecycle: Lifecycle
    definitions: Sequence[ViewDefinition]
    pool: Pool
    catalogue: PostgresViewCatalogue
    repairer: PostgresViewRepairer
    publisher: Publisher
    folds: FoldLoop
    backfiller: Backfiller
    database: CircuitBreaker
    redis: CircuitBreaker

    async def start(self) -> None:
        """Wait for the schema, make missing views, begin to fold. Ready from then on."""
        await self._until_done(self._ensure_views)
        await self._until_done(self.folds.tell_once)
        spawn = self.lifecycle.spawn
        spawn(self.folds.listen(), "listen")
        spawn(self.folds.fold(), "fold")
        spawn(self.folds.tell(), "tell")
        spawn(self.backfiller.run(), "backfill")
        spawn(self._expire(), "expire")
        spawn(self._watch(), "watch")
        self.lifecycle.health.set("views", True, f"{len(self.definitions)} defined")

    async def _ensure_views(self) -> None:
        async with self.pool.transaction() as connection:
            missing = await pending_migrations(connection)
        if missing:
            raise Retryable(f"the database lacks {', '.join(missing)}: run `coffee-rt migrate`")
        try:
            await self.catalogue.ensure_views(self.definitions)
        except Rejected as error:
            raise SettingsError(error.detail) from error
        self._tell_strangers(await self.catalogue.views())
        await self.publisher.publish_catalogue()

    def _tell_strangers(self, states: Sequence[ViewState]) -> None:
        """Say which views and definitions don't go together; nothing is changed."""
        log = self.lifecycle.log
        defined = {definition.name for definition in self.definitions}
        owners = {state.definition.name: state.owner for state in states}
        for name, owner in sorted(owners.items()):
            if name in defined and owner != FILE_OWNER:
                log.warning(
                    "definition is ignored: its view has another owner", view=name, owner=owner
                )
            elif name not in defined and owner in (FILE_OWNER, NO_OWNER):
                # Never dropped by itself: a folder that was not mounted must not cost a year of history.
                log.warning(
                    "view without a definition is kept",
                    view=name,
                    drop=f"coffee-rt drop-view {name}",
                )

    async def _until_done(self, step: Callable[[], Awaitable[None]]) -> None:
        """Repeat a step of the start until the servers are there."""
        attempt = 0
        while True:
            try:
                await step()
                return
            except Retryable as error:
                attempt += 1
                self.lifecycle.health.set("views", False, str(error))
                self.lifecycle.log.warning("start waits", reason=str(error))
                await self.lifecycle.clock.sleep(0.1 + backoff_seconds(attempt, cap=5.0))

    async def _watch(self) -> None:
        """Report the servers. Without Redis folding goes on, so that alone is no reason to be unready."""
        health = self.lifecycle.health
        while True:
            is_away = self.database.is_open
            health.set("postgresql", not is_away, "not answering" if is_away else "answering")
            health.set("redis", True, "not answering" if self.redis.is_open else "answering")
            await self.lifecycle.clock.sleep(1.0)

    async def _expire(self) -> None:
        """Remove rows past their view's retention, now and then."""
        while True:
            with suppress(Retryable, Rejected):
                for state in await self.catalogue.views():
                    while await self.repairer.expire_rows(state.internal):
                        await self.lifecycle.clock.sleep(0.1)
            await self.lifecycle.clock.sleep(self.settings.expire_seconds)


@asynccontextmanager
async def wired(settings: AggregatorSettings, lifecycle: Lifecycle) -> AsyncIterator[Aggregator]:
    """The parts with their connections; closed again at the end. Raises SettingsError for a definition
    that can't be used."""
    try:
        definitions = load_definitions(settings.views_dir)
    except Rejected as error:
        raise SettingsError(error.detail) from error
    clock = lifecycle.clock
    database, redis = (
        CircuitBreaker(
            name,
            failures=settings.breaker_failures,
            open_seconds=settings.breaker_open_seconds,
            clock=clock,
        )
        for name in ("postgresql", "redis")
    )
    pool = await create_pool(settings.database, application_name="coffee-rt-aggregator")
    channels = RedisChannels(settings.redis, namespace=settings.namespace)
    publisher = Publisher(channels, redis)
    share = LaneShare(settings.instance, settings.steal_seconds)
    catalogue = PostgresViewCatalogue(pool, clock=clock)
    repairer = PostgresViewRepairer(pool)
    folds = FoldLoop(
        instance=settings.instance,
        folder=PostgresViewFolder(pool),
        catalogue=catalogue,
        channels=channels,
        publisher=publisher,
        share=share,
        database=database,
        clock=clock,
        log=lifecycle.log,
        limits=_limits(settings),
    )
    backfiller = Backfiller(
        catalogue=catalogue,
        repairer=repairer,
        publisher=publisher,
        share=share,
        database=database,
        clock=clock,
        log=lifecycle.log,
        pause_share=settings.backfill_pause_share,
    )
    try:
        yield Aggregator(
            settings,
            lifecycle,
            definitions,
            pool,
            catalogue,
            repairer,
            publisher,
            folds,
            backfiller,
            database,
            redis,
        )
    finally:
        await channels.close()
        await pool.close()


def _limits(settings: AggregatorSettings) -> FoldLimits:
    return FoldLimits(
        interval_seconds=settings.fold_interval_ms / 1000,
        poll_seconds=settings.poll_seconds,
        beacon_seconds=settings.beacon_seconds,
        alive_seconds=settings.alive_seconds,
        folds_max=settings.folds_max,
        deltas_max=settings.fold_deltas_max,
        rows_max=settings.fold_rows_max,
    )
