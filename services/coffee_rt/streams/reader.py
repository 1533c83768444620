"""One consumer of a group on Redis: reads, claims and acknowledges, a shard at a time.

Each shard has two connections that live and die together: one blocks in XREADGROUP, the other carries
claims and acknowledgements meanwhile. Both must reach the same server process (its run id is compared),
and when either breaks both are replaced at the next read and the reader epoch rises. Entries read before that are not
acknowledged: after a failover an id may have been given again to another entry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from coffee_rt.errors import Retryable
from coffee_rt.streams import metrics
from coffee_rt.streams.contract import ENTRY_ID_ZERO, Delivery, EntryId
from coffee_rt.streams.entries import count_gaps, delivery_of
from coffee_rt.streams.redis import Argument, Connector, Link, ReplyError, pack
from coffee_rt.streams.scripts import ACKNOWLEDGE, LEAVE
from coffee_rt.streams.shards import LogKeys

# Codes of a reply that says "the group is gone": asked for, or woken from a blocking read by it.
_LOST_GROUP = frozenset({"NOGROUP", "UNBLOCKED"})
# Of the right server all the same: the slot is on its way to another, and will be answered when it is there.
_IN_MIGRATION = frozenset({"ASK", "TRYAGAIN"})


class _Shard:
    """Connections of one shard; `epoch` counts them."""

    __slots__ = ("claim_from", "epoch", "links", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.epoch = 0
        self.links: tuple[Link, Link] | None = None
        self.claim_from: bytes = b"0-0"


class RedisReader:
    """A GroupReader. Owned by one process; at most one task reads a shard at a time."""

    def __init__(
        self,
        connector: Connector,
        keys: LogKeys,
        group: str,
        consumer: str,
        *,
        reply_seconds_max: float = 5.0,
    ) -> None:
        self._connector = connector
        self._keys = keys
        self._group = group
        self._consumer = consumer
        self._reply_seconds_max = reply_seconds_max
        self._shards = [_Shard(number) for number in range(keys.shards)]
        metrics.prepare_shards(keys.shards)

    @property
    def shards(self) -> int:
        return self._keys.shards

    async def read(self, shard: int, entries_max: int, wait_seconds: float) -> list[Delivery]:
        state = self._shards[shard]
        command: list[Argument] = ["XREADGROUP", "GROUP", self._group, self._consumer]
        command += ["COUNT", entries_max]
        if wait_seconds > 0:
            # BLOCK 0 would wait for ever; a look that need not wait must not block at all: an idle Redis
            # ends a wait of 1 ms only when something else wakes it, up to 100 ms later.
            command += ["BLOCK", max(1, int(wait_seconds * 1000))]
        command += ["STREAMS", self._keys.streams[shard], ">"]
        links = await self._links(state)
        try:
            reply = await self._call_healing(state, links[0], command, wait_seconds)
        except asyncio.CancelledError:
            # What Redis hands out after this would be pending for us without anybody knowing.
            links[0].close("a read was cancelled")
            raise
        if reply is None:
            return []
        deliveries = [
            delivery_of(shard, entry_id, flat, 1, state.epoch) for entry_id, flat in reply[0][1]
        ]
        count_gaps(deliveries)
        return deliveries

    async def read_own_pending(
        self, shard: int, entries_max: int, after: EntryId
    ) -> list[Delivery]:
        state = self._shards[shard]
        command: list[Argument] = ["XREADGROUP", "GROUP", self._group, self._consumer]
        command += ["COUNT", entries_max, "STREAMS", self._keys.streams[shard], str(after)]
        _, link = await self._links(state)
        reply = await self._call_healing(state, link, command, 0)
        entries = reply[0][1] if reply else []
        vanished = [entry_id for entry_id, flat in entries if flat is None]
        if vanished:
            # Nothing is left to store: without this they would be read again for ever.
            await self._call(link, "XACK", self._keys.streams[shard], self._group, *vanished)
            self._count_vanished(shard, vanished)
        return await self._with_attempts(state, link, entries)

    async def claim(self, shard: int, idle_seconds_min: float, entries_max: int) -> list[Delivery]:
        state = self._shards[shard]
        _, link = await self._links(state)
        idle_ms = int(idle_seconds_min * 1000)
        command: list[Argument] = ["XAUTOCLAIM", self._keys.streams[shard], self._group]
        command += [self._consumer, idle_ms, state.claim_from, "COUNT", entries_max]
        reply = await self._call_healing(state, link, command, 0)
        if reply is None:
            return []
        # The cursor goes on where this call stopped looking, and starts again after the last entry.
        state.claim_from = reply[0]
        self._count_vanished(shard, reply[2])
        return await self._with_attempts(state, link, reply[1])

    async def acknowledge(self, shard: int, deliveries: list[Delivery], timeline: str = "") -> int:
        state = self._shards[shard]
        links = state.links
        current = [entry for entry in deliveries if entry.reader_epoch == state.epoch]
        # The reading connection may be gone (a read was cancelled, to drain): this one was opened to the
        # same server process and never broke, so the ids still mean the same entries.
        if links is None or links[1].is_closed:
            current = []
        dropped = len(deliveries) - len(current)
        if dropped:
            metrics.ACKNOWLEDGEMENTS_DROPPED.labels(str(shard)).inc(dropped)
        if not current or links is None:
            return 0
        ids = [str(entry.entry_id) for entry in current]
        keys = [self._keys.streams[shard], self._keys.timelines[shard]]
        if not timeline:
            return int(await self._call(links[1], "XACK", keys[0], self._group, *ids))
        arguments: list[Argument] = [self._group, timeline, *ids]
        try:
            reply = await links[1].run(ACKNOWLEDGE, keys, arguments, self._reply_seconds_max)
        except ReplyError as error:
            if error.code not in _IN_MIGRATION:
                links[1].close(error.code)
            raise
        return int(reply)

    async def leave(self) -> None:
        for state in self._shards:
            try:
                if state.links is not None and not state.links[1].is_closed:
                    stream = self._keys.streams[state.number]
                    arguments: list[Argument] = [self._group, self._consumer, 0]
                    await state.links[1].run(LEAVE, [stream], arguments, self._reply_seconds_max)
            except Retryable:
                continue  # It stays known to Redis until the keeper removes idle consumers.
            finally:
                self._drop(state)

    async def _links(self, state: _Shard) -> tuple[Link, Link]:
        """The two connections of a shard; new ones are a new epoch."""
        links = state.links
        if links is not None and not links[0].is_closed and not links[1].is_closed:
            return links
        self._drop(state)
        stream = self._keys.streams[state.number]
        reading = await self._connector.open(stream, "read")
        try:
            acknowledging = await self._connector.open(stream, "acknowledge")
        except BaseException:
            reading.close()
            raise
        links = reading, acknowledging
        try:
            if await self._run_id(reading) != await self._run_id(acknowledging):
                raise Retryable("the log failed over while connecting")
        except BaseException:
            reading.close()
            acknowledging.close()
            raise
        state.epoch += 1
        state.claim_from = b"0-0"
        state.links = links
        return links

    async def _run_id(self, link: Link) -> bytes:
        info: bytes = await self._call(link, "INFO", "server")
        return next(line for line in info.split(b"\r\n") if line.startswith(b"run_id:"))

    def _drop(self, state: _Shard) -> None:
        for link in state.links or ():
            link.close()
        state.links = None

    async def _call(self, link: Link, *command: Argument) -> Any:
        try:
            return await link.call(*command, seconds_max=self._reply_seconds_max)
        except ReplyError as error:
            if error.code != "NOGROUP" and error.code not in _IN_MIGRATION:
                link.close(error.code)  # A replica, a loading server: find the right one again.
            raise

    async def _call_healing(
        self, state: _Shard, link: Link, command: Sequence[Argument], wait_seconds: float
    ) -> Any:
        """A command on the group; where the group is lost, made again from the first entry and None.

        At 0 and not at `$`: the ledger absorbs entries stored already, and nothing would bring back those
        skipped.
        """
        seconds_max = wait_seconds + self._reply_seconds_max
        try:
            return await link.wait(link.send(pack(*command)), seconds_max)
        except ReplyError as error:
            if error.code not in _LOST_GROUP:
                if error.code not in _IN_MIGRATION:
                    link.close(error.code)
                raise
        stream = self._keys.streams[state.number]
        if await create_group(link, stream, self._group, self._reply_seconds_max):
            metrics.GROUPS_RECREATED.labels(str(state.number)).inc()
        return None

    async def _with_attempts(
        self, state: _Shard, link: Link, entries: Sequence[Any]
    ) -> list[Delivery]:
        present = [(entry_id, flat) for entry_id, flat in entries if flat is not None]
        if not present:
            return []
        found = await self._call(
            link,
            "XPENDING",
            self._keys.streams[state.number],
            self._group,
            present[0][0],
            present[-1][0],
            # All of ours between the two: there may be others between those that were claimed.
            len(present) + 10_000,
            self._consumer,
        )
        attempts = {entry_id: count for entry_id, _, _, count in found}
        return [
            delivery_of(state.number, entry_id, flat, attempts.get(entry_id, 1), state.epoch)
            for entry_id, flat in present
        ]

    def _count_vanished(self, shard: int, entries: Sequence[bytes]) -> None:
        if entries:
            metrics.ENTRIES_VANISHED.labels(str(shard)).inc(len(entries))


async def create_group(link: Link, stream: bytes, group: str, seconds_max: float) -> bool:
    """Make a group from the first entry; False where it is there already."""
    try:
        # Asked first: Redis refuses XGROUP CREATE while its memory is full, also for a group it has.
        groups = await link.call("XINFO", "GROUPS", stream, seconds_max=seconds_max)
        if any(facts[1] == group.encode() for facts in groups):
            return False
    except ReplyError as error:
        if error.code != "ERR":  # No such stream.
            raise
    try:
        await link.call(
            "XGROUP", "CREATE", stream, group, str(ENTRY_ID_ZERO), "MKSTREAM",
            seconds_max=seconds_max,
        )  # fmt: skip
    except ReplyError as error:
        if error.code != "BUSYGROUP":
            raise
        return False
    return True
