"""One log under test, in memory or on a real server, with ways to break it that both understand."""

from __future__ import annotations

from typing import Any

from coffee_rt.domain.wire import encode_record
from coffee_rt.runtime.clock import Clock, SystemClock
from coffee_rt.runtime.settings import RedisSettings
from coffee_rt.streams.contract import Append, EntryId
from coffee_rt.streams.flush import ProducerLimits
from coffee_rt.streams.keeper import RedisKeeper
from coffee_rt.streams.memory import MemoryLog, MemoryTarget
from coffee_rt.streams.memory_groups import MemoryKeeper, MemoryReader
from coffee_rt.streams.producer import GroupProducer
from coffee_rt.streams.reader import RedisReader
from coffee_rt.streams.redis import Link, ReplyError
from coffee_rt.streams.redis_log import RedisLog
from tests.builders import an_order

SHARDS = 4


class WrongClock(SystemClock):
    """A machine whose clock is off."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def now(self) -> float:
        return super().now() + self.seconds


def an_append(
    producer: GroupProducer,
    shard: int = 0,
    *,
    key: bytes | None = None,
    body: bytes | None = None,
    order_id: bytes | None = None,
    is_client_id: bool = False,
    tenant: int = 0,
    note: str | None = None,
) -> Append:
    """A record of an order accepted now. `key` and `body` are short texts that stand for hashes."""
    order = an_order(
        shard=shard,
        order_id=order_id,
        accepted_at_us=producer.now_ms() * 1000,
        tenant=tenant,
        note=note,
    )
    body_hash = order.body_hash if body is None else body.ljust(16, b".")
    key_hash = None if key is None else key.ljust(16, b".")
    return Append(order.order_id, encode_record(order), body_hash, key_hash, is_client_id, tenant)


class MemoryBed:
    def __init__(self) -> None:
        self.clock = SystemClock()
        self.log = MemoryLog(self.clock, SHARDS)
        self._producers: list[GroupProducer] = []

    def producer(
        self,
        limits: ProducerLimits | None = None,
        shards: int = SHARDS,
        clock: Clock | None = None,
    ) -> GroupProducer:
        target = MemoryTarget(self.log, shards, limits, clock)
        producer = GroupProducer(target, clock or self.clock, limits)
        self._producers.append(producer)
        return producer

    def reader(self, group: str = "workers", consumer: str = "a") -> MemoryReader:
        return MemoryReader(self.log, group, consumer)

    def keeper(self) -> MemoryKeeper:
        return MemoryKeeper(self.log)

    async def insert_raw(self, shard: int, fields: dict[bytes, bytes]) -> EntryId:
        return self.log.insert_raw(shard, fields)

    async def set_counter(self, shard: int, counter: int) -> None:
        self.log.shards[shard].counter = counter

    async def destroy_group(self, shard: int, group: str) -> None:
        del self.log.shards[shard].groups[group]

    async def create_foreign_group(self, shard: int, group: str) -> None:
        self.log.shards[shard].groups[group] = type(self.log.shards[shard].groups["workers"])()

    async def delete_entry(self, shard: int, entry_id: EntryId) -> None:
        self.log.shards[shard].remove(entry_id)

    async def set_group_back(self, shard: int, group: str, entry_id: EntryId) -> None:
        self.log.shards[shard].groups[group].delivered = entry_id

    async def lose_everything(self) -> None:
        self.log.flush_all()

    async def break_connections(self) -> None:
        self.log.restart()

    async def consumers(self, shard: int, group: str) -> set[str]:
        return set(self.log.shards[shard].groups[group].consumers)

    async def close(self) -> None:
        for producer in self._producers:
            await producer.close()


class RedisBed:
    def __init__(self, url: str, namespace: str) -> None:
        self.log = RedisLog(RedisSettings(url=url), namespace, SHARDS)
        self._namespace = namespace
        self._url = url
        self._opened: list[GroupProducer | RedisKeeper] = []
        self._readers: list[RedisReader] = []
        self._links: dict[bytes, Link] = {}

    def producer(
        self,
        limits: ProducerLimits | None = None,
        shards: int = SHARDS,
        clock: Clock | None = None,
    ) -> GroupProducer:
        log = RedisLog(RedisSettings(url=self._url), self._namespace, shards, clock)
        producer = log.producer(limits)
        self._opened.append(producer)
        return producer

    def reader(self, group: str = "workers", consumer: str = "a") -> RedisReader:
        reader = self.log.reader(group, consumer)
        self._readers.append(reader)
        return reader

    def keeper(self) -> RedisKeeper:
        keeper = self.log.keeper()
        self._opened.append(keeper)
        return keeper

    async def command(self, *arguments: bytes | str | int, at: bytes | None = None) -> Any:
        """A command to the server that holds `at` (default: shard 0)."""
        home = self._stream(0) if at is None else at
        link = self._links.get(home)
        if link is None or link.is_closed:
            link = self._links[home] = await self.log.connector.open(home, "test")
        try:
            return await link.call(*arguments, seconds_max=5)
        except ReplyError:
            link.close()
            raise

    async def insert_raw(self, shard: int, fields: dict[bytes, bytes]) -> EntryId:
        flat = [part for pair in fields.items() for part in pair]
        stream = self._stream(shard)
        return EntryId.parse(await self.command("XADD", stream, "*", *flat, at=stream))

    async def set_counter(self, shard: int, counter: int) -> None:
        key = self.log.keys.counters[shard]
        await self.command("SET", key, counter, at=key)

    async def destroy_group(self, shard: int, group: str) -> None:
        stream = self._stream(shard)
        await self.command("XGROUP", "DESTROY", stream, group, at=stream)

    async def create_foreign_group(self, shard: int, group: str) -> None:
        stream = self._stream(shard)
        await self.command("XGROUP", "CREATE", stream, group, "0", at=stream)

    async def delete_entry(self, shard: int, entry_id: EntryId) -> None:
        stream = self._stream(shard)
        await self.command("XDEL", stream, str(entry_id), at=stream)

    async def set_group_back(self, shard: int, group: str, entry_id: EntryId) -> None:
        stream = self._stream(shard)
        await self.command("XGROUP", "SETID", stream, group, str(entry_id), at=stream)

    async def lose_everything(self) -> None:
        keys = self.log.keys
        for home in await self.log.connector.one_a_server(
            [*keys.streams, keys.groups, keys.install]
        ):
            for key in await self.command("KEYS", f"{self._namespace}:*", at=home):
                await self.command("DEL", key, at=home)

    async def break_connections(self) -> None:
        """Ours only: other tests use the same server."""
        for reader in self._readers:
            for state in reader._shards:
                for link in state.links or ():
                    stream = self._stream(state.number)
                    await self.command("CLIENT", "KILL", "ID", await _client_id(link), at=stream)

    async def consumers(self, shard: int, group: str) -> set[str]:
        stream = self._stream(shard)
        found = await self.command("XINFO", "CONSUMERS", stream, group, at=stream)
        return {facts[1].decode() for facts in found}

    async def close(self) -> None:
        for reader in self._readers:
            await reader.leave()
        for opened in self._opened:
            await opened.close()
        await self.lose_everything()
        self.disconnect()

    def disconnect(self) -> None:
        """Close what `command` opened."""
        for link in self._links.values():
            link.close()

    def _stream(self, shard: int) -> bytes:
        return self.log.keys.streams[shard]


async def _client_id(link: Link) -> int:
    client_id: int = await link.call("CLIENT", "ID", seconds_max=5)
    return client_id


Bed = MemoryBed | RedisBed
