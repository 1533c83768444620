"""Clients that repeat each order with its key until they are answered, and what the log holds in the end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from coffee_rt.domain.wire import decode_batch
from coffee_rt.errors import NotExecuted, Retryable
from coffee_rt.streams.contract import ENTRY_ID_ZERO, STORE_GROUP, Delivery
from coffee_rt.streams.producer import GroupProducer
from coffee_rt.streams.reader import RedisReader
from tests.streams_bed import SHARDS, RedisBed, an_append


@dataclass
class Clients:
    """`count` clients post until `stop`; `told` are the ids they were answered, by shard."""

    producer: GroupProducer
    count: int = 16
    told: list[list[bytes]] = field(default_factory=lambda: [[] for _ in range(SHARDS)])
    not_executed: int = 0
    unknown: int = 0
    is_stopping: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._post(client)) for client in range(self.count)]

    async def stop(self) -> list[bytes]:
        """Everybody's order under way is answered first. All ids told."""
        self.is_stopping = True
        await asyncio.gather(*self._tasks)
        return [order_id for shard in self.told for order_id in shard]

    async def wait_told(self, shard: int, more: int = 1, seconds_max: float = 20) -> None:
        """Until so many more of a shard's orders were answered."""
        wanted = len(self.told[shard]) + more
        async with asyncio.timeout(seconds_max):
            while len(self.told[shard]) < wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def _post(self, client: int) -> None:
        shard, number = client % SHARDS, 0
        while not self.is_stopping:
            number += 1
            key, body = b"%d-%d" % (client, number), b"%d" % number
            while True:
                append = an_append(self.producer, shard, key=key, body=body)
                try:
                    appended = await self.producer.append(shard, append)
                except NotExecuted:
                    self.not_executed += 1
                    await asyncio.sleep(0.02)
                except Retryable:
                    self.unknown += 1
                    await asyncio.sleep(0.02)
                else:
                    self.told[shard].append(appended.order_id)
                    break
            await asyncio.sleep(0.005)


async def logged_ids(bed: RedisBed, group: str = STORE_GROUP) -> list[bytes]:
    """Every order of the log, read and acknowledged by a group; no gap, no fault."""
    reader = bed.reader(group, "counting")
    logged: list[bytes] = []
    for shard in range(SHARDS):
        while entries := await _read_surely(reader, shard):
            assert {(entry.fault, entry.gap) for entry in entries} == {(None, None)}
            for entry in entries:
                logged += [order.order_id for order in decode_batch(1, entry.data)]
            await reader.acknowledge(shard, entries)
        assert await reader.read_own_pending(shard, 1, ENTRY_ID_ZERO) == []
    return logged


async def _read_surely(reader: RedisReader, shard: int) -> list[Delivery]:
    """Also where the shard is elsewhere now, which the first read finds out."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await reader.read(shard, 500, 0)
            except Retryable:
                await asyncio.sleep(0.01)
