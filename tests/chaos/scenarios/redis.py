"""What may happen inside Redis: everything flushed, groups and scripts gone, memory full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from redis import asyncio as aioredis

from tests.chaos.scenario import World, scenario

FAULT_SECONDS = 10.0
STREAMS = "coffee-rt:orders:*"


@asynccontextmanager
async def client_of(world: World, *, is_text: bool = True) -> AsyncIterator[Any]:
    """A client past the proxies."""
    client = aioredis.Redis.from_url(world.platform.valkey.url, decode_responses=is_text)
    try:
        yield client
    finally:
        await client.aclose()


async def streams_of(client: Any) -> list[str]:
    return [key async for key in client.scan_iter(_type="stream")]


@scenario("groups-destroyed", fault="the workers' group destroyed on every shard, once a second")
async def groups_destroyed(world: World) -> None:
    async with client_of(world) as client:
        for _ in range(int(FAULT_SECONDS)):
            for stream in await streams_of(client):
                for group in await client.xinfo_groups(stream):
                    await client.xgroup_destroy(stream, group["name"])
            await asyncio.sleep(1)


@scenario("scripts-flushed", fault="SCRIPT FLUSH twenty times a second")
async def scripts_flushed(world: World) -> None:
    async with client_of(world) as client:
        for _ in range(int(FAULT_SECONDS * 20)):
            await client.script_flush()
            await asyncio.sleep(0.05)


@scenario(
    "connections-killed", fault="every client's connection killed by Redis, five times a second"
)
async def connections_killed(world: World) -> None:
    async with client_of(world) as client:
        for _ in range(int(FAULT_SECONDS * 5)):
            await client.client_kill_filter(_type="normal", skipme=True)
            await client.client_kill_filter(_type="pubsub", skipme=True)
            await asyncio.sleep(0.2)


@scenario("memory-full", fault="maxmemory below what is used: every append is refused", smoke=True)
async def memory_full(world: World) -> None:
    async with client_of(world) as client:
        maximum = (await client.config_get("maxmemory"))["maxmemory"]
        try:
            await client.config_set("maxmemory", 1 << 20)
            await asyncio.sleep(FAULT_SECONDS)
        finally:
            await client.config_set("maxmemory", maximum)


@scenario(
    "everything-flushed",
    fault="FLUSHALL while workers stand still: what they had not read is gone, and the log says so",
    negative_control=True,
    alone=True,
)
async def everything_flushed(world: World) -> None:
    world.expected.is_loss_allowed = True
    workers = [name for name in world.platform.parts if name.startswith("worker-")]
    for worker in workers:
        world.platform.freeze(worker)
    await world.accepted(150)
    async with client_of(world) as client:
        await client.flushall()
    await world.accepted(50)
    for worker in workers:
        world.platform.thaw(worker)
    connection = await asyncpg.connect(world.platform.postgres.url)

    async def is_gap_noticed() -> bool:
        return bool(await connection.fetchval("SELECT count(*) > 0 FROM gaps"))

    try:
        await world.until(is_gap_noticed, "the loss is seen as a gap")
        lost = await connection.fetchval("SELECT sum(counter_to - counter_from) FROM gaps")
        world.figure("records_in_gaps", float(lost))
    finally:
        await connection.close()
