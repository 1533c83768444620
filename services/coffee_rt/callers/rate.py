"""Requests a minute, of a key or an address, shared by all pods of a process.

Counted here at once and added up in Redis a few times a second, so a request costs a dictionary look-up.
Windows are whole minutes. A limit can be exceeded by what the other pods take between two settlements;
while Redis is away each pod limits on its own.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Protocol

from coffee_rt.errors import Overload
from coffee_rt.runtime import metrics
from coffee_rt.runtime.clock import Clock

UNSETTLED = metrics.counter(
    "coffee_rt_rate_unsettled_total",
    "Times the shared rate limit could not be settled in Redis; each pod then limits on its own.",
)

WINDOW_SECONDS = 60
SUBJECTS_MAX = 100_000
"""Keys and addresses counted in a window; above it new ones are limited together, as one subject."""
SETTLED_AT_ONCE = 16
"""Increments under way at once; each takes a connection."""
_OVERFLOW = "everyone-else"

_HEADER_LINES = b"".join(
    b"%sratelimit-%s: %%d\r\n" % (prefix, name)
    for prefix in (b"", b"x-")
    for name in (b"limit", b"remaining", b"reset")
)


class RateStorage(Protocol):
    """What is used of the library `limits` (its asynchronous storages have it)."""

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int: ...


class StorageAway(Exception):
    """The storage did not take an increment."""


class Quota(NamedTuple):
    """Where a subject stands after a request."""

    limit: int
    remaining: int
    reset_seconds: int
    is_exceeded: bool

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The draft's names and the older ones most clients know."""
        limit, reset = b"%d" % self.limit, b"%d" % self.reset_seconds
        remaining = b"%d" % self.remaining
        headers = [
            (b"ratelimit-limit", limit),
            (b"ratelimit-remaining", remaining),
            (b"ratelimit-reset", reset),
            (b"x-ratelimit-limit", limit),
            (b"x-ratelimit-remaining", remaining),
            (b"x-ratelimit-reset", reset),
        ]
        if self.is_exceeded:
            headers.append((b"retry-after", reset))
        return headers

    def to_bytes(self) -> bytes:
        """The same headers as HTTP/1.1 writes them: one formatting instead of seven."""
        values = (self.limit, self.remaining, self.reset_seconds)
        lines = _HEADER_LINES % (values + values)
        return lines + b"retry-after: %d\r\n" % self.reset_seconds if self.is_exceeded else lines


class RateLimited(Overload):
    """Refused for its rate; carries the quota for the answer's headers."""

    def __init__(self, quota: Quota) -> None:
        detail = f"More than {quota.limit} requests a minute."
        super().__init__("rate-limited", detail, float(quota.reset_seconds), 429)
        self.quota = quota


class _Count:
    """One subject in one window: what all pods had taken when last settled, and what came here since."""

    __slots__ = ("pending", "settled", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.settled = 0
        self.pending = 0


class RateLimiter:
    """One of a process, one event loop only; `run` settles a few times a second. Limiters of one `name`
    share their counts."""

    def __init__(self, storage: RateStorage, clock: Clock, name: str) -> None:
        self._storage = storage
        self._clock = clock
        self._prefix = f"{name}:rate"
        self._counts: dict[str, _Count] = {}

    def take(self, subject: str, limit: int) -> Quota:
        """Count a request, unless the limit is reached; where the subject stands then."""
        now = self._clock.now()
        window = int(now // WINDOW_SECONDS)
        count = self._counts.get(subject)
        if count is None or count.window != window:
            count = self._begin(subject, window)
        used = count.settled + count.pending
        is_exceeded = used >= limit
        if not is_exceeded:
            count.pending += 1
            used += 1
        reset_seconds = WINDOW_SECONDS - int(now) % WINDOW_SECONDS
        return Quota(limit, max(0, limit - used), reset_seconds, is_exceeded)

    def _begin(self, subject: str, window: int) -> _Count:
        """The count of a subject not seen in this window; the common one where there are too many."""
        if subject not in self._counts and len(self._counts) >= SUBJECTS_MAX:
            subject = _OVERFLOW
        count = self._counts.get(subject)
        if count is None or count.window != window:
            count = self._counts[subject] = _Count(window)
        return count

    async def run(self, settle_seconds: float) -> None:
        while True:
            await self._clock.sleep(settle_seconds)
            await self.settle()

    async def settle(self) -> None:
        """Add what came here to what the pods share, and forget windows that are over."""
        window = int(self._clock.now() // WINDOW_SECONDS)
        waiting: list[tuple[str, _Count]] = []
        for subject, count in list(self._counts.items()):
            if count.window != window:
                del self._counts[subject]
            elif count.pending:
                waiting.append((subject, count))
        for start in range(0, len(waiting), SETTLED_AT_ONCE):
            # All of them to their end: one still under way would be added again by the next settlement.
            ended = await asyncio.gather(
                *(self._settle(*pair) for pair in waiting[start : start + SETTLED_AT_ONCE]),
                return_exceptions=True,
            )
            errors = [error for error in ended if error is not None]
            for error in errors:
                if not isinstance(error, StorageAway):
                    raise error
            if errors:
                UNSETTLED.inc()
                return

    async def _settle(self, subject: str, count: _Count) -> None:
        amount = count.pending
        total = await self._storage.incr(
            f"{self._prefix}:{subject}:{count.window}", 2 * WINDOW_SECONDS, amount
        )
        count.pending -= amount
        count.settled = total
