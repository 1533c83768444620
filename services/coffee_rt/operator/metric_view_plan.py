"""What a MetricView object means, and what its status says. Pure.

Enters: the object's spec and the views as the catalogue has them. Leaves: the definition, what is to be done
about it, and the conditions. The catalogue decides again under its lock; here it is decided what to say.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from coffee_rt.domain.view_documents import parse_view
from coffee_rt.domain.views import ViewDefinition
from coffee_rt.errors import Rejected
from coffee_rt.operator.object_status import Condition, eta_seconds, instant_text, percent_of
from coffee_rt.store.view_changes import may_adopt
from coffee_rt.store.view_contract import FILE_OWNER, VIEWS_MAX, ViewState

STALLED_SECONDS = 60.0
"""A backfill that did not get on for so long has nobody who does it."""


class Step(Enum):
    """What is to be done about a MetricView."""

    CONFLICT = "conflict"
    FULL = "full"
    ENSURE = "ensure"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class FillProgress:
    """How far a history is filled."""

    done: int
    total: int
    filled_to: int
    """Unix seconds."""
    started_at: float
    eta_seconds: int | None
    is_stalled: bool = False

    def to_status(self) -> dict[str, Any]:
        return {
            "percent": percent_of(self.done, self.total),
            "chunksDone": self.done,
            "chunksTotal": self.total,
            "filledTo": instant_text(self.filled_to),
            "startedAt": instant_text(self.started_at),
            "etaSeconds": self.eta_seconds,
        }


def owner_of(namespace: str, name: str) -> str:
    """The catalogue's name for an object."""
    return f"object:{namespace}/{name}"


def view_name(name: str, spec: Mapping[str, Any]) -> str:
    """The view of an object: named in its spec, else after the object, with _ for what a view can't have."""
    return str(spec.get("view") or name.replace("-", "_"))


def read_definition(name: str, spec: Mapping[str, Any]) -> ViewDefinition:
    """The definition that a spec describes. Raises Rejected with the place in it."""
    document: dict[str, Any] = {
        "name": view_name(name, spec),
        "bucket": spec.get("bucket"),
        "dimensions": list(spec.get("dimensions", ())),
        "measures": _measures(spec.get("measures")),
        "filter": _filter(spec.get("filter", ())),
    }
    for key, given in (("lanes", "lanes"), ("retention_days", "retentionDays")):
        if given in spec:
            document[key] = spec[given]
    return parse_view(document)


def _measures(source: Any) -> dict[str, Any]:
    """A list, because the order of an object's keys is nobody's promise, and here it is that of columns."""
    measures: dict[str, Any] = {}
    for index, measure in enumerate(_maps(source, "/measures")):
        name = _unique(measure.get("name"), measures, f"/measures/{index}/name")
        aggregate = measure.get("aggregate")
        measures[name] = "count" if aggregate == "count" else {aggregate: measure.get("field")}
    return measures


def _filter(source: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for index, part in enumerate(_maps(source, "/filter")):
        name = _unique(part.get("field"), chosen, f"/filter/{index}/field")
        chosen[name] = list(part.get("values", ()))
    return chosen


def _maps(source: Any, place: str) -> list[Mapping[str, Any]]:
    if not isinstance(source, list | tuple) or not all(
        isinstance(each, Mapping) for each in source
    ):
        raise Rejected("bad-view", "must be a list of objects", place)
    return list(source)


def _unique(name: Any, known: Mapping[str, Any], place: str) -> str:
    if not isinstance(name, str) or name in known:
        raise Rejected("bad-view", "must be a name, used once", place)
    return name


def plan_view(
    definition: ViewDefinition, owner: str, states: Sequence[ViewState], *, is_adopting: bool
) -> Step:
    """What to do, by the views there are (replacements before the views they replace)."""
    newest = _newest(definition.name, states)
    if newest is None:
        return Step.FULL if _names(states) >= VIEWS_MAX else Step.ENSURE
    if newest.owner != owner:
        return Step.ENSURE if may_adopt(newest.owner, is_adopting=is_adopting) else Step.CONFLICT
    return Step.NOTHING if newest.definition == definition else Step.ENSURE


def filling(definition: ViewDefinition, states: Sequence[ViewState]) -> ViewState | None:
    """The view of a definition whose history is being filled."""
    newest = _newest(definition.name, states)
    return newest if newest is not None and newest.backfilled_to is not None else None


def fill_progress(
    ends: Sequence[int], filled_to: int, first: tuple[float, int], moved_at: float, now: float
) -> FillProgress:
    """`ends` are those of the planned chunks, sorted; `first` is (when, chunks done then) of the first look,
    `moved_at` when the last one was done."""
    done = bisect_right(ends, filled_to)
    started_at, done_before = first
    return FillProgress(
        done=done,
        total=len(ends),
        filled_to=filled_to,
        started_at=started_at,
        eta_seconds=eta_seconds(done_before, done, len(ends), now - started_at),
        is_stalled=done < len(ends) and now - moved_at > STALLED_SECONDS,
    )


def describe(
    definition: ViewDefinition,
    owner: str,
    states: Sequence[ViewState],
    progress: FillProgress | None,
) -> tuple[str, list[Condition]]:
    """(phase, conditions) of an object whose definition is good."""
    newest = _newest(definition.name, states)
    if newest is not None and newest.owner != owner:
        return conflict(newest)
    if newest is None and _names(states) >= VIEWS_MAX:
        message = f"there are {VIEWS_MAX} views, and more may not be: each costs every commit"
        return "Waiting", [Condition("Ready", "False", "TooManyViews", message)]
    if newest is None or newest.definition != definition:
        return waiting("the view is not made yet")
    is_replacing = not newest.is_current
    if newest.backfilled_to is None and not is_replacing:
        return "Live", [
            Condition("Ready", "True", "Live", "every commit maintains it; its history is filled"),
            Condition("Filled", "True", "Complete"),
        ]
    phase = "Replacing" if is_replacing else "Filling"
    text = _progress_text(progress)
    shown = (
        "readers are shown the view as it was until the new one is filled and compared"
        if is_replacing
        else "every commit maintains it already; older buckets come"
    )
    reason = "Stalled" if progress is not None and progress.is_stalled else phase
    is_ready = "True" if newest.is_live else "False"
    return phase, [
        Condition("Ready", is_ready, phase, f"{shown}: {text}"),
        Condition("Filled", "False", reason, text),
    ]


def _progress_text(progress: FillProgress | None) -> str:
    if progress is None:
        return "not begun"
    if progress.is_stalled:
        return (
            f"{progress.done} of {progress.total} chunks, and nothing was done for"
            f" {STALLED_SECONDS:.0f} s: is an aggregator running?"
        )
    if progress.done >= progress.total:
        return "all chunks are filled and are being compared"
    return f"{progress.done} of {progress.total} chunks"


def invalid(error: Rejected) -> tuple[str, list[Condition]]:
    """Of a spec that can't be a view."""
    return "Invalid", [Condition("Ready", "False", "Invalid", f"{error.place}: {error.detail}")]


def waiting(message: str) -> tuple[str, list[Condition]]:
    """Of an object about which nothing could be done now."""
    return "Waiting", [Condition("Ready", "False", "Waiting", message)]


def conflict(state: ViewState) -> tuple[str, list[Condition]]:
    """Of an object whose view is another's."""
    name = state.definition.name
    if state.owner == FILE_OWNER:
        message = f"{name} is defined by a file of the aggregators; `adopt: true` takes it over, rows and all"
    else:
        message = f"{name} belongs to {state.owner}"
    return "Conflict", [Condition("Ready", "False", "Conflict", message)]


def _names(states: Sequence[ViewState]) -> int:
    return len({state.definition.name for state in states})


def _newest(name: str, states: Sequence[ViewState]) -> ViewState | None:
    return next((state for state in states if state.definition.name == name), None)
