"""Redis's clock as seen from here, learned from the ids of the entries it gives.

An id is given between our sending and our receiving, so each reply bounds the offset; the reply that came
back fastest bounds it best. Order ids minted on this clock agree with the entries they travel in, however
wrong the clock of this machine is.
"""

from __future__ import annotations

from coffee_rt.runtime.clock import Clock

SAMPLE_SECONDS_MAX = 10.0
"""A fast sample rules this long over slower ones; longer would miss a clock that is being corrected."""


class RedisClock:
    """Owned by one producer."""

    __slots__ = ("_clock", "_learned_at", "_round_trip", "offset_seconds")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._round_trip = float("inf")
        self._learned_at = 0.0
        self.offset_seconds = 0.0

    @property
    def is_known(self) -> bool:
        """Whether any reply has told it."""
        return self._round_trip != float("inf")

    def now_ms(self) -> int:
        return int((self._clock.now() + self.offset_seconds) * 1000)

    def learn(self, redis_ms: int, sent_at: float, received_at: float) -> bool:
        """Take a sample (our Unix seconds around it); whether the offset changed."""
        round_trip = received_at - sent_at
        is_old = not 0 <= received_at - self._learned_at <= SAMPLE_SECONDS_MAX
        if round_trip < 0 or (round_trip > self._round_trip and not is_old):
            return False
        seconds = redis_ms / 1000
        is_agreeing = seconds - received_at <= self.offset_seconds <= seconds + 0.001 - sent_at
        if round_trip > self._round_trip and is_agreeing:
            # The middle of a slow answer may be off by half of it, and ids minted ahead of their entries
            # would not be found in the log: what is known is kept as long as nothing speaks against it.
            self._learned_at = received_at
            return False
        self._round_trip = round_trip
        self._learned_at = received_at
        # Half a millisecond more: Redis cuts the rest off.
        self.offset_seconds = seconds + 0.0005 - (sent_at + received_at) / 2
        return True
