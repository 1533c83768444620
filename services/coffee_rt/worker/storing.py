"""Commits batches until each of their entries is stored, parked, or left pending. Exactly once is the
store's; this decides what to try next.

BadData: bisect by entry in separate transactions, the last one record by record. Retryable: back off and
try again, in halves after some failures. An entry that alone keeps failing while others are committed is
parked as dead letters; how often it was delivered is never a verdict. Draining: a failure leaves the rest
pending for another worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Protocol, TypeVar

from coffee_rt.errors import BreakerOpen, Bug, NotExecuted, Retryable
from coffee_rt.runtime.breaker import CircuitBreaker, backoff_seconds
from coffee_rt.runtime.clock import Clock
from coffee_rt.runtime.logs import Log
from coffee_rt.store.contract import (
    BadData,
    Committed,
    EntryWrite,
    OrderWriter,
    PreparedBatch,
    ViewsTooNew,
)
from coffee_rt.streams.contract import Delivery
from coffee_rt.worker import metrics
from coffee_rt.worker.decoding import EntryDecoder

T = TypeVar("T")
_records_of = attrgetter("records")


class Offload(Protocol):
    """Runs CPU work, perhaps beside the event loop."""

    async def __call__(self, work: Callable[[], T]) -> T: ...


OFFLOAD_RECORDS_MIN = 500
"""Smaller batches are encoded where they are: handing them over would take longer."""

CLAIMED_AFTER_FAILURES = 2
"""Failures after which a batch is committed as claimed entries are: with a short wait for locks, ending a
worker that hangs with our entries in its transaction (our own predecessor, perhaps)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries on their way to the store, with the deliveries they came in, in the same order."""

    deliveries: Sequence[Delivery]
    writes: Sequence[EntryWrite]
    is_claimed: bool = False
    prepared: PreparedBatch | None = None
    failures: int = 0
    commits_seen: int | None = None
    """Commits of the worker when this entry, alone, failed the last time."""
    confirmed: int = 0
    """Failures in a row with commits of others in between."""

    @property
    def records(self) -> int:
        return sum(map(_records_of, self.writes))

    def halves(self) -> list[Batch]:
        return self.halves_at(len(self.writes) // 2)

    def halves_at(self, middle: int) -> list[Batch]:
        """The entries before and from `middle`."""
        return [
            replace(self, deliveries=self.deliveries[part], writes=self.writes[part], prepared=None)
            for part in (slice(None, middle), slice(middle, None))
        ]


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch that is committed: announce, then acknowledge."""

    batch: Batch
    committed: Committed
    timeline: str = ""
    """Of PostgreSQL, as the worker knew it before the commit."""


@dataclass(frozen=True, slots=True)
class StoreLimits:
    suspect_attempts_min: int = 5
    park_failures: int = 5
    backoff_seconds_max: float = 2.0


class BatchStorer:
    """Used by the main lane and the lane apart at once; counts commits of both, which is how a suspect
    knows that others succeed."""

    def __init__(
        self,
        *,
        writer: OrderWriter,
        decoder: EntryDecoder,
        breaker: CircuitBreaker,
        clock: Clock,
        log: Log,
        limits: StoreLimits,
        is_draining: Callable[[], bool],
        pause: Callable[[float], Awaitable[None]],
        on_stored: Callable[[StoredBatch], Awaitable[None]],
        on_dropped: Callable[[Sequence[Delivery]], None],
        offload: Offload,
        get_timeline: Callable[[], str],
    ) -> None:
        self._writer = writer
        self._decoder = decoder
        self._breaker = breaker
        self._clock = clock
        self._log = log
        self._limits = limits
        self._is_draining = is_draining
        self._pause = pause
        self._on_stored = on_stored
        self._on_dropped = on_dropped
        self._offload = offload
        self._get_timeline = get_timeline
        self._commits = 0
        self.last_failure = ""
        """Why the newest commit failed; empty when it succeeded."""

    async def prepare(self, batch: Batch) -> Batch:
        """The batch with its payload encoded. Data that can't be encoded is found when it is stored."""
        try:
            return replace(batch, prepared=await self._encode(batch))
        except BadData:
            return batch

    async def _encode(self, batch: Batch) -> PreparedBatch:
        if batch.records < OFFLOAD_RECORDS_MIN:
            return self._writer.prepare(batch.writes)
        return await self._offload(lambda: self._writer.prepare(batch.writes))

    async def store(
        self, batch: Batch, set_apart: Callable[[Batch], Awaitable[None]], *, may_park: bool = False
    ) -> None:
        """Returns when every entry is committed, handed to `set_apart`, or dropped (left pending).

        Handed over are entries that keep failing alone, so that they hold up nobody. With `may_park`
        (the lane apart), such an entry may come back from there as dead letters.
        """
        waiting = [batch]
        while waiting:
            current = waiting.pop()
            timeline = self._get_timeline()
            try:
                committed = await self._commit(current)
            except BadData as error:
                metrics.COMMIT_FAILURES.labels("bad_data").inc()
                self._log.warning("bad data", entries=len(current.writes), error=str(error))
                if len(current.writes) == 1:
                    raise Bug(f"an entry's dead letters are bad data: {error}") from error
                waiting += reversed(current.halves())
            except Retryable as error:
                failed = await self._after_failure(current, error)
                if self._is_draining():
                    for rest in (failed, *waiting):
                        self._on_dropped(rest.deliveries)
                    return
                is_new = failed.failures > current.failures
                if not is_new or failed.failures < self._limits.suspect_attempts_min:
                    waiting.append(failed)
                elif len(failed.writes) > 1:
                    # So that two more failures split the halves again.
                    failures = self._limits.suspect_attempts_min - 2
                    waiting += [replace(half, failures=failures) for half in failed.halves()]
                else:
                    if may_park:
                        failed = self._judge(failed, error)
                    await set_apart(replace(failed, is_claimed=True))
            else:
                self._commits += 1
                await self._on_stored(StoredBatch(current, committed, timeline))

    async def _commit(self, batch: Batch) -> Committed:
        """One attempt. A single entry with bad data is stored record by record."""
        is_claimed = batch.is_claimed or batch.failures >= CLAIMED_AFTER_FAILURES
        started = self._clock.monotonic()
        async with self._breaker:
            try:
                prepared = batch.prepared
                if prepared is None or batch.failures:
                    # A prepared batch is used once; and after a failure the views may be others.
                    prepared = await self._encode(batch)
                committed = await self._writer.commit(prepared, is_claimed=is_claimed)
            except BadData:
                if len(batch.writes) > 1:
                    raise
                committed = await self._writer.store_single(batch.writes[0])
        self.last_failure = ""
        metrics.COMMIT_SECONDS.observe(self._clock.monotonic() - started)
        return committed

    async def _after_failure(self, batch: Batch, error: Retryable) -> Batch:
        """Count the failure and wait; an attempt that reached nobody says nothing about the batch."""
        self.last_failure = str(error)
        if self._is_draining():
            return batch
        if isinstance(error, BreakerOpen):
            await self._pause(min(error.retry_after_seconds, 1.0))
            return batch
        metrics.COMMIT_FAILURES.labels("retryable").inc()
        self._log.warning(
            "commit failed", entries=len(batch.writes), attempt=batch.failures, error=str(error)
        )
        await self._pause(backoff_seconds(batch.failures, cap=self._limits.backoff_seconds_max))
        if isinstance(error, NotExecuted | ViewsTooNew):
            return batch
        return replace(batch, failures=batch.failures + 1)

    def _judge(self, batch: Batch, error: Retryable) -> Batch:
        """A single entry failed alone: once more, or parked because others were stored meanwhile."""
        is_confirmed = batch.commits_seen is not None and self._commits > batch.commits_seen
        confirmed = batch.confirmed + 1 if is_confirmed else batch.confirmed
        if confirmed < self._limits.park_failures:
            return replace(batch, commits_seen=self._commits, confirmed=confirmed)
        [delivery] = batch.deliveries
        self._log.error(
            "entry parked: it fails alone while others are stored",
            shard=delivery.shard,
            entry=str(delivery.entry_id),
            error=str(error),
        )
        metrics.ENTRIES_PARKED.inc()
        parked = self._decoder.park(delivery, f"fails while others are stored: {error}")
        return replace(batch, writes=[parked], prepared=None, failures=0, confirmed=0)


async def run_inline(work: Callable[[], T]) -> T:
    """Offload that does not: for tests and simulations."""
    return work()


async def run_in_thread(work: Callable[[], T]) -> T:
    """In a thread, so that the transaction under way goes on meanwhile."""
    return await asyncio.to_thread(work)
