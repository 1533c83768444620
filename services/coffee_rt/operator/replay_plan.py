"""What a Replay object asks for, and where it is. Pure.

The status holds, for each view, up to where it is rebuilt: that is the whole memory of a replay, and a
chunk that is rebuilt twice is the same chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from coffee_rt.errors import Rejected
from coffee_rt.operator.object_status import eta_seconds, instant_text, parse_instant, percent_of
from coffee_rt.store.view_contract import Chunk, ViewState


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """A Replay's spec, read. Times are Unix seconds; `view` None means every view."""

    view: str | None
    start: int | None
    end: int | None


@dataclass(frozen=True, slots=True)
class ViewReplay:
    """How far one view is."""

    view: str
    chunks_done: int = 0
    rows_changed: int = 0
    rebuilt_to: int | None = None
    """Unix seconds; None before the first chunk."""
    is_done: bool = False

    def after(self, chunk: Chunk, changed: int) -> ViewReplay:
        return replace(
            self,
            chunks_done=self.chunks_done + 1,
            rows_changed=self.rows_changed + changed,
            rebuilt_to=chunk.end,
        )

    def finished(self) -> ViewReplay:
        return replace(self, is_done=True)

    def to_status(self) -> dict[str, Any]:
        to = None if self.rebuilt_to is None else instant_text(self.rebuilt_to)
        return {
            "view": self.view,
            "chunksDone": self.chunks_done,
            "rowsChanged": self.rows_changed,
            "rebuiltTo": to,
            "done": self.is_done,
        }


def read_request(spec: Mapping[str, Any]) -> ReplayRequest:
    """Raises Rejected with the place in the spec."""
    span = spec.get("span") or {}
    start = parse_instant(span.get("from"), "/span/from")
    end = parse_instant(span.get("to"), "/span/to")
    if start is not None and end is not None and start >= end:
        raise Rejected("bad-time", "must be after from", "/span/to")
    return ReplayRequest(spec.get("view"), start, end)


def plan_views(
    request: ReplayRequest, states: Sequence[ViewState], status: Mapping[str, Any]
) -> list[ViewReplay]:
    """The views of a replay with what is done of them already, by name. Raises Rejected when there is no
    such view."""
    names = sorted({state.definition.name for state in states if state.is_current})
    if request.view is not None:
        if request.view not in names:
            known = ", ".join(names) or "none"
            raise Rejected(
                "unknown-view", f"there is no view {request.view}; known are: {known}", "/view"
            )
        names = [request.view]
    known_views = {each["view"]: _from_status(each) for each in status.get("views") or ()}
    return [known_views.get(name, ViewReplay(name)) for name in names]


def _from_status(source: Mapping[str, Any]) -> ViewReplay:
    return ViewReplay(
        view=source["view"],
        chunks_done=int(source.get("chunksDone", 0)),
        rows_changed=int(source.get("rowsChanged", 0)),
        rebuilt_to=parse_instant(source.get("rebuiltTo"), "/status/views"),
        is_done=bool(source.get("done", False)),
    )


def internal_of(view: str, states: Sequence[ViewState]) -> str:
    """The view's internal name now: a change of its definition gives it another. Raises Rejected."""
    for state in states:
        if state.definition.name == view and state.is_current:
            return state.internal
    raise Rejected("unknown-view", f"the view {view} is gone", "/view")


def start_of(request: ReplayRequest, replay: ViewReplay) -> int | None:
    """Where a view goes on."""
    starts = [at for at in (request.start, replay.rebuilt_to) if at is not None]
    return max(starts, default=None)


def status_of(
    replays: Sequence[ViewReplay], chunks_left: int, first: tuple[int, float], now: float
) -> dict[str, Any]:
    """Progress over all views; `first` is (chunks done, when) at this operator's first look."""
    done = sum(each.chunks_done for each in replays)
    total = done + chunks_left
    done_before, since = first
    return {
        "chunksDone": done,
        "chunksTotal": total,
        "percent": percent_of(done, total),
        "rowsChanged": sum(each.rows_changed for each in replays),
        "etaSeconds": eta_seconds(done_before, done, total, now - since),
        "views": [each.to_status() for each in replays],
    }
