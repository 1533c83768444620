"""What order_api keeps up to date beside the requests: the state of the log, the API keys.

Requests only read what is kept here; none of them waits for a server's answer to a question about itself.
"""

from __future__ import annotations

from collections.abc import Callable

from coffee_rt.domain.keys import KeyRing
from coffee_rt.errors import CoffeeRtError, Retryable
from coffee_rt.order_api.intake_queue import IntakeQueue
from coffee_rt.order_api.metrics import KEYS_AGE_SECONDS
from coffee_rt.runtime.clock import Clock
from coffee_rt.runtime.health import Health
from coffee_rt.streams.admission import Admission
from coffee_rt.streams.contract import OrderProducer

WATCH_SECONDS = 1.0
FAILURES_UNTIL_NOT_READY = 3
"""One lost answer is no outage; three seconds of them are."""


class IntakeWatch:
    """Looks at the log once a second: renews the admission, and says whether the process is ready. It is
    while PostgreSQL is away (a backlog is no fault of this process), and while the log is as long as the
    database's intake takes its place."""

    def __init__(
        self,
        admission: Admission,
        producer: OrderProducer,
        health: Health,
        clock_offset_seconds_max: float,
        intake: IntakeQueue | None = None,
    ) -> None:
        self._intake = intake
        self._admission = admission
        self._producer = producer
        self._health = health
        self._clock_offset_max = clock_offset_seconds_max
        self._failures = 0
        health.set("log", False, "not asked yet")

    async def run(self, clock: Clock) -> None:
        while True:
            await self.refresh()
            await clock.sleep(WATCH_SECONDS)

    async def refresh(self) -> None:
        try:
            await self._admission.refresh()
        except Retryable as error:
            self._failures += 1
            if self._failures >= FAILURES_UNTIL_NOT_READY:
                # Nothing is known of the log now: appends to it fail on their own, and say so.
                self._admission.refusal = None
                is_degraded = self._intake is not None and await self._intake.is_usable()
                detail = f"away ({error}); orders go to the intake" if is_degraded else str(error)
                self._health.set("log", is_degraded, detail)
            return
        self._failures = 0
        self._health.set("log", True)
        offset = self._producer.clock_offset_seconds
        is_near = abs(offset) <= self._clock_offset_max
        self._health.set("clock", is_near, f"{offset:+.3f} s from Redis's clock")


class KeyWatch:
    """Says how old the API keys are, after each load. PostgreSQL may be away: then they grow older, no more."""

    def __init__(
        self, ring: KeyRing, clock: Clock, on_failure: Callable[[CoffeeRtError], None]
    ) -> None:
        """`on_failure` is told of the first failure of a row."""
        self._ring = ring
        self._clock = clock
        self._on_failure = on_failure
        self._is_failing = False

    def see(self, failure: Retryable | None) -> None:
        if failure is not None and not self._is_failing:
            self._on_failure(failure)
        self._is_failing = failure is not None
        KEYS_AGE_SECONDS.set(self._ring.age_seconds(self._clock.monotonic()))
