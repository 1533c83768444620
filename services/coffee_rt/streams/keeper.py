"""Care of the log on Redis: groups, trim, backlog, look-ups. A LogKeeper.

Every answer about one shard comes from one script call, so it is about one moment; answers about several
shards are not. Commands go to one connection a shard, opened when needed, and one for the registry of groups
(in a Cluster it may live on another node than any shard).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

from coffee_rt.domain.ids import id_shard, id_time_ms
from coffee_rt.errors import Retryable
from coffee_rt.streams import metrics
from coffee_rt.streams.append import ensure_install
from coffee_rt.streams.backlog import (
    FIND_AFTER_MS,
    FIND_BEFORE_MS,
    FIND_BEFORE_SPREAD_MS,
    GroupState,
    ShardState,
    find_record,
    plan_backlog,
)
from coffee_rt.streams.contract import Backlog, Delivery, EntryId, Horizon, Position
from coffee_rt.streams.entries import delivery_of, fields_of
from coffee_rt.streams.flush import position_of_value
from coffee_rt.streams.reader import create_group
from coffee_rt.streams.redis import Argument, Connector, KeptLink, Link, ReplyError
from coffee_rt.streams.scripts import BACKLOG, FOLLOW, LEAVE, SETTLED, TRIM, Script
from coffee_rt.streams.server_safety import judge_server, worst_of
from coffee_rt.streams.shards import LogKeys

T = TypeVar("T")

TRIM_ENTRIES_MAX = 10_000
"""Entries removed by one script call: about ten milliseconds of Redis."""
FIND_PAGE_ENTRIES = 64


class RedisKeeper:
    """Shared by the tasks of a process."""

    def __init__(
        self, connector: Connector, keys: LogKeys, *, reply_seconds_max: float = 5.0
    ) -> None:
        self._connector = connector
        self._keys = keys
        self._seconds_max = reply_seconds_max
        # One each: a server that is away must not keep the others' connections waiting.
        self._links: dict[bytes, KeptLink] = {}

    @property
    def shards(self) -> int:
        return self._keys.shards

    async def start(self) -> None:
        """Check the installation. Raises Rejected where the log has another number of shards."""
        await ensure_install(self._connector, self._keys, self._seconds_max)

    async def close(self) -> None:
        for link in self._links.values():
            link.close()

    async def ensure_group(self, group: str) -> None:
        registry = self._keys.groups
        # Registered first: from then on a trim leaves everything until the group is on every shard.
        # Not when it is: while Redis is full the write is refused, and who frees it must start all the same.
        if not await self._call_at(registry, "HEXISTS", registry, group):
            await self._call_at(registry, "HSETNX", registry, group, int(time.time()))
        for stream in self._keys.streams:
            await self._create_group(stream, group)

    async def registered_groups(self) -> list[str]:
        names: list[bytes] = await self._call_at(self._keys.groups, "HKEYS", self._keys.groups)
        return sorted(name.decode() for name in names)

    async def foreign_groups(self) -> dict[str, list[int]]:
        registered = set(await self.registered_groups())
        foreign: dict[str, list[int]] = {}
        for shard in range(self.shards):
            for group in (await self._state(shard)).groups:
                if group.name not in registered:
                    foreign.setdefault(group.name, []).append(shard)
        metrics.FOREIGN_GROUPS.set(len(foreign))
        return foreign

    async def backlog(self, group: str, *, is_partial: bool = False) -> list[Backlog]:
        asked = (self._backlog(group, shard) for shard in range(self.shards))
        if not is_partial:
            return await asyncio.gather(*asked)
        return _those_that_answer(await asyncio.gather(*asked, return_exceptions=True))

    async def _backlog(self, group: str, shard: int) -> Backlog:
        state = await self._state(shard)
        stream = self._keys.streams[shard]
        memory = await self._call_at(stream, "MEMORY", "USAGE", stream)
        found = next((one for one in state.groups if one.name == group), None)
        backlog = plan_backlog(shard, state, found, int(memory or 0))
        labels = (group, str(shard))
        metrics.BACKLOG_RECORDS.labels(*labels).set(backlog.records)
        metrics.BACKLOG_SECONDS.labels(*labels).set(backlog.oldest_seconds)
        metrics.PENDING_ENTRIES.labels(*labels).set(backlog.pending_entries)
        return backlog

    async def horizon(self, shard: int) -> Horizon:
        state = await self._state(shard)
        lowest = [group.lowest for group in state.groups if group.lowest is not None]
        if not state.groups:
            lowest = [state.first] if state.first else []
        return Horizon(state.first, min(lowest, default=None), state.counter, state.last)

    async def trim(self, shard: int, keep_seconds: float) -> int:
        groups = await self.registered_groups()
        if not groups:
            return 0  # A lost registry must not free what nobody has stored.
        stream = self._keys.streams[shard]
        total = 0
        while True:
            arguments: list[Argument] = [int(keep_seconds * 1000), TRIM_ENTRIES_MAX, *groups]
            removed = await self._run(shard, TRIM, [stream, self._keys.marks[shard]], arguments)
            if not isinstance(removed, int):
                # A registered group is missing here: from its first entry on it will want everything.
                if await self._create_group(stream, removed.decode()):
                    metrics.GROUPS_RECREATED.labels(str(shard)).inc()
                return total
            total += removed
            metrics.TRIMMED_ENTRIES.labels(str(shard)).inc(removed)
            if removed < TRIM_ENTRIES_MAX // 2:
                return total

    async def remove_idle_consumers(self, group: str, idle_seconds_min: float) -> int:
        arguments: list[Argument] = [group, "", int(idle_seconds_min * 1000)]
        return sum(
            [
                await self._run(shard, LEAVE, [self._keys.streams[shard]], arguments)
                for shard in range(self.shards)
            ]
        )

    async def follow_timeline(self, group: str, timeline: str, keep_seconds: float) -> list[int]:
        arguments: list[Argument] = [group, timeline, int(keep_seconds * 1000)]
        names = self._keys
        keys = list(zip(names.streams, names.marks, names.timelines, strict=True))
        return [
            shard
            for shard in range(self.shards)
            if await self._run(shard, FOLLOW, keys[shard], arguments)
        ]

    async def is_settled(self, group: str, position: Position) -> bool:
        ms, seq = position.entry_id
        stream = self._keys.streams[position.shard]
        batch_id = position.batch_id if any(position.batch_id) else b""
        arguments: list[Argument] = [group, ms, seq, batch_id]
        return bool(await self._run(position.shard, SETTLED, [stream], arguments))

    async def memory(self) -> tuple[int, int]:
        """Of the fullest server. One that is away is left out: what goes there fails on its own."""
        one_a_server = await self._connector.one_a_server(self._keys.streams)
        asked = (self._memory(stream) for stream in one_a_server)
        found = _those_that_answer(await asyncio.gather(*asked, return_exceptions=True))
        used, maximum = max(found, key=lambda pair: (pair[0] / pair[1] if pair[1] else 0, pair[0]))
        metrics.MEMORY_BYTES.labels("used").set(used)
        metrics.MEMORY_BYTES.labels("maximum").set(maximum)
        return used, maximum

    async def _memory(self, stream: bytes) -> tuple[int, int]:
        link = await self._link(stream)
        # The command names no key, so no Cluster redirects it, and a server that was demoted answers too.
        info = await link.call("INFO", "memory", "replication", seconds_max=self._seconds_max)
        facts = dict(line.split(b":", 1) for line in info.split(b"\r\n") if b":" in line)
        if facts.get(b"role") == b"slave":
            link.close("the server is a replica now")
            raise Retryable("the log's server is a replica")
        return int(facts[b"used_memory"]), int(facts[b"maxmemory"])

    async def unsafe_reasons(self) -> list[str]:
        one_a_server = await self._connector.one_a_server(self._keys.streams)
        judged = worst_of([await self._judge_server(stream) for stream in one_a_server])
        for reason, is_unsafe in judged.items():
            metrics.UNSAFE.labels(reason).set(is_unsafe)
        return [reason for reason, is_unsafe in judged.items() if is_unsafe]

    async def _judge_server(self, stream: bytes) -> dict[str, bool]:
        info = await self._call_at(stream, "INFO", "memory")
        info += await self._call_at(stream, "INFO", "persistence")
        link = await self._link(stream)
        try:
            fsync = await link.call("CONFIG", "GET", "appendfsync", seconds_max=self._seconds_max)
        except ReplyError:
            # Servers run by others often don't allow CONFIG; the connection is as good as before.
            fsync = None
        return judge_server(info, fsync)

    async def find_order(self, order_id: bytes) -> tuple[Position, bytes] | None:
        position = await self._find_client_id(order_id)
        if position is not None:
            start = end = str(position.entry_id)
            return await self._find_between(position.shard, start, end, order_id)
        shard = id_shard(order_id)
        at_ms = id_time_ms(order_id)
        if shard >= self.shards:
            return None
        before_ms = FIND_BEFORE_SPREAD_MS if self._connector.is_spread else FIND_BEFORE_MS
        start, end = str(max(0, at_ms - before_ms)), str(at_ms + FIND_AFTER_MS)
        return await self._find_between(shard, start, end, order_id)

    async def entries(
        self, shard: int, after: EntryId, before: EntryId, entries_max: int
    ) -> list[Delivery]:
        """Entries still in the log strictly between two ids, oldest first; nothing is delivered by it."""
        stream = self._keys.streams[shard]
        page = await self._call_at(
            stream, "XRANGE", stream, f"({after}", f"({before}", "COUNT", entries_max
        )
        return [delivery_of(shard, entry_id, flat, 0, 0) for entry_id, flat in page]

    async def _find_client_id(self, order_id: bytes) -> Position | None:
        name = order_id.hex().encode()
        homes = zip(self._keys.streams, self._keys.client_ids, strict=True)
        values = await asyncio.gather(
            *(self._call_at(stream, "GET", prefix + name) for stream, prefix in homes)
        )
        for shard, value in enumerate(values):
            if value is not None:
                return position_of_value(shard, value)
        return None

    async def _find_between(
        self, shard: int, start: str, end: str, order_id: bytes
    ) -> tuple[Position, bytes] | None:
        stream = self._keys.streams[shard]
        while True:
            page = await self._call_at(
                stream, "XRANGE", stream, start, end, "COUNT", FIND_PAGE_ENTRIES
            )
            for entry_id, flat in page:
                found = find_record(fields_of(flat), order_id)
                if found is not None:
                    return Position(shard, EntryId.parse(entry_id), found[0]), found[1]
            if len(page) < FIND_PAGE_ENTRIES:
                return None
            start = f"({page[-1][0].decode()}"

    async def _create_group(self, stream: bytes, group: str) -> bool:
        link = await self._link(stream)
        try:
            return await create_group(link, stream, group, self._seconds_max)
        except ReplyError as error:
            # A replica by now, or a node the slot has left: find the right one.
            link.close(error.code)
            raise

    async def _state(self, shard: int) -> ShardState:
        keys = [self._keys.streams[shard], self._keys.counters[shard]]
        return parse_shard_state(await self._run(shard, BACKLOG, keys, []))

    async def _run(
        self, shard: int, script: Script, keys: Sequence[bytes], arguments: Sequence[Argument]
    ) -> Any:
        link = await self._link(self._keys.streams[shard])
        try:
            return await link.run(script, keys, arguments, self._seconds_max)
        except ReplyError as error:
            link.close(error.code)
            raise

    async def _call_at(self, home: bytes, *command: Argument) -> Any:
        """A command about keys that live where `home` does."""
        link = await self._link(home)
        try:
            return await link.call(*command, seconds_max=self._seconds_max)
        except ReplyError as error:
            link.close(error.code)
            raise

    async def _link(self, home: bytes) -> Link:
        kept = self._links.get(home)
        if kept is None:
            kept = self._links[home] = KeptLink(partial(self._connector.open, home, "keeper"))
        return await kept.get()


def _those_that_answer(answers: Sequence[T | BaseException]) -> list[T]:
    """Raises the first failure where all failed, or where one is no Retryable."""
    failures = [answer for answer in answers if isinstance(answer, BaseException)]
    fatal = [failure for failure in failures if not isinstance(failure, Retryable)]
    if fatal or len(failures) == len(answers):
        raise (fatal or failures)[0]
    return [answer for answer in answers if not isinstance(answer, BaseException)]


def parse_shard_state(reply: Sequence[Any]) -> ShardState:
    counter, now_ms, length, first, last, first_counter, first_records, *groups = reply
    return ShardState(
        int(counter),
        int(now_ms),
        int(length),
        EntryId.parse(first) if first else None,
        EntryId.parse(last),
        int(first_counter),
        int(first_records),
        [
            GroupState(
                name.decode(),
                int(pending),
                EntryId.parse(lowest) if lowest else None,
                int(lowest_counter),
                int(lowest_records),
                EntryId.parse(undelivered) if undelivered else None,
                int(undelivered_counter),
                int(undelivered_records),
            )
            for (
                name,
                pending,
                lowest,
                lowest_counter,
                lowest_records,
                undelivered,
                undelivered_counter,
                undelivered_records,
                _,
            ) in groups
        ],
    )
