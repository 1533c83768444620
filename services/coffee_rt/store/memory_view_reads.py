"""Reading views of a MemoryDatabase: the same answers as PostgreSQL's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from coffee_rt.domain.views import Delta, Group, merge_deltas
from coffee_rt.errors import Rejected
from coffee_rt.store.memory_database import MemoryDatabase, MemoryView
from coffee_rt.store.memory_rows import merged_groups, published_row
from coffee_rt.store.view_contract import SnapshotScope, ViewAnswer, ViewQuery, ViewSnapshot
from coffee_rt.store.view_read_sql import answer_keys, check_query

TAIL_DELTAS_MAX = 20_000


class MemoryViewReader:
    """ViewReader on a MemoryDatabase."""

    def __init__(self, database: MemoryDatabase, *, tail_deltas_max: int = TAIL_DELTAS_MAX) -> None:
        self._database = database
        self._tail_deltas_max = tail_deltas_max

    async def query(self, query: ViewQuery) -> ViewAnswer:
        view = self._find(query.view)
        check_query(view.state.definition, query)
        unfolded = sum(len(lane.deltas) for lane in view.lanes)
        is_skipped = unfolded > self._tail_deltas_max
        answer = _grouped(view, query, is_tail=not is_skipped)
        keys = sorted(answer, key=_sort_key)
        if query.order_by is not None:
            names = [measure.name for measure in view.state.definition.measures]
            index = names.index(query.order_by)
            keys.sort(key=lambda key: -answer[key].measures[index])
        if query.after is not None:
            keys = [key for key in keys if _sort_key(key) > _sort_key(query.after)]
        return ViewAnswer(
            rows=[_answer_row(view, query, key, answer[key]) for key in keys[: query.limit]],
            epoch=view.state.epoch,
            version=sum(lane.version for lane in view.lanes),
            unfolded=0 if is_skipped else unfolded,
            is_tail_skipped=is_skipped,
            newest_at_ms=max((d.newest_at_us for d in answer.values()), default=0) // 1000,
        )

    async def snapshot(
        self, view: str, start: int, scope: SnapshotScope | None = None
    ) -> ViewSnapshot:
        kept = self._find(view)
        groups = [group for group in kept.rows if group[1] >= start]
        if scope is not None:
            groups = [group for group in groups if _is_inside(kept, group, scope)]
            groups = groups[: scope.rows_max]
        return _snapshot(kept, groups)

    async def rows_above(self, view: str, lane: int, version: int, start: int) -> ViewSnapshot:
        kept = self._find(view)
        groups = [
            group
            for group, row in kept.rows.items()
            if group[1] >= start and row.lane == lane and row.version > version
        ]
        return _snapshot(kept, groups)

    async def iterate(self, query: ViewQuery) -> AsyncIterator[dict[str, Any]]:
        answer = await self.query(query)

        async def rows() -> AsyncIterator[dict[str, Any]]:
            for row in answer.rows:
                yield row

        return rows()

    def _find(self, name: str) -> MemoryView:
        for view in self._database.views.values():
            if view.state.is_current and view.state.definition.name == name:
                return view
        raise Rejected("unknown-view", f"there is no view {name}", status=404)


def _grouped(view: MemoryView, query: ViewQuery, *, is_tail: bool) -> dict[Group, Delta]:
    """Answer keys -> merged measures."""
    definition = view.state.definition
    columns = definition.dimension_columns
    seconds = (query.bucket or definition.bucket).seconds
    answer: dict[Group, Delta] = {}
    for group, delta in merged_groups(view, is_tail=is_tail).items():
        tenant, bucket, *texts = group
        values = dict(zip(columns, texts, strict=True))
        is_chosen = all(values[name] in chosen for name, chosen in query.filters.items())
        if tenant != query.tenant or not query.start <= bucket < query.end or not is_chosen:
            continue
        values["bucket"] = bucket // seconds * seconds
        key = tuple(values[name] for name in answer_keys(definition, query))
        known = answer.get(key)
        answer[key] = delta if known is None else merge_deltas(definition, known, delta)
    return answer


def _sort_key(key: Group) -> Group:
    # PostgreSQL compares these columns by the bytes of their UTF-8.
    return tuple(part.encode() if isinstance(part, str) else part for part in key)


def _answer_row(view: MemoryView, query: ViewQuery, key: Group, delta: Delta) -> dict[str, Any]:
    definition = view.state.definition
    names = [measure.name for measure in definition.measures]
    row = dict(zip(answer_keys(definition, query), key, strict=True))
    return row | dict(zip(names, delta.measures, strict=True))


def _is_inside(view: MemoryView, group: Group, scope: SnapshotScope) -> bool:
    tenant, _bucket, *texts = group
    values = dict(zip(view.state.definition.dimension_columns, texts, strict=True))
    return tenant == scope.tenant and all(values[name] in chosen for name, chosen in scope.filters)


def _snapshot(view: MemoryView, groups: list[Group]) -> ViewSnapshot:
    return ViewSnapshot(
        view=view.state.definition.name,
        epoch=view.state.epoch,
        versions=[lane.version for lane in view.lanes],
        rows=[published_row(view, group) for group in groups],
    )
