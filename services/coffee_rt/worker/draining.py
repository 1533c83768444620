"""The lane that moves the database's intake into orders: what was taken while the log was away.

Works whether the log is there or not. Several workers may be at it at once: a batch belongs to whoever takes it
out of the table, in the transaction that stores it. One that another worker holds is passed over, until
it has waited so long that the other must be hanging. One that fails alone holds up nobody: it is tried again
between looks for others, and parked as dead letters when it still fails while they are stored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from coffee_rt.domain.ids import id_time_ms
from coffee_rt.domain.wire import INTAKE_SHARD
from coffee_rt.errors import Retryable
from coffee_rt.runtime.clock import Clock
from coffee_rt.store.intake_contract import Intake, WaitingBatch
from coffee_rt.streams.contract import Delivery, EntryId
from coffee_rt.worker import metrics
from coffee_rt.worker.decoding import EntryDecoder
from coffee_rt.worker.storing import Batch, BatchStorer, StoredBatch

POLL_SECONDS = 0.5
"""Between two looks at an empty intake: an order of an outage is stored so much later."""
TAKEN_PAUSE_SECONDS = 0.05
BATCHES_MAX = 200
BYTES_MAX = 4 << 20
APART_BATCHES_MAX = 200
APART_BYTES_MAX = 32 << 20
"""Of those apart; at either limit others are not looked for. So many fail alone only when everything fails."""
HELD_SECONDS_MAX = 30.0
"""A batch that others have held for so long is waited for, and a transaction that hangs with it is ended."""


class IntakeDrain:
    """One task of a worker. `make_storer` gives it a storer whose stored batches go to its callback."""

    def __init__(
        self,
        intake: Intake,
        clock: Clock,
        decoder: EntryDecoder,
        make_storer: Callable[[Callable[[StoredBatch], Awaitable[None]]], BatchStorer],
        tell: Callable[[StoredBatch], Awaitable[None]],
        *,
        is_draining: Callable[[], bool],
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        self._intake = intake
        self._clock = clock
        self._decoder = decoder
        self._tell = tell
        self._storer = make_storer(self._on_stored)
        self._is_draining = is_draining
        self._pause = pause
        self._apart: deque[Batch] = deque()
        """Of one entry each, that failed alone."""
        self._taken = 0

    async def run(self) -> None:
        """Until the worker drains. What it leaves waits for the next worker."""
        while not self._is_draining():
            try:
                fresh = await self._look()
            except Retryable:
                # Counted and shown where batches are committed; without any, nothing is late.
                await self._pause(POLL_SECONDS * 4)
                continue
            self._taken = 0
            if fresh:
                await self._store(fresh)
            await self._try_again()
            if not self._taken:
                await self._pause(TAKEN_PAUSE_SECONDS if fresh else POLL_SECONDS)

    async def _look(self) -> list[WaitingBatch]:
        """The oldest that wait, without those apart."""
        apart = {
            delivery.batch_id: delivery for each in self._apart for delivery in each.deliveries
        }
        size = sum(len(delivery.data) for delivery in apart.values())
        if len(apart) >= APART_BATCHES_MAX or size >= APART_BYTES_MAX:
            return []
        waiting = await self._intake.waiting(BATCHES_MAX + len(apart), BYTES_MAX + size)
        return [batch for batch in waiting if batch.batch_id not in apart]

    async def _try_again(self) -> None:
        """Those apart, in turns, up to the first that fails again: what came meanwhile goes before the next."""
        turns = len(self._apart)
        while turns and not self._is_draining():
            await self._storer.store(self._apart.popleft(), self._set_apart, may_park=True)
            turns = 0 if len(self._apart) >= turns else turns - 1

    async def _set_apart(self, batch: Batch) -> None:
        self._apart.append(batch)

    async def _store(self, waiting: Sequence[WaitingBatch]) -> None:
        """All of them stored, dead, set apart, or left to another worker."""
        now_ms = int(self._clock.now() * 1000)
        deliveries = [_delivery(batch) for batch in waiting]
        writes = [self._decoder.decode(delivery, now_ms) for delivery in deliveries]
        is_held = waiting[0].waited_seconds > HELD_SECONDS_MAX
        turns: deque[Batch] = deque([Batch(deliveries, writes)])
        if is_held and len(waiting) > 1:
            # The oldest alone: waiting for one must not hold up those that are free.
            oldest, *rest = turns.popleft().halves_at(1)
            turns.extend([*rest, oldest])
        if is_held:
            turns[-1] = replace(turns[-1], is_claimed=True)
        while turns and not self._is_draining():
            await self._storer.store(turns.popleft(), self._set_apart, may_park=True)

    async def _on_stored(self, stored: StoredBatch) -> None:
        """Tell of what this worker took; a batch that another took is told of there."""
        outcomes = stored.committed.outcomes
        mine = [index for index, outcome in enumerate(outcomes) if not outcome.seen_before]
        if not mine:
            return
        batch = stored.batch
        self._taken += len(mine)
        metrics.INTAKE_DRAINED.inc(sum(batch.writes[index].records for index in mine))
        kept = replace(
            batch,
            deliveries=[batch.deliveries[index] for index in mine],
            writes=[batch.writes[index] for index in mine],
            prepared=None,
        )
        committed = replace(stored.committed, outcomes=[outcomes[index] for index in mine])
        await self._tell(StoredBatch(kept, committed))


def _delivery(batch: WaitingBatch) -> Delivery:
    """A batch as if it came from a stream, at the time in its id."""
    return Delivery(
        shard=INTAKE_SHARD,
        entry_id=EntryId(id_time_ms(batch.batch_id), 0),
        version=batch.version,
        batch_id=batch.batch_id,
        counter=0,
        records=batch.records,
        data=batch.data,
        attempts=1,
        reader_epoch=0,
        trace=batch.trace,
    )
