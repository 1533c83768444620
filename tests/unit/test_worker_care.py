"""The worker's chores: when they come, and what a promoted PostgreSQL makes of the log. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from coffee_rt.errors import Retryable
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.logs import get_log
from coffee_rt.store.memory import MemoryKeeper as MemoryStoreKeeper
from coffee_rt.store.memory_database import MemoryDatabase
from coffee_rt.streams.contract import ENTRY_ID_ZERO
from coffee_rt.streams.memory import MemoryLog
from coffee_rt.streams.memory_groups import MemoryKeeper, MemoryReader
from coffee_rt.worker.care import CareLimits, Caretaker
from tests.fanout_world import VirtualClock
from tests.workers import GROUP, entry_fields, now_order

KEEP_SECONDS = 600.0


class AwayKeeper(MemoryStoreKeeper):
    """A store that can go away."""

    is_away = False

    async def timeline(self) -> str:
        if self.is_away:
            raise Retryable("the database is away")
        return await super().timeline()


class World:
    """One caretaker over a log and a store in memory, in time that a test passes."""

    def __init__(self, uniform: Callable[[float, float], float] = max, *, shards: int = 1) -> None:
        self.clock = VirtualClock()
        self.log = MemoryLog(self.clock, shards)
        self.database = MemoryDatabase()
        self.store = AwayKeeper(self.database)
        self.keeper = MemoryKeeper(self.log)
        self.reader = MemoryReader(self.log, GROUP, "w1")
        self.care = Caretaker(
            log_keeper=self.keeper,
            store_keeper=self.store,
            log_breaker=CircuitBreaker("redis", clock=self.clock),
            store_breaker=CircuitBreaker("postgresql", failures=1000, clock=self.clock),
            clock=self.clock,
            log=get_log("test"),
            limits=CareLimits(trim_keep_seconds=KEEP_SECONDS),
            uniform=uniform,
        )

    @asynccontextmanager
    async def running(self, chores: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        task = asyncio.create_task(chores)
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def store_one(self) -> None:
        """An entry appended, delivered and acknowledged now."""
        shard = self.log.shards[0]
        shard.counter += 1
        self.log.insert_raw(0, entry_fields([now_order()], shard.counter))
        await self.reader.acknowledge(0, await self.reader.read(0, 10, 0))

    async def count_again(self) -> int:
        """Entries that are delivered once more."""
        again = await self.reader.read(0, 100, 0)
        await self.reader.acknowledge(0, again)
        return len(again)


@pytest.mark.parametrize("uniform", [min, max])
async def test_hourly_chores_come_within_a_minute_of_the_start_and_then_every_hour(
    uniform: Callable[[float, float], float],
) -> None:
    world = World(uniform)
    assert not await world.store.partitions()
    async with world.running(world.care.run_hourly()):
        await world.clock.advance(61)
        assert await world.store.partitions()
        world.database.partitions.clear()
        await world.clock.advance(0.7 * 3600)
        assert not await world.store.partitions()
        await world.clock.advance(0.6 * 3600)
        assert await world.store.partitions()


async def test_a_promoted_postgresql_is_told_again_what_it_may_have_lost() -> None:
    world = World()
    await world.care.prepare_log()
    async with world.running(world.care.run_often()):
        for _ in range(200):
            await world.store_one()
            await world.clock.advance(10)
        assert await world.count_again() == 0
        world.database.timeline = "1.2"
        await world.clock.advance(15)
        # 600 seconds, and what the marks (one in 30 seconds) and the turns (one in 12) are coarse by.
        assert 60 <= await world.count_again() <= 66
        await world.clock.advance(60)
        assert await world.count_again() == 0


async def test_what_was_stored_before_an_outage_of_postgresql_is_kept_until_it_is_back() -> None:
    """Else an outage longer than the keeping would cost what the standby that ends it lacks."""
    world = World()
    await world.care.prepare_log()
    async with world.running(world.care.run_often()):
        await world.clock.advance(100)
        await world.store_one()
        await world.clock.advance(20)
        world.store.is_away = True
        await world.clock.advance(3 * KEEP_SECONDS)
        world.database.timeline, world.store.is_away = "1.2", False
        await world.clock.advance(15)
        assert await world.count_again() == 1
        await world.clock.advance(2 * KEEP_SECONDS)
        assert world.log.shards[0].first_from(ENTRY_ID_ZERO) is None


async def test_a_shard_that_is_away_does_not_keep_the_others_from_being_trimmed() -> None:
    world = World(shards=3)
    await world.care.prepare_log()
    tried: list[int] = []

    async def fail(point: str, shard: int) -> None:
        if point == "trim.send":
            tried.append(shard)
            if shard == 0:
                raise Retryable("away")

    world.log.faults = fail
    with pytest.raises(Retryable):
        await world.care.trim()
    assert tried == [0, 1, 2]
