"""What every implementation of Channels must do, run on memory and on a real Valkey alike."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from coffee_rt.channels.contract import Channels, Subscription
from coffee_rt.channels.memory import MemoryChannels
from coffee_rt.channels.redis import RedisChannels
from coffee_rt.errors import Retryable
from coffee_rt.redis_nodes.nodes import RedisNodes

WAIT_SECONDS = 10.0


@dataclass
class Bus:
    """Channels under test, and how to break them."""

    channels: Channels
    small: Channels
    """The same bus, with room for 3 messages in a subscription."""
    interrupt: Callable[[], Awaitable[None]]


_SERVERS = ("valkey", "sentinel", "cluster")


@pytest.fixture(
    params=["memory", *(pytest.param(kind, marks=pytest.mark.integration) for kind in _SERVERS)]
)
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    if request.param == "memory":
        memory = MemoryChannels(messages_max=3)

        async def interrupt_memory() -> None:
            memory.interrupt()

        yield Bus(memory, memory, interrupt_memory)
        return
    url = request.getfixturevalue(f"{request.param}_url")
    namespace = request.getfixturevalue("redis_namespace")
    channels = RedisChannels(url, namespace=namespace, ping_seconds=0.2)
    small = RedisChannels(url, namespace=namespace, messages_max=3)
    nodes = RedisNodes(url)

    async def interrupt_redis() -> None:
        # On every server of a cluster: each subscription is on any of them.
        places = await nodes.nodes()
        pools = [nodes.pool(None)]
        if places is not None:
            pools = [nodes.pool_to(place) for place in places]
        for pool in pools:
            async with Redis.from_pool(pool) as admin:
                await admin.client_kill_filter(_type="pubsub")

    yield Bus(channels, small, interrupt_redis)
    await channels.close()
    await small.close()


async def receive(subscription: Subscription) -> tuple[str, bytes] | None:
    return await asyncio.wait_for(anext(aiter(subscription)), WAIT_SECONDS)


async def test_messages_published_together_arrive_in_their_order(bus: Bus) -> None:
    async with bus.channels.subscribe("beacon") as subscription:
        await bus.channels.publish("beacon", b"1", b"2", b"3")
        received = [await receive(subscription) for _ in range(3)]
    assert received == [("beacon", b"1"), ("beacon", b"2"), ("beacon", b"3")]


async def test_messages_arrive_in_order_with_their_topic(bus: Bus) -> None:
    async with bus.channels.subscribe("beacon", "orders") as subscription:
        await bus.channels.publish("beacon", b"1")
        await bus.channels.publish("orders", b"\x00\xff")
        await bus.channels.publish("beacon", b"3")
        received = [await receive(subscription) for _ in range(3)]
    assert received == [("beacon", b"1"), ("orders", b"\x00\xff"), ("beacon", b"3")]


async def test_topic_ending_in_a_star_matches_by_prefix_only(bus: Bus) -> None:
    async with bus.channels.subscribe("view:*") as subscription:
        for topic in ("viewer", "orders", "view:hourly", "view:a?[b]"):
            await bus.channels.publish(topic, topic.encode())
        received = [await receive(subscription) for _ in range(2)]
    assert received == [("view:hourly", b"view:hourly"), ("view:a?[b]", b"view:a?[b]")]


async def test_glob_letters_in_a_prefix_match_themselves(bus: Bus) -> None:
    async with bus.channels.subscribe("v[i]?w:*") as subscription:
        await bus.channels.publish("view:x", b"no")
        await bus.channels.publish("v[i]?w:x", b"yes")
        assert await receive(subscription) == ("v[i]?w:x", b"yes")


async def test_every_subscription_hears_every_message(bus: Bus) -> None:
    async with bus.channels.subscribe("beacon") as one, bus.channels.subscribe("beacon") as two:
        await bus.channels.publish("beacon", b"x")
        assert await receive(one) == await receive(two) == ("beacon", b"x")


async def test_message_without_subscriber_is_gone(bus: Bus) -> None:
    """Nothing is kept. In a cluster a message may still be on its way to another node for a moment, so
    whoever subscribes at once may hear it; nobody does later."""
    await bus.channels.publish("beacon", b"early")
    heard = []
    for number in range(10):
        async with bus.channels.subscribe("beacon") as subscription:
            await bus.channels.publish("beacon", b"%d" % number)
            heard.append(await receive(subscription))
        if heard[-1] == ("beacon", b"%d" % number):
            return
    raise AssertionError(f"old messages are heard again and again: {heard}")


async def test_reader_is_told_that_it_may_have_missed_something(bus: Bus) -> None:
    async with bus.channels.subscribe("beacon") as subscription:
        await bus.interrupt()
        assert await receive(subscription) is None
        await bus.channels.publish("beacon", b"after")
        assert await receive(subscription) == ("beacon", b"after")


async def test_overflow_is_one_gap_and_not_a_silent_loss(bus: Bus) -> None:
    before = _dropped()
    async with bus.small.subscribe("beacon") as slow:
        for number in range(4):
            await bus.small.publish("beacon", b"%d" % number)
        async with asyncio.timeout(WAIT_SECONDS):
            # Read earlier, there would be room for all.
            while _dropped() < before + 4:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        received = []
        while None not in received:
            received.append(await receive(slow))
        await bus.small.publish("beacon", b"after")
        assert await receive(slow) == ("beacon", b"after")


async def test_closing_ends_the_iteration(bus: Bus) -> None:
    async with bus.channels.subscribe("beacon") as subscription:
        reader = asyncio.create_task(receive(subscription))
        await asyncio.sleep(0)
        await bus.channels.close()
        with pytest.raises(StopAsyncIteration):
            await _stop(reader)


async def _stop(reader: asyncio.Task[tuple[str, bytes] | None]) -> None:
    """A StopAsyncIteration can't cross a task as itself."""
    try:
        await reader
    except RuntimeError as error:
        raise StopAsyncIteration from error


@pytest.mark.integration
async def test_a_strangers_message_under_a_name_that_is_no_text_ends_no_subscription(
    valkey_url: str, redis_namespace: str
) -> None:
    channels = RedisChannels(valkey_url, namespace=redis_namespace)
    async with channels.subscribe("view:*") as subscription, Redis.from_url(valkey_url) as stranger:
        await stranger.publish(f"{redis_namespace}:live:view:".encode() + b"\xff", b"{}")
        await channels.publish("view:sales", b"after")
        received = [await receive(subscription) for _ in range(2)]
    assert received[1] == ("view:sales", b"after")
    await channels.close()


@pytest.mark.integration
async def test_idle_subscription_outlives_many_pings(valkey_url: str, redis_namespace: str) -> None:
    channels = RedisChannels(valkey_url, namespace=redis_namespace, ping_seconds=0.02)
    admin = Redis.from_url(valkey_url)
    async with channels.subscribe("beacon") as subscription:
        before = await _pings(admin)
        async with asyncio.timeout(WAIT_SECONDS):
            # Counted by the server, which tells nobody when it counts.
            while (await _pings(admin)) < before + 5:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await channels.publish("beacon", b"still here")
        assert await receive(subscription) == ("beacon", b"still here")
    await channels.close()
    await admin.aclose()


@asynccontextmanager
async def odd_peer(after: bytes) -> AsyncIterator[tuple[str, list[int]]]:
    """A server that confirms a subscription and says `after` and nothing more: its address, and its connections."""
    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(len(connections))
        while data := await reader.read(4096):
            if b"SUBSCRIBE" in data:
                name = b"coffee-rt:live:beacon"
                writer.write(b"*3\r\n$9\r\nsubscribe\r\n$%d\r\n%s\r\n:1\r\n" % (len(name), name))
                writer.write(after)
            elif b"PING" not in data:
                writer.write(b"+OK\r\n" * data.count(b"*"))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}?protocol=2", connections
    server.close()


async def test_peer_that_stops_answering_is_left() -> None:
    async with odd_peer(b"") as (address, connections):
        channels = RedisChannels(address, ping_seconds=0.05, answer_seconds_max=0.05)
        async with channels.subscribe("beacon") as subscription:
            assert await receive(subscription) is None
        assert len(connections) >= 2
        await channels.close()


async def test_what_no_reader_expects_is_a_gap_and_ends_no_subscription() -> None:
    number = b"*3\r\n$7\r\nmessage\r\n$21\r\ncoffee-rt:live:beacon\r\n:5\r\n"
    async with odd_peer(number) as (address, connections):
        channels = RedisChannels(address)
        async with channels.subscribe("beacon") as subscription:
            assert await receive(subscription) is None
            assert await receive(subscription) is None
        assert len(connections) >= 3
        await channels.close()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def test_subscribing_while_redis_is_away_goes_on_trying(closed_port: int) -> None:
    channels = RedisChannels(f"redis://127.0.0.1:{closed_port}")
    async with channels.subscribe("beacon"):
        with pytest.raises(Retryable):
            await channels.publish("beacon", b"x")
    await channels.close()


async def test_publishing_while_away_is_retryable_in_memory() -> None:
    channels = MemoryChannels()
    channels.is_away = True
    with pytest.raises(Retryable):
        await channels.publish("beacon", b"x")


def _dropped() -> float:
    return REGISTRY.get_sample_value("coffee_rt_channels_dropped_messages_total") or 0.0


async def _pings(admin: Redis) -> int:
    statistics = await admin.info("commandstats")
    return int(statistics.get("cmdstat_ping", {"calls": 0})["calls"])
