"""The log and the live messages on a Sentinel's master that dies, freezes, or comes back without its last writes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis
from prometheus_client import REGISTRY

from coffee_rt.channels.redis import RedisChannels
from coffee_rt.errors import NotExecuted, Retryable
from coffee_rt.redis_nodes import sentinels
from coffee_rt.streams.contract import Delivery
from coffee_rt.streams.flush import ProducerLimits
from coffee_rt.streams.producer import GroupProducer
from coffee_rt.streams.reader import RedisReader
from coffee_rt.streams.redis import RedisConnector
from tests.failover_bed import PartedProxy
from tests.keyed_clients import Clients, logged_ids
from tests.log_servers import MASTER, PASSWORD, ValkeyNode, ValkeySentinels, running, wait_until
from tests.streams_bed import RedisBed, an_append

pytestmark = pytest.mark.integration

SAFE = {"min-replicas-to-write": "1", "min-replicas-max-lag": "10"}
LIMITS = ProducerLimits(
    replicas_min=1, replicas_wait_seconds_max=0.5, reconnect_seconds_max=0.2, reply_seconds_max=1.0
)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[ValkeySentinels]:
    made = ValkeySentinels(tmp_path, settings=SAFE)
    with running(made):
        yield made


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeySentinels]:
    """For tests in which nothing dies."""
    made = ValkeySentinels(tmp_path_factory.mktemp("calm"), sentinels=2, replicas=0)
    with running(made):
        yield made


async def test_every_answer_outlives_a_killed_master(servers: ValkeySentinels) -> None:
    bed = RedisBed(servers.url, "n")
    await bed.keeper().ensure_group("workers")
    channels = RedisChannels(servers.url)
    clients = Clients(bed.producer(LIMITS))
    async with channels.subscribe("beacon") as subscription:
        clients.start()
        await clients.wait_told(0, 20)
        servers.servers[0].kill()
        # The new master refuses until it has a replica too: the one that was killed, once it is back.
        await asyncio.to_thread(
            wait_until, lambda: servers.master() is servers.servers[1], "promoted"
        )
        await asyncio.to_thread(servers.servers[0].start)
        for shard in range(bed.log.keys.shards):
            await clients.wait_told(shard, 5)
        told = await clients.stop()
        assert clients.unknown + clients.not_executed > 0
        received = aiter(subscription)
        async with asyncio.timeout(10):
            assert await anext(received) is None
            await publish_surely(channels, b"after")
            assert await anext(received) == ("beacon", b"after")
    assert sorted(await logged_ids(bed)) == sorted(told)
    await channels.close()
    await bed.close()


async def publish_surely(channels: RedisChannels, body: bytes) -> None:
    """The pool may hold connections to the dead master: each is found out by its first use."""
    while True:
        try:
            await channels.publish("beacon", body)
            return
        except Retryable:
            await asyncio.sleep(0.01)


async def test_a_frozen_master_is_left_and_what_it_holds_back_is_never_answered(
    servers: ValkeySentinels,
) -> None:
    bed = RedisBed(servers.url, "n")
    await bed.keeper().ensure_group("workers")
    clients = Clients(bed.producer(LIMITS))
    clients.start()
    await clients.wait_told(0, 20)
    servers.servers[0].freeze()
    await asyncio.to_thread(wait_until, lambda: servers.master() is servers.servers[1], "promoted")
    # Now it is a second master, with a full buffer of our appends, until the sentinels demote it.
    servers.servers[0].thaw()
    for shard in range(bed.log.keys.shards):
        await clients.wait_told(shard, 5)
    told = await clients.stop()
    assert sorted(await logged_ids(bed)) == sorted(told)
    await bed.close()


@asynccontextmanager
async def behind_a_proxy(folder: Path) -> AsyncIterator[tuple[PartedProxy, ValkeySentinels]]:
    """A master with two replicas that can be cut off from all but us."""
    proxy = PartedProxy("all>master")
    await proxy.start()
    servers = ValkeySentinels(folder, replicas=2, front_port=proxy.port)
    proxy.server_port = servers.servers[0].port
    try:
        await asyncio.to_thread(servers.start)
        yield proxy, servers
    finally:
        await asyncio.to_thread(servers.stop)
        await proxy.close()


async def part(proxy: PartedProxy, servers: ValkeySentinels) -> None:
    """Returns when the others have another master."""
    proxy.part_from_all_but(os.getpid())
    await asyncio.to_thread(
        wait_until, lambda: servers.master() is not servers.servers[0], "another master"
    )


async def test_a_master_that_was_cut_off_with_us_is_left(tmp_path: Path) -> None:
    """It lives, answers and lacks its replicas, which have another master."""
    async with behind_a_proxy(tmp_path) as (proxy, servers):
        bed = RedisBed(servers.url, "n")
        await bed.keeper().ensure_group("workers")
        clients = Clients(bed.producer(LIMITS))
        clients.start()
        await clients.wait_told(0, 20)
        await part(proxy, servers)
        for shard in range(bed.log.keys.shards):
            await clients.wait_told(shard, 20, 60)
        told = await clients.stop()
        assert set(told) <= set(await logged_ids(bed))
        await bed.close()


async def test_readers_and_listeners_follow_when_they_were_cut_off_with_the_old_master(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers them, without an error, and has nothing new to say."""
    monkeypatch.setattr(sentinels, "AGAIN_SECONDS", 0.2)
    async with behind_a_proxy(tmp_path) as (proxy, servers):
        bed = RedisBed(servers.url, "n")
        reader, keeper, producer = bed.reader(), bed.keeper(), bed.producer()
        await keeper.ensure_group("workers")
        await producer.append(0, an_append(producer))
        assert len(await reader.read(0, 10, 1)) == 1
        channels = RedisChannels(servers.url)
        async with channels.subscribe("beacon") as subscription:
            await channels.publish("beacon", b"before")
            received = aiter(subscription)
            assert await anext(received) == ("beacon", b"before")
            await part(proxy, servers)
            there = RedisBed(servers.master().url, "n")
            elsewhere, told = there.producer(), RedisChannels(servers.master().url)
            await append_surely(elsewhere)
            async with asyncio.timeout(30):
                while not (entries := await read_surely(reader)):
                    pass
                # What was said meanwhile may be missed, and the listener is told so.
                assert await anext(received) is None
                await told.publish("beacon", b"after")
                assert await anext(received) == ("beacon", b"after")
                # And what is written goes there.
                await append_surely(producer)
                entries += await read_surely(reader)
                await channels.publish("beacon", b"last")
                assert await anext(received) == ("beacon", b"last")
                assert (await keeper.horizon(0)).counter == 3
            assert sum(entry.records for entry in entries) == 2
            await told.close()
            await there.close()
        await channels.close()
        await bed.close()


async def read_surely(reader: RedisReader) -> list[Delivery]:
    """Its connections may be lost meanwhile."""
    try:
        return await reader.read(0, 10, 0.2)
    except Retryable:
        return []


async def test_a_lossy_failover_is_seen_as_a_gap(servers: ValkeySentinels) -> None:
    master, replica = servers.servers
    bed = RedisBed(servers.url, "n")
    keeper = bed.keeper()
    await keeper.ensure_group("workers")
    producer = bed.producer(ProducerLimits(reconnect_seconds_max=0.2))
    for _ in range(3):
        await producer.append(0, an_append(producer))
    await asyncio.to_thread(cut_off, master, replica)
    with pytest.raises(Retryable, match="NOREPLICAS"):
        await producer.append(0, an_append(producer))
    # What nobody should do:
    master.ask("CONFIG SET", "min-replicas-to-write", 0)
    for _ in range(5):
        await producer.append(0, an_append(producer))
    master.kill()
    replica.ask("CONFIG SET", "min-replicas-to-write", 0)
    await asyncio.to_thread(wait_until, lambda: servers.master() is replica, "promoted")
    await append_surely(producer)
    before = gap_records()
    entries = await bed.reader().read(0, 100, 0.1)
    assert [(entry.records, entry.gap) for entry in entries] == [
        (1, None), (1, None), (1, None), (0, (3, 8)), (1, None)
    ]  # fmt: skip
    assert gap_records() - before == 5
    assert (await keeper.horizon(0)).counter == 9
    await bed.close()


def cut_off(master: ValkeyNode, replica: ValkeyNode) -> None:
    """End the replication, for good."""
    replica.ask("CONFIG SET", "masterauth", "wrong")
    master.ask("CLIENT KILL", "TYPE", "replica")
    wait_until(lambda: "connected_slaves:0" in master.text("INFO replication"), "cut off")
    wait_until(lambda: "min_slaves_good_slaves:0" in master.text("INFO replication"), "noticed")


async def append_surely(producer: GroupProducer) -> None:
    """An order of a client that goes on as long as it is told that nothing happened."""
    async with asyncio.timeout(20):
        while True:
            try:
                await producer.append(0, an_append(producer))
                return
            except NotExecuted:
                await asyncio.sleep(0.02)
            except Retryable:
                # The connection to the killed one: its outcome is unknown, and here it is known.
                await asyncio.sleep(0.02)


def gap_records() -> float:
    return REGISTRY.get_sample_value("coffee_rt_log_gap_records_total", {"shard": "0"}) or 0.0


async def test_sentinels_are_asked_with_whatever_login_they_want(calm: ValkeySentinels) -> None:
    link = await RedisConnector(calm.url).open(b"k", "test")
    assert await link.call("SET", "k", "v", seconds_max=5) == b"OK"
    link.close()
    for sentinel in calm.sentinels:
        sentinel.ask("ACL SETUSER", "default", "resetpass", ">theirs")
    with pytest.raises(NotExecuted, match=r"(?i)password|auth"):
        await RedisConnector(calm.url).open(b"k", "test")
    link = await RedisConnector(f"{calm.url}?sentinel_password=theirs").open(b"k", "test")
    assert await link.call("GET", "k", seconds_max=5) == b"v"
    link.close()
    for sentinel in calm.sentinels:
        with redis.Redis(port=sentinel.port, password="theirs") as client:
            client.execute_command("ACL SETUSER", "default", "nopass")


async def test_a_master_no_sentinel_knows_is_said_plainly(calm: ValkeySentinels) -> None:
    with pytest.raises(NotExecuted, match="no sentinel knows a master called espresso"):
        await RedisConnector(calm.url.replace(MASTER, "espresso")).open(b"k", "test")
    with pytest.raises(NotExecuted) as caught:
        await RedisConnector(f"redis+sentinel://:{PASSWORD}@127.0.0.1:1/{MASTER}").open(
            b"k", "test"
        )
    assert "no sentinel answers" in str(caught.value)
    assert PASSWORD not in str(caught.value)
