"""SIGSTOP and SIGCONT: a process, or a server, that says nothing for a while and then goes on as if nothing was.
And SIGTERM: a process that is asked to end, under load."""

from __future__ import annotations

import asyncpg

from tests.chaos.platform import Shape
from tests.chaos.scenario import World, scenario

GRACE_SECONDS_MAX = 60.0
"""The longest grace period of any process (the worker's); an installation kills it then."""

_OPEN_TRANSACTIONS = """
SELECT count(*) FROM pg_stat_activity
WHERE application_name = 'coffee-rt worker' AND xact_start < clock_timestamp() - interval '300 ms'
"""


async def pause(world: World, name: str, seconds: float) -> None:
    async with world.fault(f"SIGSTOP {name} for {seconds:.1f} s"):
        world.platform.freeze(name)
        await world.sleep(seconds)
        world.platform.thaw(name)


@scenario("pause-processes", fault="SIGSTOP of each process in turn, 1 to 3 s", smoke=True)
async def pause_processes(world: World) -> None:
    for name in world.platform.parts:
        await pause(world, name, world.chance.uniform(1, 3))


@scenario(
    "pause-worker-long", fault="SIGSTOP of a worker for 10 s, longer than others wait to claim"
)
async def pause_worker_long(world: World) -> None:
    await pause(world, "worker-1", 10)


@scenario(
    "pause-worker-in-transaction",
    fault="SIGSTOP of a worker inside its transaction, 8 s",
    smoke=True,
)
async def pause_worker_in_transaction(world: World) -> None:
    connection = await asyncpg.connect(world.platform.postgres.url)
    try:
        async with world.fault("SIGSTOP worker-1 until it is caught in a transaction"):
            for _ in range(60):
                world.platform.freeze("worker-1")
                await world.sleep(0.4)
                if await connection.fetchval(_OPEN_TRANSACTIONS):
                    world.say("caught")
                    await world.sleep(8)
                    world.platform.thaw("worker-1")
                    return
                world.platform.thaw("worker-1")
                await world.sleep(world.chance.uniform(0.01, 0.1))
    finally:
        await connection.close()
    world.expect(False, "the worker was never caught inside a transaction")


@scenario("pause-valkey", fault="SIGSTOP of Valkey for 5 s")
async def pause_valkey(world: World) -> None:
    await pause(world, "valkey", 5)


@scenario("pause-postgres", fault="SIGSTOP of PostgreSQL and all its sessions for 8 s")
async def pause_postgres(world: World) -> None:
    await pause(world, "postgres", 8)


@scenario(
    "pause-lane-owner",
    fault="two aggregators; each in turn stopped beyond its lease (2 s), for 5 s",
    shape=Shape(order_apis=2, aggregators=2),
)
async def pause_lane_owner(world: World) -> None:
    await pause(world, "aggregator-1", 5)
    await pause(world, "aggregator-2", 5)


@scenario("end-every-process", fault="SIGTERM to each process in turn under load", smoke=True)
async def end_every_process(world: World) -> None:
    slowest = 0.0
    for name in world.platform.parts:
        async with world.fault(f"SIGTERM {name}"):
            code, seconds = await world.platform.terminate(name)
            world.expect(code == 0, f"{name} ended with {code} after SIGTERM")
            world.expect(seconds < GRACE_SECONDS_MAX, f"{name} took {seconds:.1f} s to end")
            slowest = max(slowest, seconds)
            await world.platform.start_part(name)
    world.figure("slowest_end_seconds", slowest)
