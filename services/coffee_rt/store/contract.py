"""The store: where orders are rows exactly once, and views are kept. PostgreSQL, or memory in simulations.

Write path: `OrderWriter` takes whole stream entries and commits orders, deltas, ledger and dead letters in
one transaction. Fold path: `ViewFolder` moves deltas into view rows, a lane at a time. Read path:
`OrderReader`, `ViewReader`. Care: `StoreKeeper`. Every method raises Retryable when the database is away
or refuses for reasons that pass; nothing is half done then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from coffee_rt.domain.orders import Order
from coffee_rt.domain.views import Bucket, Group, ViewDefinition
from coffee_rt.errors import Retryable

# The store must not import streams: entry ids travel as (milliseconds, sequence).
EntryKey = tuple[int, int]

FEATURE_LEVEL = 2
"""What this release can maintain. A view that names a higher level needs a newer worker. 2: filters."""

VIEWS_MAX = 64
"""Every view costs each commit a COPY and each fold a statement."""

FILE_OWNER = "file"
"""Owner of the views that the aggregators' definitions make."""
NO_OWNER = "kept"
"""A view that outlived its object: maintained, and taken over by whoever defines its name next."""


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
    dead_order_ids: Sequence[bytes] = ()
    duplicate_order_ids: Sequence[bytes] = ()


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
class LaneKey:
    """A lane by the view's internal name: a view and its replacement are folded side by side."""

    view: str
    lane: int


@dataclass(frozen=True, slots=True)
class LaneWork:
    """A lane and how long its oldest unfolded delta has waited."""

    key: LaneKey
    waiting_rows: int
    """Counted up to a limit of the store."""
    waiting_seconds: float
    """Age of the newest order in the oldest delta: an upper bound while a backlog is stored."""
    version: int = 0


@dataclass(frozen=True, slots=True)
class Fold:
    """What one fold did: the changed rows' absolute values and the lane's new version."""

    view: str
    epoch: str
    lane: int
    version: int
    previous: int
    floor: int
    folded_deltas: int
    rows: Sequence[dict[str, Any]]
    newest_at_ms: int
    is_drained: bool
    is_reload: bool = False
    """More rows changed than asked for: `rows` is empty."""
    expired_deltas: int = 0
    """Deltas of buckets past the view's retention, dropped."""


@dataclass(frozen=True, slots=True)
class LaneVersion:
    view: str
    lane: int
    version: int
    floor: int


@dataclass(frozen=True, slots=True)
class ViewState:
    """A view in the catalogue."""

    definition: ViewDefinition
    internal: str
    epoch: str
    is_live: bool
    """False while its history is backfilled (it is maintained from its creation on)."""
    backfilled_to: int | None
    """Unix seconds: buckets before it are filled; None when all are."""
    is_current: bool = True
    """False for a replacement that readers don't see yet."""
    owner: str = FILE_OWNER
    """FILE_OWNER, NO_OWNER, or what else defines it."""


class ViewCatalogueStore(Protocol):
    """Which views exist. Changes take the catalogue lock exclusively."""

    async def views(self) -> list[ViewState]: ...

    async def ensure_views(
        self,
        definitions: Sequence[ViewDefinition],
        owner: str = FILE_OWNER,
        *,
        is_adopting: bool = False,
    ) -> list[str]:
        """Create what is missing, and a replacement for what changed (another retention alone changes
        the view in its place); the internal names of the views that still need a backfill.

        A name that another owner holds is left alone: see ViewState.owner. `is_adopting` takes it over
        from FILE_OWNER. Raises Retryable while a process runs that is too old for a definition."""

    async def make_current(self, internal: str) -> None:
        """Put a filled replacement in the place of the view it replaces; its epoch is another."""

    async def drop_view(self, name: str, owner: str | None = None) -> None:
        """Drop a view and its replacement. Raises Rejected when there is none of that name, or with
        `owner` none of that owner."""

    async def release_view(self, name: str, owner: str) -> bool:
        """Leave an owner's view to NO_OWNER; whether there was one."""


class ViewFolder(Protocol):
    """Folding. Any number of processes may fold; a lane's row lock keeps two off one lane.

    `Fold.view` and LaneVersion.view are public names; replacements are folded but not told of."""

    async def announce(self, instance: str, alive_seconds: float) -> list[str]:
        """Say that this instance folds; all that said so within the last `alive_seconds`, sorted."""

    async def withdraw(self, instance: str) -> None:
        """Say that it does so no longer."""

    async def fold_lane(self, key: LaneKey, deltas_max: int, rows_max: int) -> Fold | None:
        """None when another holds the lane or there is nothing to fold. With more than `rows_max` changed
        rows the fold's `rows` is empty (the publication says reload). Raises BadData when a delta can't
        be applied: see quarantine."""

    async def fold_lanes(
        self, view: str, lanes: Sequence[int], deltas_max: int, rows_max: int
    ) -> list[Fold]:
        """Several lanes of a view (internal name) in one transaction; limits are of each lane. Lanes that
        another holds, or where nothing waits, are left out. Raises BadData when any can't be folded."""

    async def waiting_lanes(self) -> list[LaneWork]: ...

    async def lane_versions(self) -> tuple[dict[str, str], list[LaneVersion]]:
        """(view -> epoch, all lanes of current views): the beacon. The floor of a lane without unfolded
        deltas is as high as the statement can see, so that waiting for an idle lane ends."""

    async def quarantine(self, key: LaneKey, deltas_max: int) -> int:
        """After a fold failed for bad data: bisect by group into fold dead letters; how many were put away."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A span of buckets rebuilt or audited in one statement: [start, end) in Unix seconds."""

    view: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class AuditDifference:
    view: str
    group: Group
    stored: dict[str, int] | None
    recomputed: dict[str, int] | None


class ViewRepairer(Protocol):
    """Recomputation from the orders, exact while orders flow. `view` is an internal name."""

    async def recomputable_from(self, view: str) -> int:
        """Unix seconds: older buckets are frozen, because retention took orders of them; 0 for none."""

    async def plan_chunks(self, view: str, start: int | None, end: int | None) -> list[Chunk]:
        """Chunks with orders or rows that may be recomputed (none that is frozen), oldest first."""

    async def rebuild_chunk(self, chunk: Chunk) -> int:
        """Replace the chunk's rows by a recomputation; how many rows changed."""

    async def audit_chunk(self, chunk: Chunk) -> list[AuditDifference]: ...

    async def mark_backfilled(self, view: str, to: int | None) -> None: ...

    async def expire_rows(self, view: str) -> int:
        """Delete rows of buckets past the view's retention; how many."""


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
    """Since then the record is accounted for elsewhere, and readers are shown the letter no more."""


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
class ViewQuery:
    """A read of a view. Times are Unix seconds; `group_by` None keeps all dimensions."""

    view: str
    tenant: int
    start: int
    end: int
    filters: dict[str, tuple[str, ...]] = field(default_factory=dict)
    group_by: tuple[str, ...] | None = None
    bucket: Bucket | None = None
    """Coarser than the view's own; None keeps it."""
    is_total: bool = False
    """One bucket for the whole span."""
    order_by: str | None = None
    """A measure, largest first; None: by bucket and dimensions."""
    limit: int = 10_000
    after: tuple[Any, ...] | None = None
    """Keyset: (bucket, dimensions) of the last row of the page before. Not with order_by."""


@dataclass(frozen=True, slots=True)
class ViewAnswer:
    rows: Sequence[dict[str, Any]]
    """bucket (Unix seconds; absent for a total), dimensions, measures (integers; money in minor units)."""
    epoch: str
    version: int
    """Sum of the lane versions: rises with every fold."""
    unfolded: int
    """Deltas read beside the folded rows."""
    is_tail_skipped: bool
    """Too many unfolded deltas: folded rows only."""
    newest_at_ms: int


@dataclass(frozen=True, slots=True)
class ViewSnapshot:
    """Folded rows and the lane versions they are at, of one statement: what a live session starts from."""

    view: str
    epoch: str
    versions: Sequence[int]
    rows: Sequence[dict[str, Any]]
    """As in ViewChange: tenant, bucket, dimensions, measures, version, newest_at_ms, lane."""


class ViewReader(Protocol):
    async def query(self, query: ViewQuery) -> ViewAnswer: ...

    async def snapshot(self, view: str, start: int) -> ViewSnapshot: ...

    async def rows_above(self, view: str, lane: int, version: int, start: int) -> ViewSnapshot:
        """Rows of one lane changed after a version: what repairs a gap."""

    async def iterate(self, query: ViewQuery) -> AsyncIterator[dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class ApiKey:
    key_id: str
    tenant: int
    name: str
    secret_hash: bytes
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

    async def heartbeat(self, process: str, instance: str, feature_level: int) -> None: ...

    async def timeline(self) -> str:
        """The primary's system identifier and timeline: another one after a promotion or a restore, which may
        lack commits that were confirmed before. Raises Retryable where a standby answers."""

    async def ensure_shards(self, shards: int) -> None:
        """Store the number of shards at install; raises Rejected when another number is stored."""
