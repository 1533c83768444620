"""Two releases side by side: the newer one writes a wire version that the older one can't read.

The order of a rollout forbids that (workers first, then the writers' version); here it happens, and processes of both
releases are killed and replaced meanwhile.
"""

from __future__ import annotations

import sys
from typing import Any

import aiohttp
import asyncpg

from coffee_rt.streams.shards import LogKeys
from tests.chaos.facts import Watch
from tests.chaos.newer_release import VERSION
from tests.chaos.platform import Shape, process_of
from tests.chaos.scenario import World, scenario
from tests.chaos.scenarios.redis import client_of

WORKERS = ("worker-1", "worker-2")
WRITER = "order-api-2"
CATCH_UP_SECONDS_MAX = 60.0


async def put_release(world: World, name: str, module: str) -> None:
    """Replace a process by one of another release, as a rollout does. It need not become ready."""
    part = world.platform.parts[name]
    # One that has only just begun to start knows no signal yet.
    await world.until(lambda: is_alive(world, name), f"{name} lives")
    code, _ = await world.platform.terminate(name)
    world.expect(code == 0, f"{name} ended with {code} when it was replaced")
    part.command = [sys.executable, "-m", module, process_of(name)]
    world.platform.launch(name)


async def put_newer(world: World, name: str) -> None:
    world.say(f"{name} is of the newer release")
    await put_release(world, name, "tests.chaos.newer_release")


async def put_older(world: World, name: str) -> None:
    world.say(f"{name} is of the older release")
    await put_release(world, name, "coffee_rt")


async def kill_and_launch(world: World, name: str) -> None:
    world.say(f"kill -9 {name}")
    await world.platform.kill(name)
    await world.sleep(world.chance.uniform(0.1, 1))
    world.platform.launch(name)


async def ask(world: World, name: str, path: str) -> dict[str, Any]:
    """What a process says of itself; nothing while it does not listen."""
    url = f"http://127.0.0.1:{world.platform.parts[name].port}{path}"
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            report: dict[str, Any] = await response.json()
            return report
    except (aiohttp.ClientError, OSError):
        return {}


async def is_alive(world: World, name: str) -> bool:
    return bool(await ask(world, name, "/livez"))


async def is_waiting_for_newer(world: World, name: str) -> bool:
    """A worker says that it holds what it can't read."""
    report = await ask(world, name, "/readyz")
    return bool(report) and not report["components"]["wire-version"]["ready"]


async def entries_by_version(world: World) -> dict[int, int]:
    """What the log holds, stored or not: records by wire version."""
    found: dict[int, int] = {}
    async with client_of(world, is_text=False) as client:
        for stream in LogKeys("coffee-rt", world.platform.shape.shards).streams:
            for _, fields in await client.xrange(stream):
                version = int(fields[b"v"])
                found[version] = found.get(version, 0) + int(fields[b"n"])
    return found


@scenario(
    "two-wire-versions",
    fault="an order_api of a newer release writes a version the workers can't read; kills, rollout, rollback",
    shape=Shape(order_apis=2),
    alone=True,
)
async def two_wire_versions(world: World) -> None:
    platform = world.platform
    connection = await asyncpg.connect(platform.postgres.url)
    watch = Watch(platform)

    async def count(table: str) -> int:
        return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))

    async def until_stored(more: int) -> None:
        wanted = await count("orders") + more

        async def is_so() -> bool:
            return await count("orders") >= wanted

        await world.until(is_so, f"{more} more orders are stored")

    try:
        async with world.fault():
            # Nobody reads the new version: it waits, and the old one goes on beside it.
            await put_newer(world, WRITER)
            await world.accepted(150)
            for name in WORKERS:
                await kill_and_launch(world, name)
            for name in WORKERS:
                await world.until(
                    lambda name=name: is_waiting_for_newer(world, name),  # type: ignore[misc]
                    f"{name} says that entries need a newer release",
                )
            await until_stored(100)
            world.expect(await count("dead_letters") == 0, "what was not known was parked")
            # One worker of each release.
            await put_newer(world, WORKERS[0])
            for name in (WORKERS[0], WORKERS[1], WRITER):
                await world.accepted(50)
                await kill_and_launch(world, name)
            await put_newer(world, WORKERS[1])
            # Back again: first the writer, then, with all it wrote stored, the readers.
            await put_older(world, WRITER)
            await world.sleep(1.5)
            await watch.wait_caught_up(CATCH_UP_SECONDS_MAX, is_at_rest=False)
            for name in WORKERS:
                await put_older(world, name)
            await until_stored(100)
        for version, records in sorted((await entries_by_version(world)).items()):
            world.figure(f"records_of_version_{version}", records)
        world.expect(bool(world.figures.get(f"records_of_version_{VERSION}")), "nothing was newer")
    finally:
        await watch.close()
        await connection.close()
