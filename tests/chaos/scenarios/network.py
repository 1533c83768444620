"""Faults of the links between parts: slow, cut, half open, deaf, one-way, away.

The proxies make them, so no rule of the machine's own network is touched.
"""

from __future__ import annotations

import asyncio

from tests.chaos.platform import process_of
from tests.chaos.proxy import Direction, FaultProxy
from tests.chaos.scenario import World, scenario

FAULT_SECONDS = 10.0


def links(world: World, process: str, server: str) -> list[FaultProxy]:
    """The links of every part that runs a process to a server."""
    return [
        proxy
        for (part, to), proxy in world.platform.links.items()
        if process_of(part) == process and process_of(to) == server
    ]


async def repeat(seconds: float, every: float, step: object) -> None:
    """Call `step` again and again."""
    assert callable(step)
    deadline = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < deadline:
        step()
        await asyncio.sleep(every)


async def heal(proxies: list[FaultProxy]) -> None:
    for proxy in proxies:
        await proxy.heal()


@scenario("slow-network", fault="30 to 80 ms more on every link, each way")
async def slow_network(world: World) -> None:
    for proxy in world.platform.links.values():
        proxy.latency(0.03, jitter=0.05)
    await asyncio.sleep(FAULT_SECONDS)


@scenario("narrow-network", fault="64 KB a second on every link to a server")
async def narrow_network(world: World) -> None:
    for (_, to), proxy in world.platform.links.items():
        if to in ("valkey", "postgres"):
            proxy.bandwidth(64 * 1024)
    await asyncio.sleep(FAULT_SECONDS)


@scenario(
    "resets-everywhere",
    fault="every connection of a random link reset, five times a second",
    smoke=True,
)
async def resets_everywhere(world: World) -> None:
    proxies = list(world.platform.links.values())
    await repeat(FAULT_SECONDS, 0.2, lambda: world.chance.choice(proxies).reset())


@scenario(
    "half-open-everywhere", fault="the peer of every open connection is gone and nobody is told"
)
async def half_open_everywhere(world: World) -> None:
    for proxy in world.platform.links.values():
        proxy.half_open()
    await asyncio.sleep(FAULT_SECONDS)


def cut_randomly(world: World, proxies: list[FaultProxy], direction: Direction) -> None:
    for proxy in proxies:
        proxy.cut_after(world.chance.randrange(1, 20_000), direction)


@scenario(
    "order-api-redis-cut-mid-command", fault="order_api > Redis reset after some bytes of a command"
)
async def order_api_redis_cut(world: World) -> None:
    proxies = links(world, "order-api", "valkey")
    await repeat(FAULT_SECONDS, 0.3, lambda: cut_randomly(world, proxies, Direction.TO_SERVER))


@scenario(
    "worker-postgres-cut-mid-copy",
    fault="worker > PostgreSQL reset after some bytes, COPY included",
)
async def worker_postgres_cut(world: World) -> None:
    proxies = links(world, "worker", "postgres")
    await repeat(FAULT_SECONDS, 0.3, lambda: cut_randomly(world, proxies, Direction.TO_SERVER))


@scenario("redis-replies-cut", fault="answers of Redis to every part reset after some bytes")
async def redis_replies_cut(world: World) -> None:
    proxies = world.platform.links_of("valkey")
    await repeat(FAULT_SECONDS, 0.3, lambda: cut_randomly(world, proxies, Direction.TO_CLIENT))


async def lose_replies(world: World, process: str, server: str) -> None:
    """Requests take effect, their answers are lost: in silence, then with a reset."""
    proxies = links(world, process, server)
    assert proxies
    for then_reset in (True, False, True):
        for proxy in proxies:
            proxy.swallow_replies(then_reset=then_reset)
        await asyncio.sleep(FAULT_SECONDS / 5)
        await heal(proxies)
        await asyncio.sleep(FAULT_SECONDS / 10)


@scenario("reply-lost-order-api-redis", fault="order_api > Redis: effect without an answer")
async def reply_lost_order_api_redis(world: World) -> None:
    await lose_replies(world, "order-api", "valkey")


@scenario("reply-lost-worker-redis", fault="worker > Redis: effect without an answer")
async def reply_lost_worker_redis(world: World) -> None:
    await lose_replies(world, "worker", "valkey")


@scenario(
    "reply-lost-worker-postgres", fault="worker > PostgreSQL: effect without an answer, COMMIT too"
)
async def reply_lost_worker_postgres(world: World) -> None:
    await lose_replies(world, "worker", "postgres")


@scenario(
    "reply-lost-aggregator-postgres", fault="aggregator > PostgreSQL: effect without an answer"
)
async def reply_lost_aggregator_postgres(world: World) -> None:
    await lose_replies(world, "aggregator", "postgres")


@scenario("reply-lost-aggregator-redis", fault="aggregator > Redis: effect without an answer")
async def reply_lost_aggregator_redis(world: World) -> None:
    await lose_replies(world, "aggregator", "valkey")


@scenario("reply-lost-fanout-redis", fault="fanout > Redis: published rows and beacons lost")
async def reply_lost_fanout_redis(world: World) -> None:
    await lose_replies(world, "fanout", "valkey")


@scenario("reply-lost-client-order-api", fault="clients > order_api: accepted without an answer")
async def reply_lost_client_order_api(world: World) -> None:
    await lose_replies(world, "clients", "order-api")


@scenario(
    "one-way-to-redis", fault="nothing from order_api and worker reaches Redis; its answers would"
)
async def one_way_to_redis(world: World) -> None:
    for process in ("order-api", "worker"):
        for proxy in links(world, process, "valkey"):
            proxy.black_hole(Direction.TO_SERVER)
    await asyncio.sleep(FAULT_SECONDS)


@scenario(
    "one-way-from-redis", fault="nothing of Redis reaches order_api and worker; their commands do"
)
async def one_way_from_redis(world: World) -> None:
    for process in ("order-api", "worker"):
        for proxy in links(world, process, "valkey"):
            proxy.black_hole(Direction.TO_CLIENT)
    await asyncio.sleep(FAULT_SECONDS)


@scenario(
    "one-way-from-postgres", fault="nothing of PostgreSQL reaches any part; their statements do"
)
async def one_way_from_postgres(world: World) -> None:
    for proxy in world.platform.links_of("postgres"):
        proxy.black_hole(Direction.TO_CLIENT)
    await asyncio.sleep(FAULT_SECONDS)


@scenario("partition-of-one-worker", fault="one of two workers is cut off from both stores")
async def partition_of_one_worker(world: World) -> None:
    for server in ("valkey", "postgres"):
        world.platform.link("worker-1", server).black_hole()
    await asyncio.sleep(FAULT_SECONDS)


@scenario(
    "partition-of-both-stores", fault="nothing passes between any part and the stores", smoke=True
)
async def partition_of_both_stores(world: World) -> None:
    for server in ("valkey", "postgres"):
        for proxy in world.platform.links_of(server):
            proxy.black_hole()
    await asyncio.sleep(FAULT_SECONDS)
