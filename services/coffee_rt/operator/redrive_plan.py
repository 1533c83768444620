"""What a Redrive object asks for, and how its result is told. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coffee_rt.domain.orders import check_text
from coffee_rt.errors import Rejected
from coffee_rt.operator.object_status import parse_instant
from coffee_rt.store.redrives import LetterSelection, Outcome, Redriven

LIMIT_DEFAULT = 10_000
CODE_BYTES_MAX = 400
"""Far beyond any code, and all that the definition of the object lets through."""
SAMPLES_MAX = 10
"""Letters that are told one by one, of those that are still bad or were skipped."""

_KEYS = {
    Outcome.STORED: "stored",
    Outcome.DUPLICATE: "duplicates",
    Outcome.STILL_BAD: "stillBad",
    Outcome.SKIPPED: "skipped",
}


@dataclass(frozen=True, slots=True)
class RedriveRequest:
    """A Redrive's spec, read."""

    selection: LetterSelection
    limit: int
    is_dry_run: bool


def read_request(spec: Mapping[str, Any]) -> RedriveRequest:
    """Raises Rejected with the place in the spec."""
    letters = spec.get("letters") or {}
    code = letters.get("code")
    if code is not None:
        check_text(code, CODE_BYTES_MAX, "/letters/code")
    selection = LetterSelection(
        ids=tuple(sorted(set(letters.get("ids") or ()))),
        code=code,
        tenant=letters.get("tenant"),
        start=parse_instant(letters.get("from"), "/letters/from"),
        end=parse_instant(letters.get("to"), "/letters/to"),
    )
    if selection == LetterSelection() and not letters.get("all"):
        raise Rejected("no-letters", "choose some, or say all", "/letters")
    return RedriveRequest(
        selection, int(spec.get("limit", LIMIT_DEFAULT)), bool(spec.get("dryRun", False))
    )


def redrive_name(uid: str) -> str:
    """Under which the letters remember an object: a name of its own, even if another object takes its
    name later."""
    return f"object:{uid}"


def count_outcomes(done: Iterable[Redriven]) -> dict[Outcome, int]:
    counts = dict.fromkeys(Outcome, 0)
    for each in done:
        counts[each.outcome] += 1
    return counts


def add_counts(one: Mapping[Outcome, int], other: Mapping[Outcome, int]) -> dict[Outcome, int]:
    return {outcome: one.get(outcome, 0) + other.get(outcome, 0) for outcome in Outcome}


def status_of(
    counts: Mapping[Outcome, int], selected: int, samples: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Counts, progress and samples as the status shows them."""
    tried = sum(counts.values())
    return {
        **{key: counts.get(outcome, 0) for outcome, key in _KEYS.items()},
        "tried": tried,
        "selected": max(selected, tried),
        "samples": list(samples),
    }


def add_samples(
    samples: Sequence[Mapping[str, Any]], done: Iterable[Redriven]
) -> list[Mapping[str, Any]]:
    """The first letters that were not stored, with their reason."""
    more = [
        {"id": each.id, "code": each.code, "detail": each.detail[:200]}
        for each in done
        if each.outcome in (Outcome.STILL_BAD, Outcome.SKIPPED)
    ]
    return [*samples, *more][:SAMPLES_MAX]


def sentence(counts: Mapping[Outcome, int], *, is_dry_run: bool) -> str:
    """The result in words."""
    would = "would be " if is_dry_run else ""
    parts = [f"{counts[Outcome.STORED]} {would}stored"]
    if counts[Outcome.DUPLICATE]:
        parts.append(f"{counts[Outcome.DUPLICATE]} were stored already")
    parts.append(f"{counts[Outcome.STILL_BAD]} still bad")
    if counts[Outcome.SKIPPED]:
        parts.append(f"{counts[Outcome.SKIPPED]} skipped")
    return ", ".join(parts)
