"""A store away for a minute under load, and both."""

from __future__ import annotations

import asyncio

from tests.chaos.platform import SERVERS, Shape
from tests.chaos.scenario import World, scenario
from tests.chaos.scenarios.intake import intake_taken

OUTAGE_SECONDS = 60.0
RESTART_SECONDS = 8.0


async def stop_for(world: World, servers: tuple[str, ...], seconds: float) -> None:
    for server in servers:
        await world.platform.stop_server(server)
    await asyncio.sleep(seconds)
    for server in servers:
        await world.platform.start_part(server)


@scenario("redis-out-60-s", fault="Redis is stopped for a minute")
async def redis_out(world: World) -> None:
    await stop_for(world, ("valkey",), OUTAGE_SECONDS)
    taken = await intake_taken(world)
    world.figure("intake", taken)
    world.expect(taken > 0, "no order was taken by the database's intake")


@scenario(
    "postgres-out-60-s", fault="PostgreSQL is stopped for a minute: the log takes every order"
)
async def postgres_out(world: World) -> None:
    await stop_for(world, ("postgres",), OUTAGE_SECONDS)


@scenario("both-out-60-s", fault="Redis and PostgreSQL are stopped for a minute")
async def both_out(world: World) -> None:
    await stop_for(world, ("postgres", "valkey"), OUTAGE_SECONDS)


@scenario(
    "servers-restarted",
    fault="each server away for 8 s, as when its pod is replaced; with the waits of an installation",
    shape=Shape(is_quick=False),
)
async def servers_restarted(world: World) -> None:
    for server in SERVERS:
        async with world.fault(f"{server} is restarted"):
            await stop_for(world, (server,), RESTART_SECONDS)
        await world.sleep(5)
