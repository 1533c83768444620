"""kill -9: of each process at random times under load, of both servers, and an answer lost after its effect."""

from __future__ import annotations

from tests.chaos.scenario import World, scenario


async def kill_some_times(world: World, *names: str, times: int = 3) -> None:
    """kill -9 at random moments, up again a moment later."""
    for _ in range(times):
        name = world.chance.choice(names)
        await world.sleep(world.chance.uniform(0.2, 1.5))
        async with world.fault(f"kill -9 {name}"):
            await world.platform.kill(name)
            await world.sleep(world.chance.uniform(0.1, 1.0))
            await world.platform.start_part(name)


@scenario("kill-worker", fault="kill -9 of a worker, 4 times", smoke=True)
async def kill_worker(world: World) -> None:
    await kill_some_times(world, "worker-1", "worker-2", times=4)


@scenario("kill-valkey", fault="kill -9 of Valkey, 3 times", smoke=True)
async def kill_valkey(world: World) -> None:
    await kill_some_times(world, "valkey")


@scenario("kill-postgres", fault="kill -9 of PostgreSQL, 3 times", smoke=True)
async def kill_postgres(world: World) -> None:
    await kill_some_times(world, "postgres")


@scenario(
    "lost-replies", fault="Valkey's answers to order_api lost after their effect, 4 s", smoke=True
)
async def lost_replies(world: World) -> None:
    link = world.platform.link("order-api-1", "valkey")
    async with world.fault("answers of the log are swallowed"):
        link.swallow_replies()
        await world.sleep(2)
        await link.heal()
        link.swallow_replies(then_reset=True)
        await world.sleep(2)
        await link.heal()
