"""kill -9: of each process at random times under load, of servers, of both, and of everything at once."""

from __future__ import annotations

import signal

from tests.chaos.platform import SERVERS, Shape
from tests.chaos.scenario import World, scenario

TWO_OF_EACH = Shape(order_apis=2, aggregators=2)


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


@scenario("kill-order-api", fault="kill -9 of the only order_api, 3 times", smoke=True)
async def kill_order_api(world: World) -> None:
    await kill_some_times(world, "order-api-1")


@scenario(
    "kill-one-order-api", fault="kill -9 of one of two order_apis, 3 times", shape=TWO_OF_EACH
)
async def kill_one_order_api(world: World) -> None:
    await kill_some_times(world, "order-api-1", "order-api-2")


@scenario("kill-aggregator", fault="kill -9 of the only aggregator, 3 times")
async def kill_aggregator(world: World) -> None:
    await kill_some_times(world, "aggregator-1")


@scenario("kill-readers", fault="kill -9 of query_api and fanout, 4 times")
async def kill_readers(world: World) -> None:
    await kill_some_times(world, "query-api-1", "fanout-1", times=4)


@scenario("kill-valkey", fault="kill -9 of Valkey, 3 times", smoke=True)
async def kill_valkey(world: World) -> None:
    await kill_some_times(world, "valkey")


@scenario("kill-postgres", fault="kill -9 of PostgreSQL, 3 times", smoke=True)
async def kill_postgres(world: World) -> None:
    await kill_some_times(world, "postgres")


@scenario(
    "kill-both-servers", fault="kill -9 of Valkey and PostgreSQL at once, down 3 s", smoke=True
)
async def kill_both_servers(world: World) -> None:
    async with world.fault("kill -9 of both servers"):
        for server in SERVERS:
            await world.platform.kill(server)
        await world.sleep(3)
        for server in SERVERS:
            await world.platform.start_part(server)


@scenario("kill-everything", fault="kill -9 of every process and both servers at once")
async def kill_everything(world: World) -> None:
    async with world.fault("kill -9 of everything"):
        for name in world.platform.names:
            await world.platform.kill(name)
        await world.sleep(1)
        await world.platform.heal()


@scenario("stop-postgres-immediate", fault="PostgreSQL stopped with -m immediate, twice")
async def stop_postgres_immediate(world: World) -> None:
    for _ in range(2):
        async with world.fault("PostgreSQL: immediate shutdown"):
            await world.platform.stop_server("postgres", signal.SIGQUIT)
            await world.sleep(1)
            await world.platform.start_part("postgres")
        await world.sleep(1)


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
