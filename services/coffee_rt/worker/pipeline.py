"""The worker: readers -> inbox -> decode and prepare -> commit -> announce and acknowledge.

Decoding and preparing of the next batch goes on while this one is committed. What can't go with the others
(claimed, suspect or failing entries) takes the lane apart. Every queue between the stages is bounded; a slow
stage makes the readers wait, and the log holds the rest.

Draining: readers stop, what was read is committed and acknowledged, then the consumer leaves. An entry of
which the outcome is unknown stays pending.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from coffee_rt.domain.wire import UnknownWireVersion
from coffee_rt.errors import Retryable
from coffee_rt.runtime import tracing
from coffee_rt.runtime.breaker import backoff_seconds
from coffee_rt.store.contract import EntryWrite
from coffee_rt.store.intake_contract import Intake
from coffee_rt.streams.contract import Delivery
from coffee_rt.worker.announcing import Announcer
from coffee_rt.worker.care import Caretaker
from coffee_rt.worker.decoding import EntryDecoder
from coffee_rt.worker.draining import IntakeDrain
from coffee_rt.worker.inbox import Inbox, wait_at_most
from coffee_rt.worker.parts import WorkerLimits, WorkerParts
from coffee_rt.worker.reading import Held, ShardReader
from coffee_rt.worker.storing import (
    OFFLOAD_RECORDS_MIN,
    Batch,
    BatchStorer,
    StoredBatch,
    run_inline,
)
from coffee_rt.worker.unknown import UnknownEntries

APART_BATCHES_MAX = 4
"""Claimed pages and suspects waiting for the lane apart; at the limit, readers wait."""
UNTOLD_BATCHES_MAX = 1
"""Committed batches waiting to be announced and acknowledged."""
HEALTH_SECONDS = 1.0


class Worker:
    """One consumer of the group. `run` once; `begin_drain` ends it; cancelling `run` is a crash."""

    def __init__(self, parts: WorkerParts, limits: WorkerLimits | None = None) -> None:
        self._parts = parts
        self._limits = limits = limits or WorkerLimits()
        self._drain = asyncio.Event()
        self._inbox = Inbox(
            parts.clock,
            records_max=limits.batch_records_max,
            bytes_max=limits.batch_bytes_max,
            linger_seconds=limits.linger_seconds,
        )
        self._held = Held(parts.reader.shards)
        self._apart: asyncio.Queue[list[Delivery] | Batch | None] = asyncio.Queue(APART_BATCHES_MAX)
        self._prepared: asyncio.Queue[Batch | None] = asyncio.Queue(1)
        self._is_intake_left = asyncio.Event()
        """The intake's lane tells of no more commits."""
        self._is_idle = asyncio.Event()
        """The main lane has nothing to commit."""
        self._untold: asyncio.Queue[StoredBatch | None] = asyncio.Queue(UNTOLD_BATCHES_MAX)
        self._unknown = UnknownEntries(
            parts.log_keeper,
            parts.log_breaker,
            parts.clock,
            limits.care.group,
            limits.read.claim_every_seconds,
        )
        self._decoder = EntryDecoder(limits.care.retention_days)
        self._storer = self._make_storer()
        self._intake_drain = self._make_drain(parts.intake) if parts.intake else None
        self._caretaker = Caretaker(
            log_keeper=parts.log_keeper,
            store_keeper=parts.store_keeper,
            log_breaker=parts.log_breaker,
            store_breaker=parts.store_breaker,
            clock=parts.clock,
            log=parts.log,
            limits=limits.care,
            intake=parts.intake,
        )
        self._announcer = Announcer(
            channels=parts.channels,
            reader=parts.reader,
            held=self._held,
            breaker=parts.log_breaker,
            clock=parts.clock,
            currency_decimals=limits.currency_decimals,
            follow_timeline=self._caretaker.follow_timeline,
        )

    def begin_drain(self) -> None:
        """Read no more; commit and acknowledge what was read; then `run` returns."""
        self._drain.set()
        self._inbox.hurry()

    @property
    def is_draining(self) -> bool:
        return self._drain.is_set()

    async def run(self) -> None:
        """Until drained. Raises Rejected where the store belongs to a log with another number of shards."""
        self._report_health("starting")
        early = await self._start()
        beside = [
            asyncio.create_task(self._caretaker.run_often(), name="care-often"),
            asyncio.create_task(self._caretaker.run_hourly(), name="care-hourly"),
            asyncio.create_task(self._watch_health(), name="health"),
            asyncio.create_task(self._unknown.review(), name="unknown"),
        ]
        lanes = [asyncio.create_task(work, name=name) for name, work in self._lanes()] + early
        drain = asyncio.create_task(self._limit_drain(lanes), name="drain-limit")
        try:
            await _run_until_done(lanes, [*beside, drain])
        finally:
            await _cancel([*beside, drain, *lanes])
        await self._parts.reader.leave()

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not through the beginning of a drain."""
        await wait_at_most(self._parts.clock, self._drain, seconds)

    async def _start(self) -> list[asyncio.Task[None]]:
        """Prepare store and log, as long as it takes; not ready meanwhile. The lanes that need no log run as
        soon as the store is there: what waits in the intake waits because the log is away."""
        early: list[asyncio.Task[None]] = []
        try:
            await self._prepare(early)
        except BaseException:
            await _cancel(early)
            raise
        return early or self._begin_storing()

    def _begin_storing(self) -> list[asyncio.Task[None]]:
        works = {"intake": self._drain_intake(), "announce": self._announce()}
        return [asyncio.create_task(work, name=name) for name, work in works.items()]

    async def _prepare(self, early: list[asyncio.Task[None]]) -> None:
        failures = 0
        while not self.is_draining:
            for task in early:
                if task.done():
                    task.result()
            try:
                if not early:
                    await self._parts.check_store()
                    await self._caretaker.ensure_partitions()
                    await self._parts.writer.refresh_catalogue()
                    early += self._begin_storing()
                # The log first: a store that belongs to no log yet is bound to the one that is checked.
                await self._parts.check_log()
                await self._caretaker.prepare_store()
                await self._caretaker.prepare_log()
                return
            except Retryable as error:
                self._report_health(str(error))
                self._parts.log.warning("waiting for the servers", error=str(error))
                cap = self._limits.read.backoff_seconds_max
                await self._pause(backoff_seconds(failures, cap=cap))
                failures += 1

    def _lanes(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        return [
            ("read", self._read_all()),
            ("prepare", self._prepare_batches()),
            ("store", self._store_batches()),
            ("store-apart", self._store_apart()),
        ]

    def _make_drain(self, intake: Intake) -> IntakeDrain:
        return IntakeDrain(
            intake,
            self._parts.clock,
            EntryDecoder(self._limits.care.retention_days),
            self._make_storer,
            self._untold.put,
            is_draining=lambda: self.is_draining,
            pause=self._pause,
        )

    def _make_storer(
        self, on_stored: Callable[[StoredBatch], Awaitable[None]] | None = None
    ) -> BatchStorer:
        """For the log's lanes; with `on_stored` for the intake's, whose batches are held nowhere."""
        return BatchStorer(
            writer=self._parts.writer,
            decoder=self._decoder,
            breaker=self._parts.store_breaker,
            clock=self._parts.clock,
            log=self._parts.log,
            limits=self._limits.store,
            is_draining=lambda: self.is_draining,
            pause=self._pause,
            on_stored=on_stored or self._untold.put,
            on_dropped=(lambda _: None) if on_stored else self._held.release,
            offload=self._parts.offload,
            get_timeline=lambda: self._caretaker.timeline,
        )

    async def _read_all(self) -> None:
        """All shards until the drain; then the stages after it are told that nothing more comes."""
        readers = [
            asyncio.create_task(self._make_reader(shard).run(), name=f"read-{shard}")
            for shard in range(self._parts.reader.shards)
        ]
        try:
            await _run_until_done(readers)
        finally:
            await _cancel(readers)
        self._inbox.close()

    def _make_reader(self, shard: int) -> ShardReader:
        return ShardReader(
            shard,
            reader=self._parts.reader,
            inbox=self._inbox,
            set_apart=self._apart.put,
            held=self._held,
            log_breaker=self._parts.log_breaker,
            store_breaker=self._parts.store_breaker,
            clock=self._parts.clock,
            limits=self._limits.read,
            is_draining=lambda: self.is_draining,
            pause=self._pause,
        )

    async def _prepare_batches(self) -> None:
        """Decode and encode while another batch is committed. At the end, None."""
        while True:
            deliveries = await self._inbox.take(self._is_idle)
            self._is_idle.clear()
            if deliveries is None:
                await self._prepared.put(None)
                return
            batch = await self._decode(deliveries, self._decoder)
            if batch.writes:
                await self._prepared.put(await self._storer.prepare(batch))
            else:
                self._is_idle.set()

    async def _drain_intake(self) -> None:
        """Beside the other lanes, on connections of its own."""
        if self._intake_drain is not None:
            await self._intake_drain.run()
        self._is_intake_left.set()

    async def _store_batches(self) -> None:
        """The main lane. At the end, None to the lane apart."""
        while True:
            if self._prepared.empty():
                self._is_idle.set()
            batch = await self._prepared.get()
            if batch is None:
                await self._apart.put(None)
                return
            with _span(batch):
                await self._storer.store(batch, self._apart.put)

    async def _store_apart(self) -> None:
        """Claimed entries, suspects, and those that fail alone, in turns. At the end, None to the
        announcer."""
        turns: deque[Batch] = deque()
        decoder = EntryDecoder(self._limits.care.retention_days)

        async def wait_turn(batch: Batch) -> None:
            turns.append(batch)

        is_over = False
        while turns or not is_over:
            if not is_over and (not turns or not self._apart.empty()):
                item = await self._apart.get()
                if item is None:
                    is_over = True
                    continue
                if isinstance(item, list):
                    item = replace(await self._decode(item, decoder), is_claimed=True)
                turns.append(item)
            batch = turns.popleft()
            if batch.writes:
                with _span(batch):
                    await self._storer.store(batch, wait_turn, may_park=True)
        await self._is_intake_left.wait()
        await self._untold.put(None)

    async def _announce(self) -> None:
        while (stored := await self._untold.get()) is not None:
            await self._announcer.finish(stored)

    async def _decode(self, deliveries: Sequence[Delivery], decoder: EntryDecoder) -> Batch:
        """Deliveries as a batch. Those of an unknown wire version are left pending and not held: they come
        again by a claim, perhaps of a newer release."""
        now_ms = int(self._parts.clock.now() * 1000)
        records = sum(delivery.records for delivery in deliveries)
        offload = self._parts.offload if records >= OFFLOAD_RECORDS_MIN else run_inline
        batch, unknown = await offload(lambda: decode_all(deliveries, decoder, now_ms))
        if unknown:
            self._unknown.note(unknown)
            self._held.release(unknown)
        return batch

    async def _watch_health(self) -> None:
        while True:
            self._report_health("")
            await self._parts.clock.sleep(HEALTH_SECONDS)

    def _report_health(self, problem: str) -> None:
        health, parts = self._parts.health, self._parts
        health.set("start", not problem, problem)
        is_away = parts.log_breaker.is_open
        health.set("log", not is_away, "Redis does not answer" if is_away else "")
        failure = self._storer.last_failure
        health.set("store", not parts.store_breaker.is_open and not failure, failure)
        unknown = self._unknown.count
        detail = f"{unknown} entries need a newer release" if unknown else ""
        health.set("wire-version", not unknown, detail)

    async def _limit_drain(self, lanes: Sequence[asyncio.Task[None]]) -> None:
        """After the drain's time, what is not stored stays pending."""
        await self._drain.wait()
        await self._parts.clock.sleep(self._limits.drain_seconds_max)
        self._parts.log.error("drain takes too long, leaving entries pending")
        for lane in lanes:
            lane.cancel()


def decode_all(
    deliveries: Sequence[Delivery], decoder: EntryDecoder, now_ms: int
) -> tuple[Batch, list[Delivery]]:
    """(what can be stored, what this release can't read)."""
    known: list[Delivery] = []
    writes: list[EntryWrite] = []
    unknown: list[Delivery] = []
    for delivery in deliveries:
        try:
            writes.append(decoder.decode(delivery, now_ms))
            known.append(delivery)
        except UnknownWireVersion:
            unknown.append(delivery)
    return Batch(known, writes), unknown


def _span(batch: Batch) -> AbstractContextManager[Any]:
    trace = next((delivery.trace for delivery in batch.deliveries if delivery.trace), "")
    return tracing.span(
        "store batch",
        parent=tracing.extract(trace),
        entries=len(batch.writes),
        records=batch.records,
    )


async def _run_until_done(
    works: Sequence[asyncio.Task[None]], beside: Sequence[asyncio.Task[None]] = ()
) -> None:
    """Wait for all of `works`. The first crash among them or `beside` is raised at once."""
    left: set[asyncio.Task[None]] = set(works)
    while left:
        watched = left | {task for task in beside if not task.done()}
        done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        left -= done


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
