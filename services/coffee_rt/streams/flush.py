"""A flush: the records that go to one shard in one call, and what the log answers.

Pure: planning, the value kept under a key, and turning the log's answer into one `Appended` a record.
The log itself (Redis, or memory in simulations) executes a flush; see `FlushTarget`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple, Protocol

from coffee_rt.domain.wire import RECORDS_MAX
from coffee_rt.errors import Rejected
from coffee_rt.streams.contract import Append, Appended, EntryId, Logged, Outcome, Position


@dataclass(frozen=True, slots=True)
class ProducerLimits:
    """Bounds of a producer. Each bound is for one shard of one process."""

    flush_records_max: int = 5_000
    """Records in one entry. Larger: longer stalls of Redis; smaller: more calls for large batches."""
    keyed_records_max: int = 200
    """Records with a key in one call: each costs Redis about 6 us, and it serves nobody meanwhile."""
    flush_bytes_max: int = 1 << 20
    """Record bytes in one entry. A worker holds several entries at once in memory."""
    queue_records_max: int = 50_000
    """Records waiting; above it, Overload. At 15 000/s this is three seconds of one shard."""
    queue_bytes_max: int = 32 << 20
    """Bytes waiting; above it, Overload. Bounds the memory of a producer whose Redis is slow."""
    wait_seconds_max: float = 3.0
    """Expected wait for a shard's flushes above which it takes no more, where somebody looks (`look`)."""
    reply_seconds_max: float = 5.0
    """Longest wait for one flush; then its outcome is unknown. Above the worst fsync of the disk."""
    resend_seconds_max: float = 2.0
    """How long a flush refused as "not executed" (a cluster slot on the move) is sent again."""
    reconnect_seconds_max: float = 2.0
    """Longest pause between attempts to reach the server again."""
    key_window_seconds: int = 24 * 3600
    """How long an Idempotency-Key is remembered; 88 bytes a key in Redis for so long."""
    client_id_window_seconds: int = 24 * 3600 + 600
    """How long a client's order id is remembered: as long as one is taken, and a little more."""
    replicas_min: int = 0
    """Replicas that must have a flush before it counts as logged (WAIT)."""
    is_disk_awaited: bool = False
    """Have it on their disks, and the server on its own (WAITAOF); else in memory. Waits for their fsync,
    causes none."""
    replicas_wait_seconds_max: float = 1.0
    """Longest wait for them; then the outcome is unknown."""

    def __post_init__(self) -> None:
        # Two keys a record at most, and Lua's unpack fails above about 8 000 values.
        if not 0 < self.keyed_records_max <= 3_000:
            raise Rejected("bad-limit", "must be 1 to 3000", "/keyed_records_max")
        if not 0 < self.flush_records_max <= RECORDS_MAX:
            raise Rejected("bad-limit", f"must be 1 to {RECORDS_MAX}", "/flush_records_max")


@dataclass(slots=True)
class Item:
    """What one caller appends in one piece: stays together, answered at once."""

    appends: Sequence[Append]
    count: int
    records_bytes: int
    keyed: int


@dataclass(slots=True)
class PlainItem:
    """As Item, of records that are new in any case: one position answers all of them."""

    records: Sequence[bytes]
    count: int
    records_bytes: int
    trace: str = ""
    keyed: int = 0


@dataclass(frozen=True, slots=True)
class Flush:
    """One call to one shard."""

    shard: int
    batch_id: bytes
    highest: int
    """Highest counter this producer has been answered: below it, the log has lost entries."""
    items: Sequence[Item | PlainItem]
    unkeyed: Sequence[bytes]
    keyed: Sequence[Append]
    trace: str


class FlushReply(NamedTuple):
    """What the log did. `hits` are for the keyed records: 0 appended, i the i-th keyed record of this
    flush has the same key, bytes the value found under the key."""

    entry_id: EntryId | None
    counter: int
    hits: Sequence[int | bytes]
    sent_at: float
    received_at: float
    replicas: int = 0
    """How many replicas have it; 0 where none are waited for."""


class FlushTarget(Protocol):
    """Executes flushes, one at a time a shard. Owned by one producer."""

    @property
    def shards(self) -> int: ...

    async def start(self) -> tuple[int, float, float]:
        """Connect and check the installation; the log's clock (ms) and our seconds around asking it."""

    async def execute(self, flush: Flush) -> FlushReply:
        """Raises NotExecuted, Overload or Retryable as OrderProducer.append does."""

    def is_available(self, shard: int) -> bool:
        """Whether a flush sent now would be tried (False while a broken connection is left alone)."""

    async def close(self) -> None: ...


def is_keyed(append: Append) -> bool:
    return append.key_hash is not None or append.is_client_id


def claim_of(append: Append) -> bytes:
    """16 bytes that tell a repetition from another order under the same key or id."""
    if append.is_client_id and append.tenant:
        # Client ids are one name space for all tenants: the same body of another tenant is another order.
        return blake2b(
            append.body_hash, digest_size=16, key=append.tenant.to_bytes(4, "big")
        ).digest()
    return append.body_hash


def key_value(append: Append, batch_id: bytes, entry_id: EntryId) -> bytes:
    """What is kept under a key: order id, claim, batch id, entry id."""
    return append.order_id + claim_of(append) + batch_id + str(entry_id).encode()


def position_of_value(shard: int, value: bytes) -> Position:
    return Position(shard, EntryId.parse(value[48:]), value[32:48])


def plan_flush(
    shard: int,
    items: Sequence[Item | PlainItem],
    batch_id: bytes,
    highest: int,
    keyed_total: int,
) -> Flush:
    """Sort the records into those joined blindly and those the log looks up first."""
    unkeyed: list[bytes] = []
    keyed: list[Append] = []
    trace = ""
    for item in items:
        if isinstance(item, PlainItem):
            unkeyed += item.records
            trace = trace or item.trace
            continue
        appends = item.appends
        trace = trace or appends[0].trace
        if not item.keyed:
            unkeyed += [append.record for append in appends]
            continue
        for append in appends:
            if keyed_total and is_keyed(append):
                keyed.append(append)
            else:
                unkeyed.append(append.record)
    return Flush(shard, batch_id, highest, items, unkeyed, keyed, trace)


def resolve_flush(flush: Flush, reply: FlushReply) -> Iterator[list[Appended] | Logged]:
    """The answer of each item of the flush, in order."""
    position = Position(flush.shard, reply.entry_id or EntryId(0, 0), flush.batch_id)
    hits, replicas = iter(reply.hits), reply.replicas
    for item in flush.items:
        if isinstance(item, PlainItem):
            yield Logged(position, replicas)
            continue
        if not item.keyed:
            yield [
                Appended(Outcome.NEW, append.order_id, position, replicas)
                for append in item.appends
            ]
            continue
        yield [
            _resolve_keyed(flush, append, next(hits), position, replicas)
            if is_keyed(append)
            else Appended(Outcome.NEW, append.order_id, position, replicas)
            for append in item.appends
        ]


def _resolve_keyed(
    flush: Flush, append: Append, hit: int | bytes, position: Position, replicas: int
) -> Appended:
    if hit == 0:
        return Appended(Outcome.NEW, append.order_id, position, replicas)
    if isinstance(hit, int):
        first = flush.keyed[hit - 1]
        order_id, claim = first.order_id, claim_of(first)
    else:
        order_id, claim = hit[:16], hit[16:32]
        position = position_of_value(flush.shard, hit)
    outcome = Outcome.DUPLICATE if claim == claim_of(append) else Outcome.CONFLICT
    # What replicas have of this connection includes all that was written before, hence the first one.
    return Appended(outcome, order_id, position, replicas)


def split_items(appends: Sequence[Append], limits: ProducerLimits) -> list[Item]:
    """One request's records as items that each fit a flush."""
    items: list[Item] = []
    start = size = keyed = 0
    for index, append in enumerate(appends):
        record_bytes = len(append.record)
        is_full = (
            index - start >= limits.flush_records_max
            or size + record_bytes > limits.flush_bytes_max
            or keyed >= limits.keyed_records_max
        )
        if is_full and index > start:
            items.append(Item(appends[start:index], index - start, size, keyed))
            start, size, keyed = index, 0, 0
        size += record_bytes
        if append.key_hash is not None or append.is_client_id:
            keyed += 1
    items.append(Item(appends[start:], len(appends) - start, size, keyed))
    return items


def split_records(records: Sequence[bytes], trace: str, limits: ProducerLimits) -> list[PlainItem]:
    """As split_items, of plain records; by halves, because hardly any request has to be split."""
    count, size = len(records), sum(map(len, records))
    if (count <= limits.flush_records_max and size <= limits.flush_bytes_max) or count == 1:
        return [PlainItem(records, count, size, trace)]
    half = count // 2
    return [
        *split_records(records[:half], trace, limits),
        *split_records(records[half:], trace, limits),
    ]
