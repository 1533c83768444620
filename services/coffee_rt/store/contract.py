"""The store: where orders are rows exactly once. PostgreSQL, or memory in simulations.

Write path: `OrderWriter` takes whole stream entries and commits orders, deltas, ledger and dead letters in
one transaction. Read path: `OrderReader`. Care: `StoreKeeper`. Views have a contract of their own
(`view_contract`). Every method raises Retryable when the database is away or refuses for reasons that pass;
nothing is half done then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from coffee_rt.domain.orders import Order
from coffee_rt.errors import Retryable

# The store must not import streams: entry ids travel as (milliseconds, sequence).
EntryKey = tuple[int, int]

FEATURE_LEVEL = 2
"""What this release can maintain. A view that names a higher level needs a newer worker. 2: filters."""


@dataclass(frozen=True, slots=True)
class DeadRecord:
    """A record that can't be stored, with its raw bytes and where it was."""

    index: int
    raw: bytes
    code: str
    detail: str
    tenant: int = 0
    order_id: bytes | None = None


@dataclass(frozen=True, slots=True)
class EntryWrite:
    """One stream entry, decoded and checked: what a commit stores all of or none of."""

    shard: int
    entry: EntryKey
    batch_id: bytes
    counter: int
    records: int
    orders: Sequence[Order]
    dead: Sequence[DeadRecord] = ()
    gap: tuple[int, int] | None = None


class PreparedBatch(Protocol):
    """Entries with their COPY payload and deltas encoded; made off the database, used once."""

    entries: Sequence[EntryWrite]


@dataclass(frozen=True, slots=True)
class EntryOutcome:
    """What a commit did with one entry."""

    batch_id: bytes
    seen_before: bool
    stored: int = 0
    duplicates: int = 0
    dead: int = 0


@dataclass(frozen=True, slots=True)
class Committed:
    xid: int
    outcomes: Sequence[EntryOutcome]
    touched_lanes: dict[str, list[int]]
    """Lanes of current views with deltas of these entries. All there are, where an entry or an order was stored
    before: which lanes that touched is not known any more, and it may not be folded yet."""
    dead_order_ids: Sequence[bytes] = ()
    duplicate_order_ids: Sequence[bytes] = ()
    timeline: str = ""
    """Of the primary that has it: its `xid` compares with floors of epochs that end so, and with no others."""


class BadData(Exception):
    """A value in this batch can't be stored, now or later: PostgreSQL refuses it (class 22, 23502, 54000, a
    CHECK), it can't be encoded, or its day was retired. Bisect to find it."""


class ViewsTooNew(Retryable):
    """A view needs a newer release of the worker. Nothing was stored; be not ready, leave entries pending."""


class OrderWriter(Protocol):
    """Exactly-once writes. Shared by the tasks of one worker."""

    async def refresh_catalogue(self) -> None:
        """Load the live views; done by commit itself when the generation changed."""

    def prepare(self, entries: Sequence[EntryWrite]) -> PreparedBatch:
        """Encode a batch (CPU only): may run while another batch commits."""

    async def commit(self, batch: PreparedBatch, *, is_claimed: bool = False) -> Committed:
        """One transaction. Raises BadData (nothing was stored; bisect) or Retryable (unknown or nothing;
        the ledger makes a repetition harmless). `is_claimed`: entries taken over from another worker,
        stored under a short lock wait; a blocking worker older than the limit is terminated."""

    async def store_single(self, entry: EntryWrite) -> Committed:
        """Last resort for an entry that fails alone: those of its orders that are bad data become dead
        letters, the others are stored. Found by bisecting with transactions that are rolled back."""


@dataclass(frozen=True, slots=True)
class StoredOrder:
    order: Order
    batch_id: bytes


@dataclass(frozen=True, slots=True)
class DeadLetter:
    id: int
    tenant: int
    shard: int
    entry: EntryKey
    batch_id: bytes
    index: int
    order_id: bytes | None
    code: str
    detail: str
    raw: bytes
    created_at_us: int
    redrive: str | None = None
    """The newest redrive that tried it (see redrives)."""
    outcome: str | None = None
    redriven_at_us: int | None = None
    """Since then the record is accounted for elsewhere, and lists show the letter no more."""
    amended: bytes | None = None
    """A mended record, which a redrive sends in place of `raw`."""
    amended_at_us: int | None = None
    amended_by: str | None = None

    @property
    def record(self) -> bytes:
        """The bytes a redrive sends."""
        return self.raw if self.amended is None else self.amended


RECENT_ROWS_MAX = 100_000
"""Rows a search for one store's recent orders reads at most; an order of a rarely seen store may be older."""


class OrderReader(Protocol):
    async def find_order(self, tenant: int, order_id: bytes) -> StoredOrder | None:
        """From the primary; follows aliases."""

    async def find_dead_letter(self, tenant: int, order_id: bytes) -> DeadLetter | None: ...

    async def recent_orders(
        self, tenant: int | None, limit: int, before: bytes | None = None, store: str | None = None
    ) -> list[StoredOrder]:
        """Newest ids first, below `before`. With `store` only the newest RECENT_ROWS_MAX rows are searched."""

    async def dead_letters(
        self, tenant: int | None, limit: int, before: int | None
    ) -> list[DeadLetter]: ...

    async def is_entry_stored(self, shard: int, batch_id: bytes) -> bool:
        """Whether the ledger has the entry, or has been compacted past its time."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    key_id: str
    tenant: int
    name: str
    secret_hash: bytes = field(repr=False)
    scopes: frozenset[str]
    requests_per_minute: int | None
    is_revoked: bool


class ApiKeyStore(Protocol):
    async def api_keys(self) -> list[ApiKey]: ...
    async def add_api_key(self, key: ApiKey) -> None: ...
    async def revoke_api_key(self, key_id: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class PartitionState:
    name: str
    start_ms: int
    end_ms: int


KEEP_DAYS_MIN = 3
"""Orders are kept longer than a client's id may be old, plus the longest backlog."""


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """What becomes of old partitions, for every process that looks after them. Kept in the database, so that
    a worker's setting can't drop what was to be archived."""

    keep_days: int
    is_dropped: bool
    """False: a detached table is left to whoever archives it."""


def accounted_records(sums: dict[str, int]) -> int:
    """Records of a shard that the ledger accounts for, from its sums.

    A stranger's entry has a dead letter but no accepted record, hence at most `records`. Records of a gap
    that were stored before they were lost are in the ledger already; the others are `lost`.
    """
    done = sums["stored"] + sums["duplicates"] + sums["dead"]
    return min(done, sums["records"]) + sums["lost"]


class StoreKeeper(Protocol):
    """Partitions, retention, ledger compaction, heartbeats. Safe from any process, at any time."""

    async def ensure_partitions(self, now_ms: int, days_ahead: int) -> list[str]: ...
    async def partitions(self) -> list[PartitionState]: ...
    async def apply_retention(self, now_ms: int, keep_days: int) -> list[str]:
        """Detach, then drop in a later call, never in one step; what was done, in words. A policy of the
        installation goes before `keep_days`. Raises Rejected for fewer days than KEEP_DAYS_MIN."""

    async def detached_partitions(self) -> list[PartitionState]:
        """Tables of days that were detached and not dropped, oldest first."""

    async def set_retention_policy(self, policy: RetentionPolicy | None) -> None:
        """Give all processes one policy; None: each has its own again. Raises Rejected as above."""

    async def compact_ledger(self, shard: int, below: EntryKey) -> int:
        """Forget rows of entries below `below`, of which only sums stay; how many. The caller has put the margin
        (an hour below the stream's first entry: a re-created group replays from there)."""

    async def ledger_sums(self, shard: int, below: EntryKey | None) -> dict[str, int]:
        """entries, records, stored, duplicates, dead, gap_records, lost of a shard below an entry (None: of
        all), compacted ones included. A lost record is one inside a gap that was not stored before it, so:
        counter = stored + duplicates + dead + lost."""

    async def uncounted_records(self, shard: int, below: EntryKey, counter: int) -> int:
        """How many of the numbers up to `counter` neither an entry below `below` nor a gap has: exact where the
        sums are not, because numbers were given twice or a stranger's entry claims records. Below 0: so many
        above `counter` are stored (the log counts on from less, and no gap said so). Reads an hour of rows."""

    async def heartbeat(self, process: str, instance: str, feature_level: int) -> None: ...

    async def timeline(self) -> str:
        """The primary's system identifier and timeline: another one after a promotion or a restore, which may
        lack commits that were confirmed before. Raises Retryable where a standby answers."""

    async def ensure_shards(self, shards: int) -> None:
        """Store the number of shards at install; raises Rejected when another number is stored."""
