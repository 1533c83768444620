"""Circuit breaker and backoff: a server that fails is left alone for a while, then tried by one caller.

Closed: calls pass. After `failures` failures in a row: open, every call is refused at once (BreakerOpen).
After a while, half-open: one call passes; its success closes the breaker, its failure opens it again. That while is
`FIRST_OPEN_SECONDS`, twice as long after each failed try, and `open_seconds` at the most: what was away for a moment is used
again at once, and what is away for long is asked seldom.
"""

from __future__ import annotations

import asyncio
import random as random_module
from collections.abc import Callable
from types import TracebackType

from coffee_rt.errors import BreakerOpen, Busy, Retryable, TooSlow
from coffee_rt.runtime import metrics
from coffee_rt.runtime.clock import Clock, SystemClock

STATE = metrics.gauge(
    "coffee_rt_breaker_open_ratio",
    "Circuit breaker by dependency: 0 closed, 0.5 half-open, 1 open. Above 0, look at that server.",
    ("name",),
)
TRIPS = metrics.counter(
    "coffee_rt_breaker_trips_total",
    "Times a breaker opened because its dependency kept failing.",
    ("name",),
)

FIRST_OPEN_SECONDS = 0.5
"""A server that restarts is back in seconds; longer would add more to its outage than it lasted."""


class CircuitBreaker:
    """One for each dependency of a process, shared by its tasks.

    `async with breaker:` around each call. Retryable errors, OSError and time-outs count as failures; any
    other exception (TooSlow too) is an answer of the server and counts as success. Cancellation and Busy count as neither.
    """

    def __init__(
        self,
        name: str,
        *,
        failures: int = 5,
        open_seconds: float = 2.0,
        clock: Clock | None = None,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self.name = name
        self._failures_max = failures
        self._open_seconds = open_seconds
        self._clock = clock or SystemClock()
        self._random = random
        self._failures = 0
        self._openings = 0
        """In a row, without a success between them."""
        self._retry_at: float | None = None
        self._is_probing = False
        self._state = STATE.labels(name)
        self._trips = TRIPS.labels(name)
        self._state.set(0)

    @property
    def is_open(self) -> bool:
        """Whether the server counts as away; also while one caller tries it."""
        return self._retry_at is not None

    @property
    def retry_after_seconds(self) -> float:
        """Seconds until a call would be let through; 0 when one would be now."""
        if self._retry_at is None:
            return 0.0
        return max(0.0, self._retry_at - self._clock.monotonic())

    def record_success(self) -> None:
        self._failures = self._openings = 0
        self._retry_at = None
        self._is_probing = False
        self._state.set(0)

    def record_failure(self) -> None:
        self._failures += 1
        if not self._is_probing and self._failures < self._failures_max:
            return
        if not self._is_probing and self._retry_at is not None:
            return  # A call that began before it opened: that is no new evidence.
        # Up to a tenth later, so that many processes do not all try in the same moment.
        span = min(self._open_seconds, FIRST_OPEN_SECONDS * 2 ** min(self._openings, 30))
        span *= 1 + 0.1 * self._random()
        self._openings += 1
        self._retry_at = self._clock.monotonic() + span
        self._is_probing = False
        self._state.set(1)
        self._trips.inc()

    async def __aenter__(self) -> CircuitBreaker:
        if self._retry_at is not None:
            wait = self._retry_at - self._clock.monotonic()
            if wait > 0 or self._is_probing:
                raise BreakerOpen(self.name, max(wait, 0.1))
            self._is_probing = True
            self._state.set(0.5)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, (asyncio.CancelledError, GeneratorExit, BreakerOpen, Busy)):
            self._is_probing = False
        elif isinstance(error, TooSlow):
            # The server's own answer: one caller's dear questions must not shut the others out.
            self.record_success()
        elif isinstance(error, (Retryable, OSError, TimeoutError)):
            self.record_failure()
        else:
            self.record_success()


def backoff_seconds(
    attempt: int,
    base: float = 0.1,
    cap: float = 30.0,
    random: Callable[[], float] = random_module.random,
) -> float:
    """Full jitter: anything from 0 to base * 2^attempt (at most cap), for attempt 0, 1, 2, ..."""
    return float(random() * min(cap, base * 2 ** min(attempt, 30)))
