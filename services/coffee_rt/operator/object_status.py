"""Statuses of our objects: conditions, instants, progress. Pure.

A condition's `lastTransitionTime` is that of its last change of `status`, as Kubernetes has it; everything
else of it may change without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from coffee_rt.domain.times import parse_seconds
from coffee_rt.errors import Rejected

MESSAGE_CHARACTERS_MAX = 1000


@dataclass(frozen=True, slots=True)
class Condition:
    """`status` is True, False or Unknown, as text."""

    type: str
    status: str
    reason: str
    message: str = ""


def instant_text(at: float) -> str:
    """Unix seconds as Kubernetes writes instants."""
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_instant(text: str | None, place: str) -> int | None:
    """Unix seconds of an ISO 8601 instant; without an offset it is UTC. Raises Rejected."""
    if text is None:
        return None
    try:
        return parse_seconds(text)
    except ValueError:
        detail = "must be a time such as 2026-01-31T08:00:00Z, of the years 1970 to 9998"
        raise Rejected("bad-time", detail, place) from None


def merge_conditions(
    before: Sequence[Mapping[str, Any]], now: Sequence[Condition], generation: int, at: float
) -> list[dict[str, Any]]:
    """The list of conditions to write: exactly those of now."""
    known = {each.get("type"): each for each in before}
    merged = []
    for condition in now:
        old = known.get(condition.type)
        is_same = old is not None and old.get("status") == condition.status
        since = old.get("lastTransitionTime") if old is not None and is_same else None
        merged.append(
            {
                "type": condition.type,
                "status": condition.status,
                "reason": condition.reason,
                "message": condition.message[:MESSAGE_CHARACTERS_MAX],
                "observedGeneration": generation,
                "lastTransitionTime": since or instant_text(at),
            }
        )
    return merged


def reason_of(status: Mapping[str, Any], condition: str) -> str | None:
    """The reason that a status gives in one of its conditions."""
    for each in status.get("conditions") or ():
        if each.get("type") == condition:
            return str(each.get("reason"))
    return None


def percent_of(done: int, total: int) -> int:
    """Whole percent; 100 only when all is done."""
    return 100 if done >= total else 100 * done // total


def eta_seconds(done_before: int, done: int, total: int, seconds: float) -> int | None:
    """How long the rest takes at the pace since `done_before`; None before there is one."""
    progress = done - done_before
    if progress <= 0 or seconds <= 0:
        return None
    return round((total - done) * seconds / progress)


def is_told(before: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
    """Whether a status says all of `status` already; None means absent."""
    return all(_present(before.get(key)) == _present(value) for key, value in status.items())


def _present(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _present(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_present(each) for each in value]
    return value
