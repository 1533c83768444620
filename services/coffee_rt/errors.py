"""The four families of failure. Every error that crosses a module's border is one of them.

Rejected   the caller is wrong: 4xx, or a dead letter when it is found in the log. Never retried.
Retryable  the world is away or busy: back off and try again; an entry stays pending.
Overload   a limit of ours is reached: refuse early and say when to come back.
Bug        an invariant is broken: crash loudly; the entry stays pending for a mended release.
"""

from __future__ import annotations

from dataclasses import dataclass


class CoffeeRtError(Exception):
    """Root of the four families."""


@dataclass(slots=True, eq=False)
class Rejected(CoffeeRtError):
    """What the caller sent can't be taken.

    `code` is stable and machine-readable (kebab-case); `place` names the field or record it is about
    (a JSON pointer such as `/price` or `/17/store`), empty for the whole request.
    """

    code: str
    detail: str
    place: str = ""
    status: int = 422

    def __str__(self) -> str:
        return f"{self.code} at {self.place or '/'}: {self.detail}"


class Retryable(CoffeeRtError):
    """The outcome is unknown or the dependency is away. Safe to try again with the same key."""


class NotExecuted(Retryable):
    """Retryable, and certainly without effect: not one byte of the request reached its target."""


class TooSlow(Retryable):
    """The server ended the work because it took too long, and said so: no sign of an outage."""


class Busy(NotExecuted):
    """A bound of ours on what is under way at a server was reached: no sign of an outage."""


class BreakerOpen(NotExecuted):
    """Refused locally because the dependency kept failing; nothing was sent."""

    def __init__(self, name: str, retry_after_seconds: float) -> None:
        super().__init__(f"{name} is not answering; next try in {retry_after_seconds:.1f} s")
        self.retry_after_seconds = retry_after_seconds


@dataclass(slots=True, eq=False)
class Overload(CoffeeRtError):
    """A stated limit is reached. `status` is 429 (slow down) or 503 (we are full)."""

    code: str
    detail: str
    retry_after_seconds: float
    status: int = 503

    def __str__(self) -> str:
        return f"{self.code}: {self.detail} (retry after {self.retry_after_seconds:.0f} s)"


class Bug(CoffeeRtError):
    """An invariant of ours does not hold."""
