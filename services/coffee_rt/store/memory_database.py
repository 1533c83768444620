"""The tables of the store in memory: what memory.py writes and memory_views.py folds, in one place.

One event loop owns it and every method that changes it does so without awaiting in between, which is what
makes a "transaction" here atomic. Simulations inject faults through `fault_hook`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from coffee_rt.domain.views import Delta, Group
from coffee_rt.store.contract import (
    ApiKey,
    DeadLetter,
    EntryKey,
    PartitionState,
    RetentionPolicy,
    StoredOrder,
)
from coffee_rt.store.intake_contract import KeyHolder, WaitingBatch
from coffee_rt.store.view_contract import ViewState
from coffee_rt.store.view_tables import Catalogue


@dataclass(slots=True)
class LedgerRow:
    """A stored entry and what became of its records."""

    shard: int
    entry: EntryKey
    counter: int
    records: int
    stored: int
    duplicates: int
    dead: int
    redeliveries: int = 0


@dataclass(slots=True)
class GapRow:
    """Records (counter_from, counter_to] of a shard that the log lost; `found` had been stored before."""

    shard: int
    entry: EntryKey
    counter_from: int
    counter_to: int
    found: int = 0


@dataclass(slots=True)
class StoredDelta:
    """A delta not yet folded, with the transaction that wrote it."""

    xid: int
    delta: Delta


@dataclass(slots=True)
class MemoryLane:
    """A lane of a view: its version, and the transaction below which every delta is folded."""

    version: int = 0
    floor: int = 0
    deltas: list[StoredDelta] = field(default_factory=list)


@dataclass(slots=True)
class MemoryRow:
    """A folded row of a view."""

    measures: list[int]
    newest_at_us: int
    lane: int
    version: int


@dataclass(slots=True)
class MemoryView:
    """A view's tables, by its internal name."""

    state: ViewState
    lanes: list[MemoryLane]
    rows: dict[Group, MemoryRow] = field(default_factory=dict)


@dataclass(slots=True)
class MemoryDatabase:
    """Everything the store keeps. `views` belongs to memory_views.py, the rest to memory.py."""

    orders: dict[bytes, StoredOrder] = field(default_factory=dict)
    ledger: dict[bytes, LedgerRow] = field(default_factory=dict)
    sums: dict[int, dict[str, int]] = field(default_factory=dict)
    """Compacted ledger rows by shard."""
    numbers: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """(first, last] of what they counted."""
    gaps: dict[bytes, GapRow] = field(default_factory=dict)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    aliases: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)
    """Id -> (tenant, id of the order it stands for)."""
    intake: dict[bytes, WaitingBatch] = field(default_factory=dict)
    """What waits, by batch id; belongs to memory_intake.py, and commits take from it."""
    intake_accepted: int = 0
    order_keys: dict[bytes, KeyHolder] = field(default_factory=dict)
    """Idempotency-Keys of what is stored or waits in the intake."""
    keys_since: float | None = 0.0
    """Since when workers note them, in Unix seconds; None: they don't."""
    keys_swept_at: float = float("-inf")
    partitions: dict[int, PartitionState] = field(default_factory=dict)
    detached: dict[int, PartitionState] = field(default_factory=dict)
    retired_to_ms: int = 0
    retention_policy: RetentionPolicy | None = None
    api_keys: dict[str, ApiKey] = field(default_factory=dict)
    heartbeats: dict[tuple[str, str], int] = field(default_factory=dict)
    shards: int | None = None
    timeline: str = "1.1"
    """Changed by a test that plays a promotion."""
    catalogue: Catalogue = field(default_factory=lambda: Catalogue(0, ()))
    """The views every commit feeds; changed only together with `views`."""
    views: dict[str, MemoryView] = field(default_factory=dict)
    """By internal name."""
    fault_hook: Callable[[str], None] | None = None
    """Called with the name of a step ("commit", "committed", "fold", ...); raises to make it fail."""
    _next_xid: int = 1
    _open_xids: set[int] = field(default_factory=set)

    def next_xid(self) -> int:
        xid, self._next_xid = self._next_xid, self._next_xid + 1
        return xid

    def begin(self) -> int:
        """The id of a transaction that commits (or not) later: see `end`."""
        xid = self.next_xid()
        self._open_xids.add(xid)
        return xid

    def end(self, xid: int) -> None:
        """The transaction is over; what it wrote is visible, or was never there."""
        self._open_xids.discard(xid)

    def oldest_xid(self) -> int:
        """Everything below is over: pg_snapshot_xmin."""
        return min(self._open_xids, default=self._next_xid)

    def snapshot(self) -> MemoryDatabase:
        """The state, for `promote`: what a standby had received. Transactions under way are not in it."""
        return replace(
            self,
            orders=dict(self.orders),
            intake=dict(self.intake),
            order_keys=dict(self.order_keys),
            ledger={key: replace(row) for key, row in self.ledger.items()},
            sums={shard: dict(sums) for shard, sums in self.sums.items()},
            numbers={shard: list(numbers) for shard, numbers in self.numbers.items()},
            gaps={key: replace(gap) for key, gap in self.gaps.items()},
            dead_letters=list(self.dead_letters),
            aliases=dict(self.aliases),
            partitions=dict(self.partitions),
            detached=dict(self.detached),
            api_keys=dict(self.api_keys),
            heartbeats=dict(self.heartbeats),
            views={name: _copied(view) for name, view in self.views.items()},
            _open_xids=set(),
        )

    def promote(self, standby: MemoryDatabase) -> None:
        """Go on as that standby on a timeline of its own: later commits never were, versions and
        transaction ids are given again, and every view begins another epoch. Keeps `standby` as it is."""
        system, _, number = self.timeline.partition(".")
        copied = standby.snapshot()
        for name in copied.__dataclass_fields__:
            if name != "fault_hook":
                setattr(self, name, getattr(copied, name))
        self.timeline = f"{system}.{int(number) + 1}"
        for view in self.views.values():
            view.state = replace(view.state, epoch=self.epoch_of(view.state.epoch))
        views = tuple(
            replace(view, epoch=self.epoch_of(view.epoch)) for view in self.catalogue.views
        )
        self.catalogue = replace(self.catalogue, views=views)

    def epoch_of(self, epoch: str) -> str:
        """The epoch on this timeline of a view that had one before."""
        return f"{epoch.partition('.')[0]}.0.{self.timeline.partition('.')[2]}"

    def reach(self, step: str) -> None:
        """Mark a step of an operation, where a fault may be injected. "commit" comes before the effect,
        "committed" after it."""
        if self.fault_hook is not None:
            self.fault_hook(step)

    def append_deltas(self, internal: str, xid: int, lane: int, deltas: list[Delta]) -> None:
        """What a commit adds to a view."""
        self.views[internal].lanes[lane].deltas.extend(StoredDelta(xid, delta) for delta in deltas)


def _copied(view: MemoryView) -> MemoryView:
    lanes = [replace(lane, deltas=list(lane.deltas)) for lane in view.lanes]
    rows = {group: replace(row, measures=list(row.measures)) for group, row in view.rows.items()}
    return MemoryView(view.state, lanes, rows)
