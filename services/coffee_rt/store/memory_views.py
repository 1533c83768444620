"""Views on a MemoryDatabase: the same promises as PostgreSQL's, for simulations and tests.

No method awaits between reading and changing the database, so each call is a transaction. Faults are
injected at "fold" / "folded" and "rebuild" / "rebuilt" (before and after the effect).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

from coffee_rt.domain.views import (
    Aggregate,
    Delta,
    Group,
    ViewDefinition,
    compute_deltas,
    lane_of,
)
from coffee_rt.errors import Rejected, Retryable
from coffee_rt.runtime.clock import Clock
from coffee_rt.store.memory_database import (
    MemoryDatabase,
    MemoryLane,
    MemoryRow,
    MemoryView,
    StoredDelta,
)
from coffee_rt.store.memory_rows import fold_deltas, merged_groups, published_row
from coffee_rt.store.view_changes import ViewChange, needs_refill, plan_change
from coffee_rt.store.view_contract import (
    FILE_OWNER,
    NO_OWNER,
    AuditDifference,
    Chunk,
    Fold,
    LaneKey,
    LaneVersion,
    LaneWork,
    ViewState,
)
from coffee_rt.store.view_repair import CHUNK_SECONDS, DAY_SECONDS, round_up
from coffee_rt.store.view_tables import Catalogue, LiveView, feature_level_of


class MemoryViewCatalogue:
    """ViewCatalogueStore on a MemoryDatabase."""

    def __init__(self, database: MemoryDatabase, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def views(self) -> list[ViewState]:
        return self._states()

    async def ensure_views(
        self,
        definitions: Sequence[ViewDefinition],
        owner: str = FILE_OWNER,
        *,
        is_adopting: bool = False,
    ) -> list[str]:
        for definition in definitions:
            change = plan_change(definition, self._states(), owner, is_adopting=is_adopting)
            if change.is_needed:
                self._apply(definition, change, owner)
        return [state.internal for state in self._states() if state.backfilled_to is not None]

    async def make_current(self, internal: str) -> None:
        chosen = self._database.views.get(internal)
        if chosen is None or chosen.state.is_current:
            return
        for number, lane in enumerate(chosen.lanes):
            taken, lane.deltas = lane.deltas, []
            fold_deltas(chosen, number, taken, _oldest(chosen, self._clock))
        for state in self._states():
            if state.definition.name == chosen.state.definition.name and state.is_current:
                del self._database.views[state.internal]
        is_live = chosen.state.backfilled_to is None
        chosen.state = replace(chosen.state, is_current=True, is_live=is_live)
        self._change_catalogue()

    async def drop_view(self, name: str, owner: str | None = None) -> None:
        gone = [
            state.internal
            for state in self._states()
            if state.definition.name == name and owner in (None, state.owner)
        ]
        if not gone:
            raise Rejected("unknown-view", f"there is no view {name}", status=404)
        for internal in gone:
            del self._database.views[internal]
        self._change_catalogue()

    async def release_view(self, name: str, owner: str) -> bool:
        return self._give(name, NO_OWNER, owner)

    def _give(self, name: str, owner: str, before: str | None = None) -> bool:
        given = [
            view
            for view in self._database.views.values()
            if view.state.definition.name == name and before in (None, view.state.owner)
        ]
        for view in given:
            view.state = replace(view.state, owner=owner)
        return bool(given)

    def _states(self) -> list[ViewState]:
        states = [view.state for view in self._database.views.values()]
        return sorted(states, key=lambda s: (s.definition.name, s.is_current, s.internal))

    def _apply(self, definition: ViewDefinition, change: ViewChange, owner: str) -> None:
        views = self._database.views
        is_first = all(s.definition.name != definition.name for s in self._states())
        for internal in change.dropped:
            del views[internal]
        if change.is_adopted:
            self._give(definition.name, owner)
        if change.retained is not None:
            kept = views[change.retained.internal]
            to = 0 if needs_refill(change.retained, definition) else kept.state.backfilled_to
            kept.state = replace(kept.state, definition=definition, backfilled_to=to)
        if change.is_created:
            generation = self._database.catalogue.generation + 1
            internal = f"{definition.name}_{generation}"
            state = ViewState(
                definition=definition,
                internal=internal,
                epoch=self._database.epoch_of(str(generation)),
                is_live=False,
                backfilled_to=0,
                is_current=is_first,
                owner=owner,
            )
            views[internal] = MemoryView(state, [MemoryLane() for _ in range(definition.lanes)])
        if change.dropped or change.retained is not None or change.is_created:
            self._change_catalogue()

    def _change_catalogue(self) -> None:
        views = tuple(
            LiveView(
                s.definition, s.internal, s.epoch, feature_level_of(s.definition), s.is_current
            )
            for s in self._states()
        )
        self._database.catalogue = Catalogue(self._database.catalogue.generation + 1, views)


class MemoryViewFolder:
    """ViewFolder on a MemoryDatabase; one serves all instances of a simulation."""

    def __init__(self, database: MemoryDatabase, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._seen_at: dict[str, float] = {}

    async def announce(self, instance: str, alive_seconds: float) -> list[str]:
        now = self._clock.monotonic()
        self._seen_at[instance] = now
        return sorted(name for name, at in self._seen_at.items() if now - at < alive_seconds)

    async def withdraw(self, instance: str) -> None:
        self._seen_at.pop(instance, None)

    async def fold_lane(self, key: LaneKey, deltas_max: int, rows_max: int) -> Fold | None:
        view = self._database.views.get(key.view)
        if view is None or not view.lanes[key.lane].deltas:
            return None
        self._database.reach("fold")
        lane = view.lanes[key.lane]
        taken, lane.deltas = self._take(lane, deltas_max)
        previous = lane.version
        expired, changed = fold_deltas(view, key.lane, taken, _oldest(view, self._clock))
        if not lane.deltas:
            lane.floor = self._database.oldest_xid()
        self._database.reach("folded")
        rows = [published_row(view, group) for group in sorted(changed)]
        return Fold(
            view=view.state.definition.name,
            epoch=view.state.epoch,
            lane=key.lane,
            version=lane.version,
            previous=previous,
            floor=lane.floor,
            folded_deltas=len(taken),
            rows=rows if len(rows) <= rows_max else [],
            newest_at_ms=max((row["newest_at_ms"] for row in rows), default=0),
            is_drained=not lane.deltas,
            is_reload=len(rows) > rows_max,
            expired_deltas=expired,
        )

    def _take(
        self, lane: MemoryLane, deltas_max: int
    ) -> tuple[list[StoredDelta], list[StoredDelta]]:
        """What a fold takes, and what it leaves. All that is visible, however old its transaction."""
        return lane.deltas[:deltas_max], lane.deltas[deltas_max:]

    async def fold_lanes(
        self, view: str, lanes: Sequence[int], deltas_max: int, rows_max: int
    ) -> list[Fold]:
        keys = [LaneKey(view, lane) for lane in sorted(lanes)]
        folds = [await self.fold_lane(key, deltas_max, rows_max) for key in keys]
        return [fold for fold in folds if fold is not None]

    async def waiting_lanes(self) -> list[LaneWork]:
        now = self._clock.now()
        return [
            LaneWork(
                LaneKey(view.state.internal, number),
                len(lane.deltas),
                max(0.0, now - min(s.delta.newest_at_us for s in lane.deltas) / 1_000_000),
                lane.version,
            )
            for view in self._database.views.values()
            for number, lane in enumerate(view.lanes)
            if lane.deltas
        ]

    async def lane_versions(self) -> tuple[dict[str, str], list[LaneVersion]]:
        views = [view for view in self._database.views.values() if view.state.is_current]
        seen = self._database.oldest_xid()
        lanes = [
            LaneVersion(
                view.state.definition.name,
                number,
                lane.version,
                lane.floor if lane.deltas else max(lane.floor, seen),
            )
            for view in views
            for number, lane in enumerate(view.lanes)
        ]
        return {view.state.definition.name: view.state.epoch for view in views}, lanes

    async def quarantine(self, key: LaneKey, deltas_max: int) -> int:
        """Nothing overflows here, so there is never anything to put away."""
        return 0


class MemoryViewRepairer:
    """ViewRepairer on a MemoryDatabase."""

    def __init__(
        self, database: MemoryDatabase, clock: Clock, *, chunk_seconds: int = CHUNK_SECONDS
    ) -> None:
        self._database = database
        self._clock = clock
        self._chunk_seconds = chunk_seconds

    async def recomputable_from(self, view: str) -> int:
        definition = self._view(view).state.definition
        kept_from = max(0, int(self._clock.now()) - definition.retention_days * DAY_SECONDS)
        retired_to = self._database.retired_to_ms // 1000
        return max(kept_from, retired_to + DAY_SECONDS) if retired_to else kept_from

    async def plan_chunks(self, view: str, start: int | None, end: int | None) -> list[Chunk]:
        kept = self._view(view)
        bucket = kept.state.definition.bucket.seconds
        size = round_up(self._chunk_seconds, bucket)
        first = round_up(max(start or 0, await self.recomputable_from(view)), bucket)
        instants = {stored.order.ordered_at_us // 1_000_000 for stored in self._orders()}
        instants |= {group[1] for group in kept.rows}
        chunks = []
        for at in sorted({instant // size * size for instant in instants}):
            stop = at + size if end is None else min(at + size, end)
            chunk = Chunk(view, max(at, first), round_up(stop, bucket))
            if chunk.start < chunk.end:
                chunks.append(chunk)
        return chunks

    async def rebuild_chunk(self, chunk: Chunk) -> int:
        self._database.reach("rebuild")
        view = self._view(chunk.view)
        fresh = self._recompute(view, chunk)
        for lane in view.lanes:
            lane.deltas = [s for s in lane.deltas if not _is_inside(s.delta.group, chunk)]
        changed: set[Group] = set()
        for group in {*fresh, *(group for group in view.rows if _is_inside(group, chunk))}:
            if self._replace(view, group, fresh.get(group)):
                changed.add(group)
        raised = {view.rows[group].lane for group in changed}
        for number in raised:
            view.lanes[number].version += 1
        for group in changed:
            view.rows[group].version = view.lanes[view.rows[group].lane].version
        self._database.reach("rebuilt")
        return len(changed)

    async def audit_chunk(self, chunk: Chunk) -> list[AuditDifference]:
        view = self._view(chunk.view)
        fresh = self._recompute(view, chunk)
        kept = {
            group: delta
            for group, delta in merged_groups(view, is_tail=True).items()
            if _is_inside(group, chunk) and any(delta.measures)
        }
        names = [measure.name for measure in view.state.definition.measures]
        differences = []
        for group in sorted({*fresh, *kept}):
            sides = [
                dict(zip(names, side[group].measures, strict=True)) if group in side else None
                for side in (kept, fresh)
            ]
            if sides[0] != sides[1]:
                name = view.state.definition.name
                differences.append(AuditDifference(name, group, sides[0], sides[1]))
        return differences

    async def mark_backfilled(self, view: str, to: int | None, *, epoch: str | None = None) -> None:
        kept = self._view(view)
        if epoch not in (None, kept.state.epoch):
            raise Retryable(f"{view} is not of epoch {epoch} any more")
        # A view that was whole stays live while its longer retention is filled.
        is_live = kept.state.is_live or (to is None and kept.state.is_current)
        kept.state = replace(kept.state, backfilled_to=to, is_live=is_live)

    async def expire_rows(self, view: str) -> int:
        kept = self._view(view)
        oldest = _oldest(kept, self._clock)
        gone = [group for group in kept.rows if group[1] < oldest]
        for group in gone:
            del kept.rows[group]
        return len(gone)

    def _view(self, internal: str) -> MemoryView:
        if internal not in self._database.views:
            raise Rejected("unknown-view", f"there is no view {internal}", status=404)
        return self._database.views[internal]

    def _orders(self) -> Iterable[Any]:
        return self._database.orders.values()

    def _recompute(self, view: MemoryView, chunk: Chunk) -> dict[Group, Delta]:
        orders = [
            stored.order
            for stored in self._orders()
            if chunk.start <= stored.order.ordered_at_us // 1_000_000 < chunk.end
        ]
        return compute_deltas(view.state.definition, orders)

    def _replace(self, view: MemoryView, group: Group, fresh: Delta | None) -> bool:
        known = view.rows.get(group)
        if fresh is None:
            empty = _empty(view.state.definition)
            if known is None or known.measures == empty:
                return False
            known.measures = empty
            return True
        if known is not None and (known.measures, known.newest_at_us) == (
            fresh.measures,
            fresh.newest_at_us,
        ):
            return False
        lane = lane_of(group, view.state.definition.lanes)
        view.rows[group] = MemoryRow(list(fresh.measures), fresh.newest_at_us, lane, 0)
        return True


def _oldest(view: MemoryView, clock: Clock) -> float:
    """Unix seconds: buckets before it are past the view's retention."""
    return clock.now() - view.state.definition.retention_days * DAY_SECONDS


def _is_inside(group: Group, chunk: Chunk) -> bool:
    return bool(chunk.start <= group[1] < chunk.end)


def _empty(definition: ViewDefinition) -> list[int]:
    """Measures of a row whose orders all vanished; a least or most of nothing is None, as in SQL."""
    extremes = (Aggregate.MIN, Aggregate.MAX)
    empty = [None if m.aggregate in extremes else 0 for m in definition.measures]
    return cast("list[int]", empty)
