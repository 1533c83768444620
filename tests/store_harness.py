"""The write side of a store for tests, in memory or in PostgreSQL, behind the same few names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from coffee_rt.domain.ids import IdMinter
from coffee_rt.domain.orders import Order
from coffee_rt.domain.views import ViewDefinition
from coffee_rt.runtime.settings import DatabaseSettings
from coffee_rt.store.contract import (
    ApiKeyStore,
    Committed,
    DeadRecord,
    EntryWrite,
    OrderReader,
    OrderWriter,
    StoreKeeper,
)
from coffee_rt.store.intake import PostgresIntake
from coffee_rt.store.intake_contract import Intake
from coffee_rt.store.keeper import PostgresKeeper
from coffee_rt.store.keys import PostgresApiKeys
from coffee_rt.store.letter_redriver import PostgresLetterRedriver
from coffee_rt.store.memory import (
    MemoryKeeper,
    MemoryOrderReader,
    MemoryOrderWriter,
)
from coffee_rt.store.memory_database import MemoryDatabase, MemoryLane, MemoryView
from coffee_rt.store.memory_intake import MemoryIntake
from coffee_rt.store.memory_keys import MemoryApiKeys
from coffee_rt.store.memory_redriver import MemoryLetterRedriver
from coffee_rt.store.orders import PostgresOrderWriter
from coffee_rt.store.pool import Pool, create_pool
from coffee_rt.store.queries import PostgresOrderReader
from coffee_rt.store.redrives import LetterRedriver
from coffee_rt.store.view_catalogue import PostgresViewCatalogue
from coffee_rt.store.view_contract import ViewState
from coffee_rt.store.view_tables import Catalogue, LiveView, deltas_table_of, load_catalogue
from tests.builders import NOW_MS, an_order

_sequence = count(1)


@dataclass
class WriteStore:
    """One store's write side, and a look at what it wrote."""

    writer: OrderWriter
    reader: OrderReader
    keeper: StoreKeeper
    keys: ApiKeyStore
    redriver: LetterRedriver
    intake: Intake
    database: MemoryDatabase | None = None
    pool: Pool | None = None

    async def commit(self, *entries: EntryWrite) -> Committed:
        return await self.writer.commit(self.writer.prepare(entries))

    async def add_view(self, definition: ViewDefinition, feature_level: int = 1) -> None:
        """Make a view live, needing a feature level."""
        if self.pool is not None:
            await PostgresViewCatalogue(self.pool).ensure_views([definition])
            await self.pool.execute("UPDATE view_catalogue SET feature_level = $1", feature_level)
            return
        assert self.database is not None
        state = ViewState(definition, definition.name, "e", True, None)
        lanes = [MemoryLane() for _ in range(definition.lanes)]
        self.database.views[definition.name] = MemoryView(state, lanes)
        view = LiveView(definition, definition.name, "e", feature_level)
        catalogue = self.database.catalogue
        self.database.catalogue = Catalogue(catalogue.generation + 1, (*catalogue.views, view))

    async def delta_sums(self, view: str, measure: str) -> int:
        """Sum of a measure over all unfolded deltas of a view."""
        if self.pool is not None:
            async with self.pool.connection() as connection:
                views = (await load_catalogue(connection)).views
            table = deltas_table_of(next(v.internal for v in views if v.definition.name == view))
            return int(await self.pool.fetchval(f"SELECT coalesce(sum({measure}), 0) FROM {table}"))
        assert self.database is not None
        kept = self.database.views[view]
        index = [each.name for each in kept.state.definition.measures].index(measure)
        return sum(each.delta.measures[index] for lane in kept.lanes for each in lane.deltas)


@asynccontextmanager
async def a_write_store(database_url: str | None, **settings: Any) -> AsyncIterator[WriteStore]:
    """A store in memory, or with a URL on PostgreSQL."""
    if database_url is None:
        database = MemoryDatabase()
        yield WriteStore(
            MemoryOrderWriter(database),
            MemoryOrderReader(database),
            MemoryKeeper(database),
            MemoryApiKeys(database),
            MemoryLetterRedriver(database, lambda: NOW_MS / 1000),
            MemoryIntake(database, lambda: NOW_MS / 1000),
            database=database,
        )
        return
    pool = await create_pool(DatabaseSettings(url=database_url, **settings))
    try:
        yield WriteStore(
            PostgresOrderWriter(pool),
            PostgresOrderReader(pool),
            PostgresKeeper(pool),
            PostgresApiKeys(pool),
            PostgresLetterRedriver(pool, id_age_days_max=36_500),
            PostgresIntake(pool),
            pool=pool,
        )
    finally:
        await pool.close()


def order_at(at_ms: int, **changes: Any) -> Order:
    """An order whose id and acceptance are at a time, whatever ids were made before."""
    order_id = IdMinter().mint(at_ms)
    return an_order(order_id=order_id, accepted_at_us=at_ms * 1000, **changes)


def an_entry(
    *orders: Order,
    shard: int = 0,
    dead: Sequence[DeadRecord] = (),
    counter: int = 0,
    records: int | None = None,
    gap: tuple[int, int] | None = None,
    batch_id: bytes | None = None,
    ms: int = NOW_MS,
) -> EntryWrite:
    """An entry of its own id that carries orders."""
    return EntryWrite(
        shard=shard,
        entry=(ms, next(_sequence)),
        batch_id=batch_id or IdMinter().mint(ms),
        counter=counter,
        records=len(orders) + len(dead) if records is None else records,
        orders=orders,
        dead=dead,
        gap=gap,
    )
