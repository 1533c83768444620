"""Redis is away, and then what stands in for it is hurt too: the database's intake and who drains it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from tests.chaos.proxy import Direction
from tests.chaos.scenario import World, scenario
from tests.chaos.scenarios.kills import kill_some_times
from tests.chaos.scenarios.network import cut_randomly, heal, links, lose_replies, repeat

FAULT_SECONDS = 8.0
TAKEN_FIRST = 100


async def intake_taken(world: World) -> int:
    """Orders the intake ever took."""
    connection = await asyncpg.connect(world.platform.database.url)
    try:
        return int(
            await connection.fetchval("SELECT coalesce(sum(records), 0)::int8 FROM intake_accepted")
        )
    finally:
        await connection.close()


@asynccontextmanager
async def redis_out(world: World) -> AsyncIterator[None]:
    """Redis is stopped, and the intake takes orders already; the runner starts it again."""
    before = await intake_taken(world)
    async with world.fault("Redis stopped"):
        await world.platform.stop_server("valkey")
        await world.accepted(TAKEN_FIRST)
        yield
        # Whatever was hurt is well again: what was not taken meanwhile is now.
        await world.accepted(1)
    taken = await intake_taken(world) - before
    world.figure("intake", taken)
    world.expect(taken > TAKEN_FIRST // 2, f"the intake took {taken} orders")
    await world.platform.start_part("valkey")


async def cut_links_to_postgres(world: World, process: str) -> None:
    """Reset them again and again after some bytes of what is sent."""
    proxies = links(world, process, "postgres")
    await repeat(FAULT_SECONDS, 0.3, lambda: cut_randomly(world, proxies, Direction.TO_SERVER))
    await heal(proxies)


@scenario(
    "intake-replies-lost",
    fault="Redis is stopped; order_api > PostgreSQL: effect without an answer, COMMIT too",
    smoke=True,
)
async def intake_replies_lost(world: World) -> None:
    async with redis_out(world):
        await lose_replies(world, "order-api", "postgres")


@scenario(
    "intake-cut-mid-append",
    fault="Redis is stopped; order_api > PostgreSQL reset after some bytes of an append",
)
async def intake_cut(world: World) -> None:
    async with redis_out(world):
        await cut_links_to_postgres(world, "order-api")


@scenario("intake-drain-cut", fault="Redis is stopped; worker > PostgreSQL reset while it drains")
async def intake_drain_cut(world: World) -> None:
    async with redis_out(world):
        await cut_links_to_postgres(world, "worker")


@scenario(
    "intake-kills", fault="Redis is stopped; kill -9 of order_api, workers and PostgreSQL, 6 times"
)
async def intake_kills(world: World) -> None:
    async with redis_out(world):
        await kill_some_times(world, "order-api-1", "worker-1", "worker-2", "postgres", times=6)
