"""Where the shards' readers put deliveries and batches are taken from.

A batch closes at N records (or bytes), or T ms after its oldest entry was read. A reader that found less
than it asked for waits for that moment and then reads once more without waiting: two reads a batch and
shard, however many entries arrive meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from coffee_rt.runtime.clock import Clock
from coffee_rt.streams.contract import Delivery

PLENTY_RECORDS = 1_000
"""So many are worth preparing while another batch is committed. Fewer gather until that is done: a small
batch taken earlier would only wait behind it, and a third behind both."""
SWEEP_SECONDS_MAX = 0.05
"""A batch that is due waits so long for the readers' last look; a slow Redis must not hold it back."""


class Round:
    """The gathering of one batch, as its readers see it."""

    def __init__(self) -> None:
        self._due = asyncio.Event()
        self._swept = asyncio.Event()
        self._readers = 0

    async def wait_due(self) -> None:
        """Wait for the batch to be due. Whoever called must call `leave` after its last read."""
        self._readers += 1
        await self._due.wait()

    def leave(self) -> None:
        self._readers -= 1
        if not self._readers:
            self._swept.set()

    def release(self) -> None:
        """Let those who wait read once more; nobody waits for them."""
        self._due.set()

    async def sweep(self, clock: Clock, *, is_full: bool) -> None:
        """Say that the batch is due, and wait for the readers that have waited for it."""
        self._due.set()
        if self._readers and not is_full:
            await wait_at_most(clock, self._swept, SWEEP_SECONDS_MAX)


class Inbox:
    """Shared by the readers (put) and one taker. Holds a batch, and one read more of each shard."""

    def __init__(
        self, clock: Clock, *, records_max: int, bytes_max: int, linger_seconds: float
    ) -> None:
        self._clock = clock
        self._records_max = records_max
        self._bytes_max = bytes_max
        self._linger_seconds = linger_seconds
        self._held: deque[Delivery] = deque()
        self._records = 0
        self._bytes = 0
        self._opened_at = 0.0
        self._has_some = asyncio.Event()
        self._is_due = asyncio.Event()
        """Full, or in a hurry: take at once."""
        self._is_plenty = asyncio.Event()
        """Worth taking before it is wanted."""
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._is_hurried = False
        self._is_closed = False
        self.round = Round()

    @property
    def is_full(self) -> bool:
        return self._records >= self._records_max or self._bytes >= self._bytes_max

    @property
    def is_empty(self) -> bool:
        return not self._held

    @property
    def room_records(self) -> int:
        return max(0, self._records_max - self._records)

    async def wait_room(self) -> None:
        """Returns when a read may be put; at once in a hurry."""
        await self._has_room.wait()

    def put(self, deliveries: Sequence[Delivery]) -> None:
        if not deliveries:
            return
        if not self._held:
            self._opened_at = self._clock.monotonic()
        self._held.extend(deliveries)
        self._records += sum(map(_records_of, deliveries))
        self._bytes += sum(map(_bytes_of, deliveries))
        self._has_some.set()
        self._signal()

    def hurry(self) -> None:
        """From now on everything is due at once, and nobody waits for room."""
        self._is_hurried = True
        self._signal()

    def close(self) -> None:
        """No more will be put: what is held is due now, and then `take` gives None."""
        self._is_hurried = True
        self._is_closed = True
        self._has_some.set()
        self._signal()

    async def take(self, is_wanted: asyncio.Event) -> list[Delivery] | None:
        """The next batch when it is due, and wanted or worth it; None when closed and empty."""
        await self._has_some.wait()
        if not self._held:
            return None
        wait = self._opened_at + self._linger_seconds - self._clock.monotonic()
        if wait > 0:
            await wait_at_most(self._clock, self._is_due, wait)
        await _wait_either(is_wanted, self._is_plenty)
        finished, self.round = self.round, Round()
        await finished.sweep(self._clock, is_full=self.is_full or self._is_hurried)
        taken = self._take_held()
        if not self._held:
            # What was put during the sweep went along. Its readers wait for the next batch already, and
            # that begins only when somebody reads: all of them waiting would wait for ever.
            early, self.round = self.round, Round()
            early.release()
        return taken

    def _take_held(self) -> list[Delivery]:
        taken: list[Delivery] = []
        records = size = 0
        while self._held and records < self._records_max and size < self._bytes_max:
            delivery = self._held.popleft()
            taken.append(delivery)
            records += _records_of(delivery)
            size += len(delivery.data)
        self._records -= records
        self._bytes -= size
        if not self._held:
            self._has_some.clear()
            if self._is_closed:
                self._has_some.set()
        self._signal()
        return taken

    def _signal(self) -> None:
        if self.is_full or self._is_hurried:
            self._is_due.set()
        else:
            self._is_due.clear()
        if self._is_due.is_set() or self._records >= PLENTY_RECORDS:
            self._is_plenty.set()
        else:
            self._is_plenty.clear()
        if self.is_full and not self._is_hurried:
            self._has_room.clear()
        else:
            self._has_room.set()


def _records_of(delivery: Delivery) -> int:
    # An entry without records (a gap) counts as one: a stream of them has a bound too.
    return delivery.records or 1


def _bytes_of(delivery: Delivery) -> int:
    return len(delivery.data)


async def _wait_either(one: asyncio.Event, other: asyncio.Event) -> None:
    if one.is_set() or other.is_set():
        return
    waits = [asyncio.ensure_future(event.wait()) for event in (one, other)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiting in waits:
            waiting.cancel()


async def wait_at_most(clock: Clock, event: asyncio.Event, seconds: float) -> bool:
    """Whether the event was set within `seconds` of the clock."""
    if event.is_set():
        return True
    waiting = asyncio.ensure_future(event.wait())
    sleeping = asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait({waiting, sleeping}, return_when=asyncio.FIRST_COMPLETED)
        return event.is_set()
    finally:
        waiting.cancel()
        sleeping.cancel()
