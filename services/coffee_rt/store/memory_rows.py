"""Rows of a view in memory: folding deltas into them, and telling of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coffee_rt.domain.views import Delta, Group, merge_deltas
from coffee_rt.store.memory_database import MemoryRow, MemoryView, StoredDelta


def apply_delta(view: MemoryView, delta: Delta, lane: int, version: int) -> None:
    """What a fold does with one delta."""
    known = view.rows.get(delta.group)
    if known is not None and None not in known.measures:
        row = Delta(delta.group, known.measures, known.newest_at_us)
        delta = merge_deltas(view.state.definition, row, delta)
    view.rows[delta.group] = MemoryRow(list(delta.measures), delta.newest_at_us, lane, version)


def fold_deltas(
    view: MemoryView, number: int, taken: Sequence[StoredDelta], oldest: float
) -> tuple[int, set[Group]]:
    """Fold deltas taken from a lane: (how many were past the view's retention, `oldest` in Unix seconds; the groups
    that changed). The lane's version rises where any did."""
    lane = view.lanes[number]
    kept = [stored.delta for stored in taken if stored.delta.group[1] >= oldest]
    changed = {delta.group for delta in kept}
    lane.version += bool(changed)
    for delta in kept:
        apply_delta(view, delta, number, lane.version)
    return len(taken) - len(kept), changed


def merged_groups(view: MemoryView, *, is_tail: bool) -> dict[Group, Delta]:
    """The view's rows, with the unfolded deltas where `is_tail`."""
    merged = {
        group: Delta(group, row.measures, row.newest_at_us)
        for group, row in view.rows.items()
        if any(row.measures)
    }
    if is_tail:
        for lane in view.lanes:
            for stored in lane.deltas:
                known = merged.get(stored.delta.group)
                merged[stored.delta.group] = (
                    stored.delta
                    if known is None
                    else merge_deltas(view.state.definition, known, stored.delta)
                )
    return merged


def published_row(view: MemoryView, group: Group) -> dict[str, Any]:
    """A row as folds and snapshots tell it."""
    definition = view.state.definition
    row = view.rows[group]
    tenant, bucket, *dimensions = group
    names = [measure.name for measure in definition.measures]
    return {
        "tenant": tenant,
        "bucket": bucket,
        **dict(zip(definition.dimension_columns, dimensions, strict=True)),
        **dict(zip(names, row.measures, strict=True)),
        "lane": row.lane,
        "version": row.version,
        "newest_at_ms": row.newest_at_us // 1000,
    }
