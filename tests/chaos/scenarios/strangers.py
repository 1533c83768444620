"""What comes from outside the platform: entries nobody of ours wrote, a wrong clock, a deaf collector of traces."""

from __future__ import annotations

import sys

import asyncpg
import redis.asyncio

from coffee_rt.streams.shards import LogKeys
from tests.chaos.platform import Shape
from tests.chaos.proxy import FaultProxy
from tests.chaos.scenario import World, scenario

POISON: tuple[dict[bytes, bytes], ...] = (
    {b"junk": b"\x00\xff"},
    {b"v": b"1", b"b": b"\x01" * 16, b"c": b"0", b"n": b"1", b"d": b"not msgpack"},
    {b"v": b"one", b"b": b"\x02" * 16, b"c": b"0", b"n": b"1", b"d": b"\xdd\x00\x00\x00\x01\xc0"},
    {b"v": b"1", b"b": b"short", b"c": b"-7", b"n": b"99999999999999999999", b"d": b""},
)
CLOCK_AHEAD_SECONDS = 30


@scenario("poison", fault="entries of a stranger written straight into the log, 40", smoke=True)
async def poison(world: World) -> None:
    keys = LogKeys("coffee-rt", world.platform.shape.shards)
    client = redis.asyncio.from_url(world.platform.valkey.url)
    connection = await asyncpg.connect(world.platform.postgres.url)
    try:
        # One of them is whole but for its record, and claims one that the log never counted: the sums of its
        # shard say so for ever, as they should.
        world.expected.imbalance += 1
        before = await connection.fetchval("SELECT count(*) FROM dead_letters")
        async with world.fault("poison"):
            for number in range(40):
                shard = number % world.platform.shape.shards
                await client.xadd(keys.streams[shard], POISON[number % len(POISON)])  # type: ignore[arg-type]
                await world.sleep(0.1)

        async def are_put_aside() -> bool:
            count: int = await connection.fetchval("SELECT count(*) FROM dead_letters")
            # The same batch id again is a redelivery, and put aside once.
            world.expected.dead_letters = count
            return bool(count - before >= 10)

        await world.until(are_put_aside, "poison became dead letters")
        await world.sleep(1)
        await are_put_aside()
    finally:
        await connection.close()
        await client.aclose()


@scenario(
    "wrong-clock",
    fault=f"one of two order_apis runs with a clock {CLOCK_AHEAD_SECONDS} s ahead, then behind",
    shape=Shape(order_apis=2, aggregators=2),
)
async def wrong_clock(world: World) -> None:
    part = world.platform.parts["order-api-2"]
    right = part.command
    async with world.fault():
        for offset in (CLOCK_AHEAD_SECONDS, -CLOCK_AHEAD_SECONDS):
            await world.platform.kill(part.name)
            part.command = [
                sys.executable,
                "-m",
                "tests.chaos.offset_clock",
                str(offset),
                "order-api",
            ]
            await world.platform.start_part(part.name)
            await world.sleep(5)
        part.command = right
        await world.platform.kill(part.name)


@scenario("deaf-collector", fault="the collector of traces takes connections and says nothing")
async def deaf_collector(world: World) -> None:
    hole = FaultProxy("collector", lambda: ("127.0.0.1", 9))
    hole.black_hole()
    await hole.start()
    endpoint = {"COFFEE_RT_OTLP_ENDPOINT": f"http://127.0.0.1:{hole.port}"}
    names = ("order-api-1", "worker-1")
    try:
        for name in names:
            await world.platform.terminate(name)
            await world.platform.start_part(name, endpoint)
        async with world.fault():
            await world.accepted(300)
            for name in names:
                code, seconds = await world.platform.terminate(name)
                world.expect(code == 0, f"{name} ended with {code} under a deaf collector")
                world.figure(f"{name}_end_seconds", seconds)
                await world.platform.start_part(name)
    finally:
        await hole.close()
