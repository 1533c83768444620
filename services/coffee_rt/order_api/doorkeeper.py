"""Who of the connections that wait to be accepted is let in sooner, and who is told to come again.

The server accepts one a turn of the loop, which is enough while turns are short. When they are long, those who wait
are no longer in time whatever is done: each gets its 503 for a few system calls, its request unread, in a bounded
part of the process's time, so that orders of those let in keep the rest. When turns are short and yet some wait
(many came at once), more than one a turn are let in.

Whoever has hung up goes without an answer: nothing is stored for nobody. Reads and probes are never turned
away: they cost little, and a probe that is refused ends the pod.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from time import perf_counter

from coffee_rt.order_api.congestion import LOOK_SECONDS, Congestion
from coffee_rt.order_api.metrics import LEFT, REFUSALS, UNACCEPTED
from coffee_rt.runtime.clock import Clock
from coffee_rt.runtime.http import Serve
from coffee_rt.runtime.listen_queue import ListenQueue, first_bytes, has_left, turn_away

CALM_TURN_SECONDS = 0.005
"""Turns below this leave time for more clients."""
LET_IN_MAX = 32
"""At one look: their requests make the next turn longer."""
TIME_SHARE = 0.1
"""Of the process's time, spent on those who are turned away."""
BURST_SECONDS = 0.05
"""Of that time, kept at most for one look."""
_ORDER = b"POST"


class Doorkeeper:
    """One of a process: `tend` looks after the queue of a listener until the drain."""

    def __init__(
        self,
        clock: Clock,
        congestion: Congestion,
        answer: bytes,
        is_draining: Callable[[], bool],
        *,
        wait_seconds_max: float,
        turn_seconds_max: float,
    ) -> None:
        """`answer`: the whole of the refusal. Who waited for `turn_seconds_max` behind long turns is turned away,
        and after `wait_seconds_max` anyone."""
        self._clock = clock
        self._congestion = congestion
        self._answer = answer
        self._is_draining = is_draining
        self._wait_seconds_max = wait_seconds_max
        self._turn_seconds_max = turn_seconds_max
        self._looked_at = clock.monotonic()
        self._time_left = 0.0
        self._serving: set[asyncio.Task[None]] = set()

    async def tend(self, queue: ListenQueue, serve: Serve) -> None:
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            # From then on the listener may be closed.
            if self._is_draining():
                return
            self.look(queue, serve)

    def look(self, queue: ListenQueue, serve: Serve) -> None:
        """Let in or turn away as many as the moment allows."""
        now = self._clock.monotonic()
        gained = (now - self._looked_at) * TIME_SHARE
        self._time_left = min(self._time_left + gained, BURST_SECONDS)
        self._looked_at = now
        waiting = queue.look(now)
        UNACCEPTED.set(max(waiting, 0))
        if waiting <= 0:
            return
        is_calm = (
            self._congestion.refusal is None and self._congestion.late_seconds < CALM_TURN_SECONDS
        )
        wait_max = self._wait_seconds_max if is_calm else self._turn_seconds_max
        let_in = LET_IN_MAX if is_calm else 0
        began = perf_counter()
        for _ in range(waiting):
            is_late = queue.first_waited(now) > wait_max
            if not (let_in or is_late) or perf_counter() - began > self._time_left:
                break
            connection = queue.take()
            if connection is None:
                break
            if has_left(connection):
                LEFT.inc()
                connection.close()
            elif is_late and first_bytes(connection, len(_ORDER)) in (_ORDER, b""):
                REFUSALS.labels("overloaded").inc()
                turn_away(connection, self._answer)
            else:
                let_in = max(let_in - 1, 0)
                self._serve(connection, serve)
        self._time_left -= perf_counter() - began

    def _serve(self, connection: socket.socket, serve: Serve) -> None:
        task = asyncio.get_running_loop().create_task(serve(connection))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
