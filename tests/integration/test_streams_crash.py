"""A Valkey killed under load: what was answered is there, what was not is all or nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from coffee_rt.domain.wire import decode_batch
from coffee_rt.embedded.servers import EmbeddedValkey
from coffee_rt.errors import Retryable
from coffee_rt.streams.contract import ENTRY_ID_ZERO
from coffee_rt.streams.flush import ProducerLimits
from coffee_rt.streams.producer import GroupProducer
from tests.streams_bed import SHARDS, RedisBed, an_append

pytestmark = pytest.mark.integration

CLIENTS = 24
ORDERS_EACH = 40


@pytest.fixture
def durable_valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    """As `coffee-rt up` runs it: an answer means on disk."""
    server = EmbeddedValkey(tmp_path / "durable")
    server.start()
    yield server
    server.stop()


async def post_orders(producer: GroupProducer, client: int) -> list[bytes]:
    """A client that repeats each order with its key until it is answered; the ids it was told."""
    told: list[bytes] = []
    for number in range(ORDERS_EACH):
        key, body = b"%d-%d" % (client, number), b"%d" % number
        shard = client % SHARDS
        while True:
            try:
                append = an_append(producer, shard, key=key, body=body)
                told.append((await producer.append(shard, append)).order_id)
                break
            except Retryable:
                await asyncio.sleep(0.01)
    return told


async def test_what_was_answered_survives_a_killed_server(durable_valkey: EmbeddedValkey) -> None:
    bed = RedisBed(durable_valkey.url, "n")
    producer = bed.producer(ProducerLimits(reconnect_seconds_max=0.1))
    await bed.keeper().ensure_group("workers")
    posting = asyncio.gather(*(post_orders(producer, client) for client in range(CLIENTS)))
    for _ in range(2):
        await asyncio.sleep(0.15)
        assert durable_valkey.pid is not None
        os.kill(durable_valkey.pid, signal.SIGKILL)
        await asyncio.to_thread(durable_valkey.stop)
        await asyncio.to_thread(durable_valkey.start)
    told = [order_id for ids in await posting for order_id in ids]
    assert len(set(told)) == CLIENTS * ORDERS_EACH
    reader = bed.reader()
    logged: list[bytes] = []
    for shard in range(SHARDS):
        while entries := await reader.read(shard, 100, 0.01):
            assert {entry.fault for entry in entries} == {None}
            assert {entry.gap for entry in entries} == {None}
            for entry in entries:
                logged += [order.order_id for order in decode_batch(1, entry.data)]
            await reader.acknowledge(shard, entries)
        assert await reader.read_own_pending(shard, 1, ENTRY_ID_ZERO) == []
    assert sorted(logged) == sorted(told)
    await bed.close()
