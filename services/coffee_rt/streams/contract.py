"""The order log: what order_api appends to and consumer groups read from.

The log is `shards` independent streams. An append is atomic with its idempotency key, answers only when
the entry is as durable as the server is configured for, and is grouped with its neighbours (one entry
carries many records). A group's entry stays pending until acknowledged; nothing is trimmed before every
group has acknowledged it. `redis.py` and `memory.py` implement this; one test suite runs on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

import msgspec

from coffee_rt.domain.wire import INTAKE_SHARD
from coffee_rt.errors import Rejected

STORE_GROUP = "workers"
"""The consumer group whose acknowledgement means stored in PostgreSQL."""


class EntryId(NamedTuple):
    """Id of a stream entry: Redis milliseconds and a sequence within them. Orders as Redis orders."""

    ms: int
    seq: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"

    @classmethod
    def parse(cls, text: str | bytes) -> EntryId:
        ms, _, seq = (text.decode() if isinstance(text, bytes) else text).partition("-")
        return cls(int(ms), int(seq or 0))


ENTRY_ID_ZERO = EntryId(0, 0)


class Position(NamedTuple):
    """Where an order was logged; given to clients as text. The batch id outlives the entry's trimming. Shard
    INTAKE_SHARD: in the database's intake instead, at the batch's own time."""

    shard: int
    entry_id: EntryId
    batch_id: bytes

    def __str__(self) -> str:
        return f"{self.shard}.{self.entry_id}.{self.batch_id.hex()}"

    @classmethod
    def parse(cls, text: str, place: str = "/position") -> Position:
        """Raises Rejected when the text is no position."""
        try:
            shard, entry_id, batch = text.split(".")
            position = cls(int(shard), EntryId.parse(entry_id), bytes.fromhex(batch))
        except ValueError:
            raise Rejected(
                "bad-position", "is not a position this service gave", place, 400
            ) from None
        if len(position.batch_id) != 16 or not INTAKE_SHARD <= position.shard < 1024:
            raise Rejected("bad-position", "is not a position this service gave", place, 400)
        return position


class Append(msgspec.Struct, frozen=True, gc=False):
    """One record on its way into the log. A struct, because one is made for each order on the hot path."""

    order_id: bytes
    record: bytes
    """wire.encode_record of the order."""
    body_hash: bytes
    key_hash: bytes | None = None
    """wire.hash_key of the Idempotency-Key; None when there is none."""
    is_client_id: bool = False
    """The client brought order_id: the log remembers it, and refuses another body under it."""
    tenant: int = 0
    """Part of what a client's id stands for: two tenants can't share one."""
    trace: str = ""
    """Trace context (traceparent); the entry carries that of its first record that has one."""


class Outcome(Enum):
    NEW = "new"
    DUPLICATE = "duplicate"
    """Same key (or client id) and same body: nothing was appended; id and position are the first one's."""
    CONFLICT = "conflict"
    """Same key (or client id), other body: nothing was appended."""


class Appended(msgspec.Struct, frozen=True, gc=False):
    outcome: Outcome
    order_id: bytes
    position: Position
    replicas: int = 0
    """How many replicas are known to have it, as far as the producer waits for them; 0: none was asked."""


class Logged(NamedTuple):
    """What is answered to plain records: all of them are new."""

    position: Position
    replicas: int = 0
    """As in Appended."""


class OrderProducer(Protocol):
    """Appends records. One per process, shared by all tasks; owned by the wiring.

    Cancelling a waiting append abandons only the wait: the record may still be appended.
    """

    @property
    def shards(self) -> int: ...

    def choose_shard(self) -> int:
        """A healthy shard for a record without key or client id (spread evenly)."""

    def now_ms(self) -> int:
        """Redis's clock, as learned from replies; ids are minted on it."""

    @property
    def clock_offset_seconds(self) -> float:
        """Redis's clock minus ours."""

    async def append(self, shard: int, append: Append) -> Appended:
        """Append one record; joined with its neighbours in one entry (group commit).

        Raises NotExecuted when it certainly did not happen, Overload when the log is full or the queue
        before it is, Retryable when the outcome is unknown (retry with the same key).
        """

    async def append_many(self, shard: int, appends: list[Append]) -> list[Appended]:
        """As `append`, for records of one request; they share entries as far as the limits allow."""

    async def append_plain(
        self, shard: int, records: Sequence[bytes], trace: str = ""
    ) -> list[Logged]:
        """As `append_many`, for records with neither key nor client id: all are new, so where they are is
        the whole answer."""

    async def close(self) -> None:
        """Waits for flushes under way, refuses new ones."""


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """An entry handed to a consumer. A struct, because one is made for each entry on the hot path. `fields` that no longer parse leave `data` empty and `fault` set."""

    shard: int
    entry_id: EntryId
    version: int
    batch_id: bytes
    """16 bytes; all zero when the entry has none (written by a stranger): see `fault`."""
    counter: int
    """Cumulative accepted records of the shard, this entry's included."""
    records: int
    data: bytes
    attempts: int
    reader_epoch: int
    """Number of the connection that read it; acknowledgements of an older one are dropped."""
    trace: str = ""
    gap: tuple[int, int] | None = None
    """A gap entry: records (from, to] were acknowledged and then lost by a failover."""
    fault: str | None = None
    raw: dict[bytes, bytes] = msgspec.field(default_factory=dict)
    """The fields as stored, kept only when `fault` is set."""


class GroupReader(Protocol):
    """One consumer of one group over all shards. Owned by one process; one task per shard may read.

    Two reads of the same shard at once are a bug. Cancelling a read drops its connection.
    """

    @property
    def shards(self) -> int: ...

    async def read(self, shard: int, entries_max: int, wait_seconds: float) -> list[Delivery]:
        """Entries never delivered before, oldest first; empty after `wait_seconds`. Creates a lost group
        again from the first entry. Raises Retryable."""

    async def read_own_pending(
        self, shard: int, entries_max: int, after: EntryId
    ) -> list[Delivery]:
        """This consumer's own unacknowledged entries after an id: what a restart picks up first."""

    async def claim(self, shard: int, idle_seconds_min: float, entries_max: int) -> list[Delivery]:
        """Entries left pending for so long by anyone (also by ourselves: their acknowledgement was dropped
        after a reconnect), now ours. Entries deleted while pending raise the `entries vanished` metric."""

    async def acknowledge(self, shard: int, deliveries: list[Delivery], timeline: str = "") -> int:
        """How many were acknowledged. Those read on an earlier connection are left pending on purpose; so are
        all, where the log was told of another timeline of the store than the one they were committed to."""

    async def leave(self) -> None:
        """Close; the consumer is removed only where nothing is pending for it."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What one group has not acknowledged on one shard."""

    shard: int
    records: int
    """Difference of the shard's counter and the oldest unacknowledged entry's."""
    oldest_seconds: float
    """Age of the oldest unacknowledged entry; 0 when there is none."""
    pending_entries: int
    length_entries: int
    memory_bytes: int
    undelivered_records: int = 0
    """Of `records`, those no consumer has been handed: what admission looks at, because one stuck entry
    must not count everything acknowledged after it."""
    oldest_entry: EntryId | None = None
    """Lowest unacknowledged entry of this group; None when there is none."""
    counter: int = 0
    """Cumulative accepted records of the shard, gaps included."""
    settled_counter: int = 0
    """The counter just below `oldest_entry` (equal to `counter` when there is none): one side of the
    conservation sum."""


@dataclass(frozen=True, slots=True)
class Horizon:
    """How far a shard has been drained by every group."""

    first_entry: EntryId | None
    """First entry still in the stream; None when it is empty."""
    lowest_unacknowledged: EntryId | None
    """Of all groups; None when everything is acknowledged."""
    counter: int
    last_entry: EntryId


class LogKeeper(Protocol):
    """Care of the log: trim, backlog, groups, look-ups. Safe to use from any process."""

    @property
    def shards(self) -> int: ...

    async def ensure_group(self, group: str) -> None:
        """Register a consumer group on every shard from its first entry; idempotent."""

    async def backlog(self, group: str, *, is_partial: bool = False) -> list[Backlog]:
        """One a shard. `is_partial`: without the shards whose server is away, as long as any answers."""

    async def horizon(self, shard: int) -> Horizon: ...

    async def trim(self, shard: int, keep_seconds: float) -> int:
        """Remove entries acknowledged by every group at least `keep_seconds` ago; how many were removed.
        One atomic call: an entry delivered meanwhile is never removed."""

    async def follow_timeline(self, group: str, timeline: str, keep_seconds: float) -> list[int]:
        """Tell the log which timeline of its store a group commits to. Shards where that is another than last
        told are set back, and returned: what was acknowledged since `keep_seconds` before the old one was
        last told is delivered again. A shard that was never told only remembers."""

    async def find_order(self, order_id: bytes) -> tuple[Position, bytes] | None:
        """Position and record bytes of an order that is still in the log; no bytes when a newer release wrote
        them. Whoever asks has no say in the time: a machine whose clock is behind would deny what was just
        accepted."""

    async def foreign_groups(self) -> dict[str, list[int]]:
        """Groups that nobody registered -> the shards they are on. They keep entries from being trimmed."""

    async def remove_idle_consumers(self, group: str, idle_seconds_min: float) -> int:
        """Remove consumers of dead processes; those with pending entries stay until these are claimed."""

    async def is_settled(self, group: str, position: Position) -> bool:
        """Whether the group has been delivered the entry and acknowledged it. False for one the log lost:
        what has its id now, or came after it, says nothing of it."""

    async def memory(self) -> tuple[int, int]:
        """Bytes used and the maximum (0: no maximum), of the fullest server that answers."""

    async def unsafe_reasons(self) -> list[str]:
        """Why the server may lose what it answered (server_safety.REASONS); empty: as far as it says, it
        can't."""
