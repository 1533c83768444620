"""Problem answers (RFC 9457): what a client is told when something is refused. Pure; all HTTP processes use it.

`type` is urn:coffee-rt:problem:<code>; codes are stable and kebab-case. `errors` lists each fault with its
place (a JSON pointer into the body, or the name of a header or parameter). Nothing internal is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import msgspec

from coffee_rt.errors import BreakerOpen, CoffeeRtError, NotExecuted, Overload, Rejected, Retryable

CONTENT_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:coffee-rt:problem:"
UNKNOWN_OUTCOME_RETRY_SECONDS = 1
"""Hint after an unknown outcome: the log is usually back, or another pod answers, within a second."""

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Problem:
    """An answer ready to be sent: status, body, and the headers that belong to the status."""

    status: int
    code: str
    detail: str
    errors: Sequence[dict[str, str]] = ()
    headers: Sequence[tuple[str, str]] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "type": TYPE_PREFIX + self.code,
            "title": self.code.replace("-", " ").capitalize(),
            "status": self.status,
            "detail": self.detail,
        }
        if self.errors:
            body["errors"] = list(self.errors)
        return body

    def to_bytes(self) -> bytes:
        return _encode(self.to_dict())


def problem_of(error: CoffeeRtError) -> Problem:
    """The answer for a failure of one of the families; a Bug (or anything unknown) is a plain 500."""
    if isinstance(error, Rejected):
        return _of_rejected(error)
    if isinstance(error, Overload):
        return Problem(
            error.status, error.code, error.detail, headers=_retry_after(error.retry_after_seconds)
        )
    if isinstance(error, NotExecuted):
        seconds = (
            error.retry_after_seconds
            if isinstance(error, BreakerOpen)
            else UNKNOWN_OUTCOME_RETRY_SECONDS
        )
        detail = "A server behind this one is away. Nothing was done; try again later."
        return Problem(503, "temporarily-away", detail, headers=_retry_after(seconds))
    if isinstance(error, Retryable):
        detail = (
            "It is unknown whether this was done. Repeat it with the same key; that is always safe."
        )
        return Problem(
            503, "unknown-outcome", detail, headers=_retry_after(UNKNOWN_OUTCOME_RETRY_SECONDS)
        )
    return Problem(500, "internal-error", "Something is broken here; it has been logged.")


def _of_rejected(error: Rejected) -> Problem:
    errors: list[dict[str, str]] = []
    detail = error.detail
    if error.place:
        errors.append({"place": error.place, "code": error.code, "detail": error.detail})
        detail = f"{error.place} {error.detail}"
    headers: list[tuple[str, str]] = []
    if error.status == 401:
        headers.append(("WWW-Authenticate", "Bearer"))
    return Problem(error.status, error.code, detail, tuple(errors), tuple(headers))


def _retry_after(seconds: float) -> tuple[tuple[str, str], ...]:
    return (("Retry-After", str(max(1, ceil(seconds)))),)
