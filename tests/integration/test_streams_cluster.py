"""The log and the live messages on a Valkey Cluster: a primary killed, slots moved both ways, all under load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from coffee_rt.channels.redis import RedisChannels
from coffee_rt.errors import NotExecuted, Rejected, Retryable
from coffee_rt.streams.admission import Admission
from coffee_rt.streams.contract import STORE_GROUP
from coffee_rt.streams.flush import ProducerLimits
from coffee_rt.streams.producer import GroupProducer
from tests.keyed_clients import Clients, logged_ids
from tests.log_servers import ValkeyCluster, ValkeyNode, running, wait_until
from tests.streams_bed import SHARDS, RedisBed, an_append

pytestmark = pytest.mark.integration

LIMITS = ProducerLimits(reconnect_seconds_max=0.2, reply_seconds_max=1.0)


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[ValkeyCluster]:
    """With a replica for each primary."""
    made = ValkeyCluster(tmp_path, replicas=1)
    with running(made):
        yield made


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    """For tests in which no node dies."""
    made = ValkeyCluster(tmp_path_factory.mktemp("cluster"))
    with running(made):
        yield made


@pytest.fixture
async def bed(cluster: ValkeyCluster, redis_namespace: str) -> AsyncIterator[RedisBed]:
    made = RedisBed(cluster.url, redis_namespace)
    await made.keeper().ensure_group(STORE_GROUP)
    yield made
    await made.close()


async def test_every_answer_outlives_a_killed_primary_and_other_shards_go_on(
    mortal: ValkeyCluster,
) -> None:
    bed = RedisBed(mortal.url, "n")
    keeper = bed.keeper()
    await keeper.ensure_group(STORE_GROUP)
    limits = ProducerLimits(
        replicas_min=1,
        replicas_wait_seconds_max=0.5,
        reconnect_seconds_max=0.2,
        reply_seconds_max=1.0,
    )
    clients = Clients(bed.producer(limits))
    clients.start()
    await clients.wait_told(0, 20)
    primaries = [mortal.primary_of(stream) for stream in bed.log.keys.streams]
    assert len(set(primaries)) == 3
    victim = primaries[0]
    others = [shard for shard in range(SHARDS) if primaries[shard] is not victim]
    victim.kill()
    for shard in others:
        await clients.wait_told(shard, 20)
    # Nor is the intake shut: what is known of the others decides.
    admission = Admission(keeper, STORE_GROUP)
    await admission.refresh()
    assert admission.refusal is None
    stream = bed.log.keys.streams[0]
    await asyncio.to_thread(
        wait_until, lambda: mortal.primary_of(stream) is not victim, "another primary"
    )
    # The new primary has no replica until the killed node is back as one.
    await asyncio.to_thread(victim.start)
    await clients.wait_told(0, 20)
    told = await clients.stop()
    assert clients.unknown + clients.not_executed > 0
    assert sorted(await logged_ids(bed)) == sorted(told)
    await bed.close()


async def test_a_group_is_made_where_its_stream_has_gone(mortal: ValkeyCluster) -> None:
    """A node that was known as a primary and is a replica now answers, and only says where to go."""
    bed = RedisBed(mortal.url, "failover")
    await bed.keeper().ensure_group(STORE_GROUP)
    old, new = mortal.nodes[0], mortal.nodes[3]
    assert mortal.primary_of(bed.log.keys.streams[0]) is old
    # Else the registry's own answer would tell of the change.
    assert mortal.primary_of(bed.log.keys.groups) is not old
    await asyncio.to_thread(new.ask, "CLUSTER FAILOVER")
    await asyncio.to_thread(
        wait_until, lambda: "role:slave" in old.text("INFO replication"), "the two change places"
    )
    keeper = bed.keeper()
    async with asyncio.timeout(20):
        while True:
            try:
                await keeper.ensure_group("another")
                break
            except Retryable:
                await asyncio.sleep(0.05)
    assert await keeper.registered_groups() == ["another", STORE_GROUP]
    await bed.close()


async def test_subscriptions_of_a_killed_node_go_on_at_another(mortal: ValkeyCluster) -> None:
    channels = RedisChannels(mortal.url)
    async with AsyncExitStack() as stack:
        subscriptions = [
            aiter(await stack.enter_async_context(channels.subscribe("beacon"))) for _ in range(12)
        ]
        mortal.nodes[0].kill()
        mortal.nodes[3].kill()
        heard: set[int] = set()

        async def listen(number: int) -> None:
            while await anext(subscriptions[number]) is None:
                continue
            heard.add(number)

        listening = [asyncio.create_task(listen(number)) for number in range(12)]
        async with asyncio.timeout(20):
            while len(heard) < 12:
                try:
                    await channels.publish("beacon", b"still here")
                except Retryable:
                    continue
                finally:
                    await asyncio.sleep(0.05)
        await asyncio.gather(*listening)
    await channels.close()


async def test_a_slot_moved_at_once_under_appends_costs_no_answer(
    cluster: ValkeyCluster, bed: RedisBed
) -> None:
    """Valkey's atomic slot migration."""
    stream = bed.log.keys.streams[0]
    source = cluster.primary_of(stream)
    target = next(node for node in cluster.nodes if node is not source)
    slot = source.ask("CLUSTER KEYSLOT", stream.decode())
    clients = Clients(bed.producer(LIMITS))
    clients.start()
    await clients.wait_told(0, 20)
    reading = asyncio.create_task(read_some(bed))
    target_id = target.ask("CLUSTER MYID")
    source.ask("CLUSTER MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target_id)
    await asyncio.to_thread(wait_until, lambda: cluster.primary_of(stream) is target, "moved")
    await clients.wait_told(0, 20)
    # Who was blocked in a read at the old node reads on at the new one.
    async with asyncio.timeout(10):
        assert await reading > 0
    told = await clients.stop()
    assert (clients.unknown, clients.not_executed) == (0, 0)
    await bed.keeper().ensure_group("counters")
    assert sorted(await logged_ids(bed, "counters")) == sorted(told)


async def read_some(bed: RedisBed) -> int:
    """Entries read from shard 0 by its group until one came after a failure; acknowledged as they come."""
    reader = bed.reader(consumer="moving")
    is_moved = False
    while True:
        try:
            entries = await reader.read(0, 100, 1.0)
            done = await reader.acknowledge(0, entries)
        except Retryable:
            is_moved = True
            continue
        if done and is_moved:
            return done


async def test_a_slot_moved_key_by_key_holds_keyed_orders_up_and_loses_none(
    cluster: ValkeyCluster, bed: RedisBed
) -> None:
    """The way before Valkey 9: SETSLOT, MIGRATE of each key, SETSLOT."""
    keys = bed.log.keys
    stream = keys.streams[1]
    source = cluster.primary_of(stream)
    target = next(node for node in cluster.nodes if node is not source)
    slot = source.ask("CLUSTER KEYSLOT", stream.decode())
    hasty = bed.producer(ProducerLimits(resend_seconds_max=0.05))
    logged = [await append(hasty, key=b"before")]
    target.ask("CLUSTER SETSLOT", slot, "IMPORTING", source.ask("CLUSTER MYID"))
    source.ask("CLUSTER SETSLOT", slot, "MIGRATING", target.ask("CLUSTER MYID"))
    # Stream and counter are still here: an order without a key is taken, a new key may be on either side.
    logged.append(await append(hasty))
    with pytest.raises(NotExecuted, match="TRYAGAIN"):
        await append(hasty, key=b"meanwhile")
    move(source, target, keys.counters[1])
    with pytest.raises(NotExecuted, match="TRYAGAIN"):
        await append(hasty)
    move(source, target, stream)
    # Now both are there, and the way there is told with each call (ASK).
    logged += [await append(hasty), await append(hasty)]
    # The one sends it to the other, which has not all of its keys.
    with pytest.raises(NotExecuted, match=r"TRYAGAIN|ASK"):
        await append(hasty, key=b"meanwhile")
    patient = asyncio.create_task(append(bed.producer(), key=b"patient"))
    await asyncio.sleep(0.05)
    for name in source.ask("CLUSTER GETKEYSINSLOT", slot, 100):
        move(source, target, name.encode())
    for node in (target, source):
        node.ask("CLUSTER SETSLOT", slot, "NODE", target.ask("CLUSTER MYID"))
    logged += [await patient, await append(hasty, key=b"meanwhile")]
    again = await hasty.append(1, an_append(hasty, 1, key=b"before", body=b"b"))
    assert again.order_id == logged[0]
    assert sorted(await logged_ids(bed)) == sorted(logged)


async def append(producer: GroupProducer, key: bytes | None = None) -> bytes:
    """An order of shard 1; its id."""
    order = an_append(producer, 1, key=key, body=b"b" if key else None)
    return (await producer.append(1, order)).order_id


def move(source: ValkeyNode, target: ValkeyNode, key: bytes) -> None:
    place: list[str | int] = ["127.0.0.1", target.port, key.decode(), 0, 5000]
    assert source.ask("MIGRATE", *place, "AUTH", target.client_password) == "OK"


async def test_a_node_that_may_evict_is_refused(cluster: ValkeyCluster, bed: RedisBed) -> None:
    node = cluster.primary_of(bed.log.keys.streams[2])
    node.ask("CONFIG SET", "maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(Rejected, match="noeviction"):
            await bed.producer().start()
        assert await bed.keeper().unsafe_reasons() >= ["eviction"]
    finally:
        node.ask("CONFIG SET", "maxmemory-policy", "noeviction")
    await bed.producer().start()


async def test_the_fullest_node_counts(cluster: ValkeyCluster, bed: RedisBed) -> None:
    node = cluster.primary_of(bed.log.keys.streams[3])
    full = 40 << 20
    node.ask("CONFIG SET", "maxmemory", full)
    try:
        used, maximum = await bed.keeper().memory()
        assert (0 < used < maximum, maximum) == (True, full)
    finally:
        node.ask("CONFIG SET", "maxmemory", 1 << 30)
