"""One view as the fan-out knows it: folded rows of the recent window, and each lane's version. Pure.

Rows are absolute, so a publication twice, late or beside a reload does no harm: the higher version wins.
`seq` counts what was applied here, in order: "everything after seq N" is how a slow session catches up
without a queue of its own. Lane versions rise only without a gap; rows above a gap are held until it closes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from coffee_rt.channels.messages import ViewChange
from coffee_rt.domain.views import ViewDefinition
from coffee_rt.fanout.frames import encode
from coffee_rt.fanout.protocol import Filter, is_match

HELD_CHANGES_MAX = 64
"""Publications kept above a gap, a lane; past it they are dropped, since the reload brings their rows."""

Key = tuple[Any, ...]


class Row:
    """One group's absolute values at a version, encoded."""

    __slots__ = ("bucket", "dimensions", "encoded", "lane", "newest_at_ms", "seq", "version")

    def __init__(
        self,
        bucket: int,
        dimensions: tuple[str, ...],
        lane: int,
        version: int,
        newest_at_ms: int,
        encoded: bytes,
    ) -> None:
        self.bucket = bucket
        self.dimensions = dimensions
        self.lane = lane
        self.version = version
        self.newest_at_ms = newest_at_ms
        self.encoded = encoded
        self.seq = 0


class Verdict(Enum):
    """What became of a publication."""

    APPLIED = "applied"
    STALE = "stale"
    GAP = "gap"
    """Something before it is missing: held."""
    RELOAD = "reload"
    """It says itself that its rows must be loaded."""
    OTHER_EPOCH = "other-epoch"


class ViewRows:
    """State of one view. Owned by its channel; every method is immediate."""

    def __init__(self, definition: ViewDefinition) -> None:
        self.definition = definition
        self.columns = (
            "bucket",
            *definition.dimension_columns,
            *(measure.name for measure in definition.measures),
            "lane",
            "version",
            "newest_at_ms",
        )
        self.money = [measure.name for measure in definition.measures if measure.field.is_money]
        self.is_loaded = False
        self.epoch = ""
        self.versions: tuple[int, ...] = (0,) * definition.lanes
        self.heard = [0] * definition.lanes
        """Newest version of each lane that anybody spoke of: above `versions`, a lane is behind."""
        self.window_start = 0
        """Every row with a bucket from here on is in memory."""
        self.complete_above = [0] * definition.lanes
        """Of older buckets, every row with a version above this is in memory."""
        self.seq = 0
        self._rows: dict[int, dict[Key, Row]] = {}
        self._changed: dict[int, dict[Key, Row]] = {}
        self._held: list[dict[int, ViewChange]] = [{} for _ in range(definition.lanes)]
        self._pruned_seq = 0

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def is_same_shape(self, versions: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether what was read is of this definition: another may have taken the view's place since."""
        if len(versions) != self.definition.lanes:
            return False
        return not rows or rows[0].keys() - {"tenant"} == set(self.columns)

    def load(
        self, epoch: str, versions: Sequence[int], rows: Iterable[Mapping[str, Any]], start: int
    ) -> bool:
        """Take a snapshot of the whole window from `start`. True when it begins another epoch (or the
        first one): whoever was told rows of the old one must be reset."""
        is_reset = not self.is_loaded or epoch != self.epoch
        if is_reset:
            self.epoch = epoch
            self._rows.clear()
            self._changed.clear()
            self.versions = tuple(versions)
            self.heard = list(versions)
            self.complete_above = list(versions)
            self._held = [{} for _ in versions]
        self.window_start = start if is_reset else max(start, self.window_start)
        self._take(sorted(rows, key=lambda row: int(row["version"])))
        if is_reset:
            # Nobody is sent these as changes: everybody gets a snapshot.
            self._changed.clear()
        self.is_loaded = True
        for lane, version in enumerate(versions):
            self._raise(lane, version)
        return is_reset

    def load_lane(self, lane: int, version: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take what `rows_above` gave for one lane: everything up to `version`."""
        self._take(sorted(rows, key=lambda row: int(row["version"])))
        self._raise(lane, version)
        # Whatever was heard above what the primary says is not there (yet).
        self.heard[lane] = max(self.versions[lane], version)

    def apply(self, change: ViewChange) -> Verdict:
        """Apply a publication, or say why not."""
        if change.epoch != self.epoch:
            return Verdict.OTHER_EPOCH
        lane = change.lane
        if not 0 <= lane < len(self.versions) or change.version <= self.versions[lane]:
            return Verdict.STALE
        self.heard[lane] = max(self.heard[lane], change.version)
        if change.reload:
            return Verdict.RELOAD
        if change.previous > self.versions[lane]:
            held = self._held[lane]
            if len(held) < HELD_CHANGES_MAX:
                held[change.version] = change
            return Verdict.GAP
        self._take(change.rows, lane)
        self._raise(lane, change.version)
        return Verdict.APPLIED

    def hear(self, versions: Iterable[tuple[int, int]]) -> bool:
        """Note versions spoken of elsewhere, as (lane, version); whether any lane is behind now."""
        for lane, version in versions:
            if 0 <= lane < len(self.heard):
                self.heard[lane] = max(self.heard[lane], version)
        return bool(self.lanes_behind())

    def lanes_behind(self) -> list[int]:
        return [lane for lane, version in enumerate(self.versions) if self.heard[lane] > version]

    def is_complete(self, since: int, versions: Sequence[int]) -> bool:
        """Whether everything newer than `versions` in buckets from `since` on is in memory."""
        return since >= self.window_start or all(
            version >= complete
            for version, complete in zip(versions, self.complete_above, strict=True)
        )

    def take_changed(self) -> dict[int, list[Row]]:
        """Rows changed since the last call, by tenant."""
        changed, self._changed = self._changed, {}
        return {tenant: list(rows.values()) for tenant, rows in changed.items()}

    @property
    def is_changed(self) -> bool:
        return bool(self._changed)

    def select(self, tenant: int, wanted: Filter, since: int) -> list[Row]:
        """A tenant's rows of the window."""
        return [
            row
            for row in self._rows.get(tenant, {}).values()
            if row.bucket >= since and is_match(wanted, row.dimensions)
        ]

    def newer_than(self, seq: int, tenant: int, wanted: Filter, since: int) -> list[Row]:
        """A tenant's rows applied after `seq`. Costs as much as there are such rows."""
        newer = []
        for row in reversed(self._rows.get(tenant, {}).values()):
            if row.seq <= seq:
                break
            if row.bucket >= since and is_match(wanted, row.dimensions):
                newer.append(row)
        return newer

    def above(self, versions: Sequence[int], tenant: int, wanted: Filter, since: int) -> list[Row]:
        """A tenant's rows above versions by lane: what a resuming session lacks."""
        return [
            row for row in self.select(tenant, wanted, since) if row.version > versions[row.lane]
        ]

    def prune(self, start: int, rows_max: int) -> None:
        """Move the window to `start`, later still where more than `rows_max` rows would remain.

        A row that left the window stays until the next call but one change ago, so that sessions catching
        up with an old bucket still find it.
        """
        if len(self) > rows_max:
            buckets = sorted((row.bucket for row in self._all()), reverse=True)
            start = max(start, buckets[rows_max] + self.definition.bucket.seconds)
        self.window_start = max(start, self.window_start)
        for rows in self._rows.values():
            for key in [key for key, row in rows.items() if self._is_prunable(row)]:
                row = rows.pop(key)
                if row.version > self.complete_above[row.lane]:
                    self.complete_above[row.lane] = row.version
        self._pruned_seq = self.seq

    def encode_row(self, source: Mapping[str, Any], lane: int) -> tuple[int, Row]:
        """(tenant, row) of a row as the store or a publication gives it."""
        values = [source[column] for column in self.columns[:-3]]
        dimensions = len(self.definition.dimensions)
        version, newest_at_ms = int(source["version"]), int(source["newest_at_ms"])
        encoded = encode([*values, lane, version, newest_at_ms])
        row = Row(
            values[0], tuple(values[1 : 1 + dimensions]), lane, version, newest_at_ms, encoded
        )
        return source["tenant"], row

    def _all(self) -> Iterator[Row]:
        for rows in self._rows.values():
            yield from rows.values()

    def _is_prunable(self, row: Row) -> bool:
        return row.bucket < self.window_start and row.seq <= self._pruned_seq

    def _take(self, sources: Iterable[Mapping[str, Any]], lane: int | None = None) -> None:
        for source in sources:
            tenant, row = self.encode_row(source, source["lane"] if lane is None else lane)
            rows = self._rows.setdefault(tenant, {})
            key = (row.bucket, *row.dimensions)
            known = rows.get(key)
            if known is not None:
                if known.version >= row.version:
                    continue
                # Out and in again: a dict keeps insertion order, which must be the order of seq.
                del rows[key]
            self.seq += 1
            row.seq = self.seq
            rows[key] = row
            self._changed.setdefault(tenant, {})[key] = row

    def _raise(self, lane: int, version: int) -> None:
        """Raise a lane's version, then apply what was held above the gap that this closed."""
        held = self._held[lane]
        current = max(self.versions[lane], version)
        for waiting in sorted(held):
            change = held[waiting]
            if change.previous > current:
                break
            del held[waiting]
            if waiting > current:
                self._take(change.rows, lane)
                current = waiting
        self.versions = (*self.versions[:lane], current, *self.versions[lane + 1 :])
        self.heard[lane] = max(self.heard[lane], current)
