"""What the store knows of views: which exist, folds, repairs, reads. PostgreSQL, or memory in simulations.

Fold path: `ViewFolder` moves deltas into view rows, a lane at a time. Read path: `ViewReader`. Care:
`ViewCatalogueStore`, `ViewRepairer`. As everywhere in the store, every method raises Retryable when the database
is away or refuses for reasons that pass; nothing is half done then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from coffee_rt.domain.views import Bucket, Group, ViewDefinition

VIEWS_MAX = 64
"""Every view costs each commit a COPY and each fold a statement."""

FILE_OWNER = "file"
"""Owner of the views that the aggregators' definitions make."""

NO_OWNER = "kept"
"""A view that outlived its object: maintained, and taken over by whoever defines its name next."""


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
        """Put a filled replacement in the place of the view it replaces; its epoch is another. All that was
        committed until then is folded into it: what was visible stays so. Raises Retryable where folds are too far behind
        for that."""

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

    async def mark_backfilled(self, view: str, to: int | None, *, epoch: str | None = None) -> None:
        """How far a view is filled; None: wholly. With `epoch`, raises Retryable where the view's is another
        (or it is gone): a promoted PostgreSQL may lack the chunks this speaks of."""

    async def expire_rows(self, view: str) -> int:
        """Delete rows of buckets past the view's retention; how many."""


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


@dataclass(frozen=True, slots=True)
class SnapshotScope:
    """What of a view's rows is read: a tenant's, with these texts in these dimensions, so many at most."""

    tenant: int
    filters: tuple[tuple[str, tuple[str, ...]], ...]
    rows_max: int


class ViewReader(Protocol):
    async def query(self, query: ViewQuery) -> ViewAnswer: ...

    async def snapshot(
        self, view: str, start: int, scope: SnapshotScope | None = None
    ) -> ViewSnapshot:
        """All rows from a bucket on, or those of a scope."""

    async def rows_above(self, view: str, lane: int, version: int, start: int) -> ViewSnapshot:
        """Rows of one lane changed after a version: what repairs a gap."""

    async def iterate(self, query: ViewQuery) -> AsyncIterator[dict[str, Any]]: ...
