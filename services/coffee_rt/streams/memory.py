"""The log in memory: for simulations in virtual time, and what the contract tests compare Redis with.

`MemoryLog` is the server: its state, its clock, its faults. `MemoryTarget` appends to it; readers and
keepers are in `memory_groups`. A fault hook is asked at named points, before and after each effect: what
it raises there is a request lost or an answer lost, and what it sleeps is latency.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from coffee_rt.domain.wire import WIRE_VERSION, join_records
from coffee_rt.errors import Overload
from coffee_rt.runtime.clock import Clock
from coffee_rt.streams.contract import ENTRY_ID_ZERO, Append, EntryId
from coffee_rt.streams.flush import Flush, FlushReply, ProducerLimits, claim_of, key_value
from coffee_rt.streams.shards import check_shards

FaultHook = Callable[[str, int], Awaitable[None]]
"""Called with a point (`append.send`, `append.answer`, `read.answer`, ...) and the shard. May raise
NotExecuted or Retryable, sleep, or crash the process under test."""


async def no_faults(point: str, shard: int) -> None:
    return


@dataclass(slots=True)
class Pending:
    consumer: str
    delivered_ms: int
    attempts: int


@dataclass(slots=True)
class Group:
    delivered: EntryId = ENTRY_ID_ZERO
    pending: dict[EntryId, Pending] = field(default_factory=dict)
    consumers: dict[str, int] = field(default_factory=dict)
    """Name -> when last heard, ms."""


@dataclass(slots=True)
class Shard:
    """One stream and the keys beside it."""

    ids: list[EntryId] = field(default_factory=list)
    """Ascending."""
    entries: dict[EntryId, dict[bytes, bytes]] = field(default_factory=dict)
    last: EntryId = ENTRY_ID_ZERO
    counter: int = 0
    keys: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    """Key -> value, expiry in ms."""
    groups: dict[str, Group] = field(default_factory=dict)
    marks: list[tuple[int, EntryId]] = field(default_factory=list)
    timelines: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Group -> when its store's timeline was last told (ms), and the timeline."""
    size: int = 0
    """Bytes of all entries."""

    def copy(self) -> Shard:
        """An independent one. Fields of an entry never change, so they are shared."""
        groups = {
            name: replace(
                group,
                pending={entry_id: replace(each) for entry_id, each in group.pending.items()},
                consumers=dict(group.consumers),
            )
            for name, group in self.groups.items()
        }
        return replace(
            self,
            ids=list(self.ids),
            entries=dict(self.entries),
            keys=dict(self.keys),
            groups=groups,
            marks=list(self.marks),
            timelines=dict(self.timelines),
        )

    def first_from(self, entry_id: EntryId, *, after: bool = False) -> EntryId | None:
        index = (bisect_right if after else bisect_left)(self.ids, entry_id)
        return self.ids[index] if index < len(self.ids) else None

    def add(self, now_ms: int, fields: dict[bytes, bytes]) -> EntryId:
        entry_id = EntryId(now_ms, 0)
        if entry_id <= self.last:
            entry_id = EntryId(self.last.ms, self.last.seq + 1)
        self.last = entry_id
        self.insert(entry_id, fields)
        return entry_id

    def insert(self, entry_id: EntryId, fields: dict[bytes, bytes]) -> None:
        insort(self.ids, entry_id)
        self.entries[entry_id] = fields
        self.size += _size(fields)

    def remove(self, entry_id: EntryId) -> None:
        self.ids.remove(entry_id)
        self.size -= _size(self.entries.pop(entry_id))

    def trim_below(self, bound: EntryId) -> int:
        count = bisect_left(self.ids, bound)
        for entry_id in self.ids[:count]:
            self.size -= _size(self.entries.pop(entry_id))
        del self.ids[:count]
        return count


class MemoryLog:
    """The server. Shared by all producers, readers and keepers of a simulation."""

    def __init__(
        self,
        clock: Clock,
        shards: int = 4,
        *,
        faults: FaultHook = no_faults,
        clock_skew_seconds: float = 0.0,
        memory_bytes_max: int = 0,
    ) -> None:
        self.clock = clock
        self.faults = faults
        self.clock_skew_seconds = clock_skew_seconds
        """The server's clock minus the machine's."""
        self.memory_bytes_max = memory_bytes_max
        self.shards = [Shard() for _ in range(shards)]
        self.installed_shards = shards
        self.registry: set[str] = set()
        self.run = 0
        """Raised by a restart: connections of an earlier run are broken."""
        self._changed = [asyncio.Event() for _ in range(shards)]

    def now_ms(self) -> int:
        return int((self.clock.now() + self.clock_skew_seconds) * 1000)

    @property
    def memory_bytes(self) -> int:
        return sum(shard.size for shard in self.shards)

    def snapshot(self) -> list[Shard]:
        """The state, for `restore`: what a replica had when it was promoted."""
        return [shard.copy() for shard in self.shards]

    def restore(self, state: list[Shard]) -> None:
        """Fail over to an older state; every connection breaks."""
        self.shards = [shard.copy() for shard in state]
        self.restart()

    def restart(self) -> None:
        """Break every connection; the state stays, as with `appendfsync always`."""
        self.run += 1
        for shard in range(len(self.shards)):
            self.wake(shard)

    def flush_all(self) -> None:
        """FLUSHALL: everything is gone but the connections."""
        self.shards = [Shard() for _ in self.shards]
        self.registry.clear()

    def wake(self, shard: int) -> None:
        self._changed[shard].set()
        self._changed[shard] = asyncio.Event()

    async def wait_change(self, shard: int, seconds_max: float) -> None:
        """Until something is appended to the shard, or the time is over."""
        waits = [
            asyncio.ensure_future(self._changed[shard].wait()),
            asyncio.ensure_future(self.clock.sleep(seconds_max)),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def insert_raw(self, shard: int, fields: dict[bytes, bytes]) -> EntryId:
        """An entry as a stranger would write it."""
        entry_id = self.shards[shard].add(self.now_ms(), fields)
        self.wake(shard)
        return entry_id


class MemoryTarget:
    """A FlushTarget on a MemoryLog: the append script, in Python."""

    def __init__(
        self,
        log: MemoryLog,
        shards: int,
        limits: ProducerLimits | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._log = log
        self._clock = clock or log.clock
        self._shards = shards
        self._limits = limits or ProducerLimits()

    @property
    def shards(self) -> int:
        return self._shards

    async def start(self) -> tuple[int, float, float]:
        sent_at = self._clock.now()
        await self._log.faults("start", 0)
        check_shards(self._log.installed_shards, self._shards)
        return self._log.now_ms(), sent_at, self._clock.now()

    def is_available(self, shard: int) -> bool:
        return True

    async def close(self) -> None:
        return

    async def execute(self, flush: Flush) -> FlushReply:
        sent_at = self._clock.now()
        await self._log.faults("append.send", flush.shard)
        entry_id, counter, hits = self._append(flush)
        self._log.wake(flush.shard)
        await self._log.faults("append.answer", flush.shard)
        return FlushReply(entry_id, counter, hits, sent_at, self._clock.now())

    def _append(self, flush: Flush) -> tuple[EntryId | None, int, list[int | bytes]]:
        log = self._log
        shard, now = log.shards[flush.shard], log.now_ms()
        hits, fresh, writes = self._look_up(shard, flush, now)
        records = [*flush.unkeyed, *(append.record for append in fresh)]
        if records and log.memory_bytes_max and log.memory_bytes > log.memory_bytes_max:
            raise Overload("log-full", "the order log is full", 5.0)
        if shard.counter < flush.highest:
            gap = b"%d-%d" % (shard.counter, flush.highest)
            gap_id = flush.batch_id[:15] + bytes([255 - flush.batch_id[15]])
            fields = _fields(gap_id, flush.highest, 0) | {b"g": gap}
            shard.add(now, fields)
            shard.counter = flush.highest
        entry_id = None
        if records:
            shard.counter += len(records)
            fields = _fields(flush.batch_id, shard.counter, len(records))
            fields[b"d"] = join_records(records)
            if flush.trace:
                fields[b"t"] = flush.trace.encode()
            entry_id = shard.add(now, fields)
        for key, source, window_ms in writes:
            if isinstance(source, bytes):
                value = source
            else:
                assert entry_id is not None  # An index names a record of this very entry.
                value = key_value(flush.keyed[source - 1], flush.batch_id, entry_id)
            shard.keys[key] = value, now + window_ms
        return entry_id, shard.counter, hits

    def _look_up(
        self, shard: Shard, flush: Flush, now: int
    ) -> tuple[list[int | bytes], list[Append], list[tuple[bytes, int | bytes, int]]]:
        """Hits, records that are new, and keys to write with what they will point at."""
        seen: dict[bytes, int | bytes] = {}
        hits: list[int | bytes] = []
        fresh: list[Append] = []
        writes: list[tuple[bytes, int | bytes, int]] = []
        for index, append in enumerate(flush.keyed, 1):
            keys = self._keys(append)
            known = {key: _alive(shard, key, now) or seen.get(key) for key, _ in keys}
            hit = next((value for value in known.values() if value), None)
            if hit is None:
                hits.append(0)
                fresh.append(append)
                seen |= dict.fromkeys(known, index)
                writes += [(key, index, window) for key, window in keys]
                continue
            hits.append(hit)
            first = flush.keyed[hit - 1] if isinstance(hit, int) else None
            claim = claim_of(first) if first else hit[16:32] if isinstance(hit, bytes) else b""
            key, window = keys[0]
            if len(keys) == 2 and not known[key] and claim == claim_of(append):
                seen[key] = hit
                writes.append((key, hit, window))
        return hits, fresh, writes

    def _keys(self, append: Append) -> list[tuple[bytes, int]]:
        keys = []
        if append.key_hash is not None:
            keys.append((b"k" + append.key_hash, self._limits.key_window_seconds * 1000))
        if append.is_client_id:
            keys.append((b"o" + append.order_id, self._limits.client_id_window_seconds * 1000))
        return keys


def _alive(shard: Shard, key: bytes, now: int) -> bytes | None:
    value, expires = shard.keys.get(key, (None, 0))
    return value if expires > now else None


def _fields(batch_id: bytes, counter: int, records: int) -> dict[bytes, bytes]:
    return {
        b"v": b"%d" % WIRE_VERSION,
        b"b": batch_id,
        b"c": b"%d" % counter,
        b"n": b"%d" % records,
    }


def _size(fields: dict[bytes, bytes]) -> int:
    return sum(len(name) + len(value) for name, value in fields.items())
