"""Whether this process keeps up: how long a request that arrives now would wait, and what to say when that is
too long.

Two waits are looked at: for a turn of the event loop (the process is out of CPU), and for the flushes before it
(the log is slow). Turns are bounded more tightly: a log that stalls soon goes on where it was, but behind a long
turn stands a queue of connections that nobody has looked at yet, and it grows.

An order that would wait longer than its client does is work for nobody, and it makes all behind it late as well: so
it is refused at once, before anything of it is read, while those let in are still answered in time. One slow turn is no overload; two in a row are.
"""

from __future__ import annotations

from collections.abc import Callable

from coffee_rt.errors import Overload
from coffee_rt.order_api.metrics import WAIT_SECONDS
from coffee_rt.runtime.clock import Clock

LOOK_SECONDS = 0.02
"""Between two looks. The later a look comes, the longer is a turn of the loop."""
RETRY_AFTER_SECONDS = 1.0


class Congestion:
    """One of a process: `run` looks, every request reads `refusal`."""

    def __init__(
        self,
        clock: Clock,
        log_wait_seconds: Callable[[], float],
        *,
        wait_seconds_max: float,
        turn_seconds_max: float,
    ) -> None:
        """`log_wait_seconds`: the expected wait for the log, of the shard with the shortest. `wait_seconds_max`
        bounds that and the turns together, `turn_seconds_max` each of two turns in a row."""
        self._clock = clock
        self._log_wait_seconds = log_wait_seconds
        self._wait_seconds_max = wait_seconds_max
        self._turn_seconds_max = turn_seconds_max
        self.late_seconds = 0.0
        """How much later than asked for the last look came: how long a turn of the loop is."""
        self.refusal: Overload | None = None
        """Why orders are refused now; None while they are taken."""

    async def run(self) -> None:
        while True:
            due = self._clock.monotonic() + LOOK_SECONDS
            await self._clock.sleep(LOOK_SECONDS)
            self.look(self._clock.monotonic() - due)

    def look(self, late_seconds: float) -> None:
        """Decide anew, `late_seconds` being how much later than asked for this look came."""
        turn = min(late_seconds, self.late_seconds)
        self.late_seconds = late_seconds
        log_wait = self._log_wait_seconds()
        # A request waits up to a turn to be read, and up to another to be answered.
        wait = 2 * turn + log_wait
        WAIT_SECONDS.set(wait)
        if wait <= self._wait_seconds_max and turn <= self._turn_seconds_max:
            self.refusal = None
        elif log_wait > self._wait_seconds_max / 2:
            detail = "The order log is too slow at the moment."
            self.refusal = Overload("log-slow", detail, RETRY_AFTER_SECONDS)
        else:
            self.refusal = overloaded()

    def refuse(self, waited_seconds: float) -> Overload | None:
        """Why an order is refused that was read so long ago and not looked at until now; None if it is not.

        Looks come once a turn: they know of a crowd when its turn is over. This keeps the turn itself short, as
        what has waited too long is let go for next to nothing instead of making all behind it wait as well.
        """
        if waited_seconds > self._turn_seconds_max:
            return overloaded()
        return self.refusal


def overloaded() -> Overload:
    detail = "More orders arrive than can be taken at the moment."
    return Overload("overloaded", detail, RETRY_AFTER_SECONDS)
