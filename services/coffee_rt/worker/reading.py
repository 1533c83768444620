"""One task a shard: reads new entries, re-reads its own pending ones, claims those of dead workers.

All reads of a shard happen here, one after the other. Nothing is acknowledged here. An entry that is held
in memory (see Held) is not taken up a second time when it is read again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from coffee_rt.errors import BreakerOpen, Retryable
from coffee_rt.runtime.breaker import CircuitBreaker, backoff_seconds
from coffee_rt.runtime.clock import Clock
from coffee_rt.streams.contract import ENTRY_ID_ZERO, Delivery, EntryId, GroupReader
from coffee_rt.worker import metrics
from coffee_rt.worker.inbox import Inbox

FIRST_READ_ENTRIES = 16
"""Asked for until it is known how large entries are."""
_SCAN_ENTRIES = 256


@dataclass(frozen=True, slots=True)
class ReadLimits:
    entries_max: int = 500
    wait_seconds: float = 0.5
    claim_every_seconds: float = 5.0
    claim_idle_seconds_min: float = 30.0
    claim_entries_max: int = 128
    suspect_attempts_min: int = 5
    backoff_seconds_max: float = 2.0


class Held:
    """Entries read and not yet acknowledged or dropped, and shards whose own pending entries must be
    read again. Shared by all tasks of the worker."""

    def __init__(self, shards: int) -> None:
        self._entries: list[set[EntryId]] = [set() for _ in range(shards)]
        self._records = 0
        self._rescans = [True] * shards

    def take_new(self, deliveries: Iterable[Delivery]) -> list[Delivery]:
        """Those not held yet; they are from now on."""
        fresh = []
        for delivery in deliveries:
            held = self._entries[delivery.shard]
            if delivery.entry_id not in held:
                held.add(delivery.entry_id)
                self._records += delivery.records
                fresh.append(delivery)
        metrics.RECORDS_HELD.set(self._records)
        return fresh

    def release(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            held = self._entries[delivery.shard]
            if delivery.entry_id in held:
                held.discard(delivery.entry_id)
                self._records -= delivery.records
        metrics.RECORDS_HELD.set(self._records)

    def ask_rescan(self, shard: int) -> None:
        """Something of this shard may be pending for us without being held."""
        self._rescans[shard] = True

    def must_rescan(self, shard: int) -> bool:
        """Asks and clears."""
        wanted, self._rescans[shard] = self._rescans[shard], False
        return wanted


class ShardReader:
    """The reading task of one shard. Cancelling it drops the shard's connection."""

    def __init__(
        self,
        shard: int,
        *,
        reader: GroupReader,
        inbox: Inbox,
        set_apart: Callable[[list[Delivery]], Awaitable[None]],
        held: Held,
        log_breaker: CircuitBreaker,
        store_breaker: CircuitBreaker,
        clock: Clock,
        limits: ReadLimits,
        is_draining: Callable[[], bool],
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        self._shard = shard
        self._reader = reader
        self._inbox = inbox
        self._set_apart = set_apart
        self._held = held
        self._log_breaker = log_breaker
        self._store_breaker = store_breaker
        self._clock = clock
        self._limits = limits
        self._is_draining = is_draining
        self._pause = pause
        self._entries = min(FIRST_READ_ENTRIES, limits.entries_max)
        self._records_an_entry = 1.0
        self._claim_at = clock.monotonic()

    async def run(self) -> None:
        """Until the drain."""
        failures = 0
        while not self._is_draining():
            try:
                await self._step()
                failures = 0
            except BreakerOpen as error:
                await self._pause(min(error.retry_after_seconds, 1.0))
            except Retryable:
                # A reply that was lost may have brought entries that only Redis knows are ours.
                self._held.ask_rescan(self._shard)
                metrics.READ_FAILURES.labels(str(self._shard)).inc()
                await self._pause(backoff_seconds(failures, cap=self._limits.backoff_seconds_max))
                failures += 1

    async def _step(self) -> None:
        if self._held.must_rescan(self._shard):
            await self._scan_own()
        if self._clock.monotonic() >= self._claim_at and not self._store_breaker.is_open:
            await self._claim()
        await self._inbox.wait_room()
        if self._is_draining():
            return
        if not await self._read(self._limits.wait_seconds) or self._inbox.is_full:
            return
        if self._inbox.is_empty:
            # What was read is held already, or was taken: no batch is being gathered to wait for.
            return
        # Fewer than asked for: what arrives until the batch is due comes with one more read.
        gathering = self._inbox.round
        await gathering.wait_due()
        try:
            if not self._inbox.is_full:
                await self._read(0)
        finally:
            gathering.leave()

    async def _read(self, wait_seconds: float) -> bool:
        """Read new entries; whether there were some, and fewer than asked for."""
        asked = self._entries_to_ask()
        async with self._log_breaker:
            deliveries = await self._reader.read(self._shard, asked, wait_seconds)
        if not deliveries:
            return False
        self._learn_size(deliveries, asked)
        self._inbox.put(self._held.take_new(deliveries))
        return len(deliveries) < asked

    def _entries_to_ask(self) -> int:
        """So many entries that their records fit the inbox, as far as the last read tells."""
        fitting = int(self._inbox.room_records / self._records_an_entry) + 1
        return max(1, min(fitting, self._entries))

    def _learn_size(self, deliveries: list[Delivery], asked: int) -> None:
        records = sum(delivery.records for delivery in deliveries)
        self._records_an_entry = max(1.0, records / len(deliveries))
        if len(deliveries) >= asked:
            self._entries = min(self._entries * 2, self._limits.entries_max)

    async def _scan_own(self) -> None:
        """What is pending for us and not held: after a start, a reconnect, or a lost reply."""
        after = ENTRY_ID_ZERO
        try:
            while not self._is_draining():
                asked = min(_SCAN_ENTRIES, self._entries_to_ask())
                async with self._log_breaker:
                    page = await self._reader.read_own_pending(self._shard, asked, after)
                if not page:
                    return
                self._learn_size(page, asked)
                after = page[-1].entry_id
                fresh = self._held.take_new(page)
                suspects = [d for d in fresh if d.attempts > self._limits.suspect_attempts_min]
                plain = [d for d in fresh if d.attempts <= self._limits.suspect_attempts_min]
                # Put before waiting: an entry that is held must be on its way.
                self._inbox.put(plain)
                for suspect in suspects:
                    await self._set_apart([suspect])
                await self._inbox.wait_room()
        except BaseException:
            self._held.ask_rescan(self._shard)
            raise

    async def _claim(self) -> None:
        """Take over what others left, a page at a time. Also ours whose acknowledgement was dropped."""
        asked = min(self._limits.claim_entries_max, self._entries_to_ask())
        async with self._log_breaker:
            claimed = await self._reader.claim(
                self._shard, self._limits.claim_idle_seconds_min, asked
            )
        if not claimed:
            self._claim_at = self._clock.monotonic() + self._limits.claim_every_seconds
            return
        self._learn_size(claimed, asked)
        fresh = self._held.take_new(claimed)
        metrics.ENTRIES_CLAIMED.inc(len(fresh))
        plain = [d for d in fresh if d.attempts <= self._limits.suspect_attempts_min]
        if plain:
            await self._set_apart(plain)
        for suspect in fresh:
            if suspect.attempts > self._limits.suspect_attempts_min:
                await self._set_apart([suspect])
