"""Group commit: everything that arrives for a shard while one flush is under way goes into the next.

One task a shard and one flush in flight a shard. A waiting record costs one future. The producer keeps
order within a shard, answers each record when its entry is durable, and keeps the highest counter it has
been answered, so that the log notices when it has lost entries (a gap entry).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from coffee_rt.domain.ids import IdMinter
from coffee_rt.errors import CoffeeRtError, NotExecuted, Overload, Retryable
from coffee_rt.runtime.clock import Clock
from coffee_rt.streams import metrics
from coffee_rt.streams.backlog import FIND_AFTER_MS, FIND_BEFORE_MS
from coffee_rt.streams.contract import Append, Appended, Logged
from coffee_rt.streams.flush import (
    Flush,
    FlushTarget,
    Item,
    PlainItem,
    ProducerLimits,
    plan_flush,
    resolve_flush,
    split_items,
    split_records,
)
from coffee_rt.streams.redis_clock import RedisClock

FLUSH_SHARE = 0.2
"""Weight of the newest flush in what flushes are expected to take."""

_Waiting = tuple[Item | PlainItem, "asyncio.Future[Any]"]


class _Shard:
    """Queue of one shard. `wake` is set while its task has nothing to do."""

    __slots__ = (
        "bytes",
        "flush_seconds",
        "flushing_since",
        "highest",
        "is_slow",
        "keyed",
        "number",
        "queue",
        "records",
        "wake",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.queue: deque[_Waiting] = deque()
        self.records = 0
        self.bytes = 0
        self.keyed = 0
        self.highest = 0
        self.flush_seconds = 0.0
        """Of recent flushes, on average."""
        self.flushing_since = 0.0
        """When the flush under way began; 0 while there is none."""
        self.is_slow = False
        self.wake: asyncio.Future[None] | None = None

    def waiting(self) -> float:
        return self.records

    def wait_seconds(self, now: float, limits: ProducerLimits) -> float:
        """Expected time until a record put in now is answered. A flush that takes long already is expected to
        take as long again, and so is each behind it."""
        flush = self.flush_seconds
        if self.flushing_since:
            flush = max(flush, now - self.flushing_since)
        ahead = max(
            self.records / limits.flush_records_max,
            self.bytes / limits.flush_bytes_max,
            self.keyed / limits.keyed_records_max,
        )
        return flush * (bool(self.flushing_since) + int(ahead) + 1)


class GroupProducer:
    """An OrderProducer over any FlushTarget. Made and used in one event loop."""

    def __init__(
        self, target: FlushTarget, clock: Clock, limits: ProducerLimits | None = None
    ) -> None:
        self._target = target
        self._clock = clock
        self._redis_clock = RedisClock(clock)
        self._limits = limits or ProducerLimits()
        self._loop = asyncio.get_running_loop()
        self._minter = IdMinter()
        self._shards = [_Shard(number) for number in range(target.shards)]
        self._failed: set[int] = set()
        self._next_shard = 0
        self._gathering: _Shard | None = None
        self._is_closing = False
        self._tasks = [
            self._loop.create_task(self._run(shard), name=f"flush-{shard.number}")
            for shard in self._shards
        ]
        for shard in self._shards:
            metrics.QUEUE_RECORDS.labels(str(shard.number)).set_function(shard.waiting)
        metrics.CLOCK_OFFSET.set_function(lambda: self._redis_clock.offset_seconds)

    @property
    def shards(self) -> int:
        return len(self._shards)

    @property
    def clock_offset_seconds(self) -> float:
        return self._redis_clock.offset_seconds

    @property
    def is_available(self) -> bool:
        """Whether any shard takes records: for readiness."""
        return any(map(self._target.is_available, range(self.shards)))

    def now_ms(self) -> int:
        return self._redis_clock.now_ms()

    def look(self) -> float:
        """Find out which shards are too slow to take more: call it every few milliseconds. The expected wait
        of the fastest."""
        now, limits = self._clock.monotonic(), self._limits
        waits = [shard.wait_seconds(now, limits) for shard in self._shards]
        for shard, wait in zip(self._shards, waits, strict=True):
            # An idle shard is tried, however slow it was: nothing else would show that it is fast again.
            shard.is_slow = wait > limits.wait_seconds_max and bool(shard.flushing_since)
        return min(
            wait if shard.flushing_since else 0.0
            for shard, wait in zip(self._shards, waits, strict=True)
        )

    async def start(self) -> None:
        """Connect, check the installation, learn the clock. Raises Retryable, or Rejected when this log
        was installed otherwise. Not needed for appending: the first flush connects too."""
        redis_ms, sent_at, received_at = await self._target.start()
        self._redis_clock.learn(redis_ms, sent_at, received_at)

    def choose_shard(self) -> int:
        """The shard that gathers already, so that what arrives together shares one flush; another as soon
        as that flush is taken or full."""
        gathering = self._gathering
        if (
            gathering is not None
            and 0 < gathering.records < self._limits.flush_records_max
            and not gathering.is_slow
        ):
            return gathering.number
        chosen = self._choose_next()
        self._gathering = self._shards[chosen]
        return chosen

    def _choose_next(self) -> int:
        shard = self._next_shard
        self._next_shard = (shard + 1) % len(self._shards)
        if self._failed or self._shards[shard].is_slow:
            for step in range(len(self._shards)):
                candidate = (shard + step) % len(self._shards)
                if self._shards[candidate].is_slow:
                    continue
                if candidate not in self._failed or self._target.is_available(candidate):
                    return candidate
        return shard

    async def append(self, shard: int, append: Append) -> Appended:
        keyed = 1 if append.key_hash is not None or append.is_client_id else 0
        record_bytes = len(append.record)
        queue = self._shards[shard]
        self._check_room(queue, 1, record_bytes)
        answer: list[Appended] = await self._put(queue, Item((append,), 1, record_bytes, keyed))
        return answer[0]

    async def append_many(self, shard: int, appends: list[Append]) -> list[Appended]:
        if not appends:
            return []
        answers = await self._put_all(shard, split_items(appends, self._limits))
        return [appended for answer in answers for appended in answer]

    async def append_plain(
        self, shard: int, records: Sequence[bytes], trace: str = ""
    ) -> list[Logged]:
        if not records:
            return []
        items = split_records(records, trace, self._limits)
        answers: list[Logged] = await self._put_all(shard, items)
        return [
            logged
            for item, answer in zip(items, answers, strict=True)
            for logged in [answer] * item.count
        ]

    async def join(self) -> None:
        """Returns when closed; raises what broke a flush (a bug). The wiring watches it; cancelling the
        watch stops no flush."""
        await asyncio.gather(*map(asyncio.shield, self._tasks))

    async def close(self) -> None:
        self._is_closing = True
        for shard in self._shards:
            if shard.wake is not None and not shard.wake.done():
                shard.wake.set_result(None)
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._target.close()
        for error in ended:
            if error is not None:
                raise error

    async def _put_all(self, shard: int, items: Sequence[Item | PlainItem]) -> list[Any]:
        """The answer of each item. One failure fails them all, as what it means for all of them."""
        queue = self._shards[shard]
        records = sum(item.count for item in items)
        self._check_room(queue, records, sum(item.records_bytes for item in items))
        if len(items) == 1:
            return [await self._put(queue, items[0])]
        futures = [self._put(queue, item) for item in items]
        for future in futures:
            future.add_done_callback(_mark_seen)
        await asyncio.wait(futures)
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise _merge_errors(errors, is_partial=len(errors) < len(futures))
        return [future.result() for future in futures]

    def _put(self, shard: _Shard, item: Item | PlainItem) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        shard.queue.append((item, future))
        shard.records += item.count
        shard.bytes += item.records_bytes
        shard.keyed += item.keyed
        wake = shard.wake
        if wake is not None:
            shard.wake = None
            if not wake.done():
                wake.set_result(None)
        return future

    def _check_room(self, shard: _Shard, records: int, records_bytes: int) -> None:
        limits = self._limits
        if self._is_closing:
            raise NotExecuted("the producer is closing")
        if shard.is_slow:
            raise Overload("log-slow", "the order log is too slow at the moment", 1.0)
        if shard.records and (
            shard.records + records > limits.queue_records_max
            or shard.bytes + records_bytes > limits.queue_bytes_max
        ):
            raise Overload("log-queue-full", "too many orders wait for the log", 1.0)

    async def _run(self, shard: _Shard) -> None:
        """Flush until closed and drained. Never two flushes of a shard at once."""
        while True:
            if not shard.queue:
                if self._is_closing:
                    return
                shard.wake = self._loop.create_future()
                await shard.wake
                continue
            waiting: list[_Waiting] = []
            try:
                # One more turn of the loop, for what is being read: a flush costs more than a request.
                await asyncio.sleep(0)
                waiting, flush = self._take(shard)
                await self._flush(shard, waiting, flush)
            except (Retryable, Overload) as error:
                self._fail(shard, waiting, error)
            except BaseException as error:
                # A bug, or the loop is ending: callers must not wait for ever. Then crash.
                self._is_closing = True
                for _, future in [*waiting, *shard.queue]:
                    if not future.done():
                        future.set_exception(Retryable(f"the flush broke off: {error!r}"))
                        future.exception()
                raise

    def _take(self, shard: _Shard) -> tuple[list[_Waiting], Flush]:
        """As much of the queue as fits one call; at least one item."""
        limits = self._limits
        queue = shard.queue
        waiting: list[_Waiting] = []
        items: list[Item | PlainItem] = []
        records = size = keyed = gone = 0
        while queue:
            item, future = queue[0]
            count = item.count
            if waiting and (
                records + count > limits.flush_records_max
                or size + item.records_bytes > limits.flush_bytes_max
                or keyed + item.keyed > limits.keyed_records_max
            ):
                break
            waiting.append(queue.popleft())
            records += count
            size += item.records_bytes
            if future.cancelled():
                gone += item.keyed
                continue  # Nobody waits for it and nothing of it was sent.
            items.append(item)
            keyed += item.keyed
        shard.records -= records
        shard.bytes -= size
        shard.keyed -= keyed + gone
        batch_id = self._minter.mint(self._redis_clock.now_ms(), shard.number)
        return waiting, plan_flush(shard.number, items, batch_id, shard.highest, keyed)

    async def _flush(self, shard: _Shard, waiting: list[_Waiting], flush: Flush) -> None:
        if not flush.items:
            return
        if not self._redis_clock.is_known:
            await self._meet()
        shard.flushing_since = began = self._clock.monotonic()
        try:
            reply = await self._target.execute(flush)
        finally:
            shard.flushing_since = 0.0
        shard.flush_seconds += FLUSH_SHARE * (self._clock.monotonic() - began - shard.flush_seconds)
        self._failed.discard(shard.number)
        shard.highest = max(shard.highest, reply.counter)
        if reply.entry_id is not None:
            self._redis_clock.learn(reply.entry_id.ms, reply.sent_at, reply.received_at)
        metrics.FLUSH_OK.inc()
        metrics.FLUSH_SECONDS.observe(reply.received_at - reply.sent_at)
        metrics.FLUSH_RECORDS.observe(len(flush.unkeyed) + len(flush.keyed))
        answers = resolve_flush(flush, reply)
        sent = iter(flush.items)
        current = next(sent, None)
        for item, future in waiting:
            if item is not current:
                continue
            appended = next(answers)
            current = next(sent, None)
            if not future.done():
                future.set_result(appended)

    async def _meet(self) -> None:
        """Before the first flush of a producer whose `start` found nobody. Ids minted on a clock that is off would
        not be found in the log: raises NotExecuted, and tells it to all that wait."""
        try:
            await self.start()
        except CoffeeRtError:
            return  # The flush itself shows what can be done.
        if -FIND_BEFORE_MS <= self.clock_offset_seconds * 1000 <= FIND_AFTER_MS:
            return
        error = NotExecuted("the log's clock was not known yet")
        for shard in self._shards:
            waiting, shard.queue = shard.queue, deque()
            shard.records = shard.bytes = shard.keyed = 0
            self._fail(shard, waiting, error)
        raise error

    def _fail(
        self, shard: _Shard, waiting: Iterable[_Waiting], error: Retryable | Overload
    ) -> None:
        metrics.FLUSHES.labels(_outcome_of(error)).inc()
        if not isinstance(error, Overload):
            self._failed.add(shard.number)
            self._gathering = None
        for _, future in waiting:
            if not future.done():
                future.set_exception(_again(error))


def _outcome_of(error: CoffeeRtError) -> str:
    if isinstance(error, Overload):
        return "overload"
    return "not_executed" if isinstance(error, NotExecuted) else "unknown"


def _again(error: BaseException) -> CoffeeRtError:
    """The same failure as an instance of its own: one raised in many tasks would grow its traceback."""
    if isinstance(error, Overload):
        return Overload(error.code, error.detail, error.retry_after_seconds, error.status)
    if isinstance(error, NotExecuted):
        return NotExecuted(str(error))
    return Retryable(str(error))


def _merge_errors(errors: Sequence[BaseException], *, is_partial: bool) -> CoffeeRtError:
    """What to say about a request whose parts fared differently: "not executed" only if all of it was."""
    unknown = [error for error in errors if not isinstance(error, (NotExecuted, Overload))]
    if unknown or is_partial:
        first = (unknown or errors)[0]
        return Retryable(f"a part of the request may have been logged: {first}")
    return _again(errors[0])


def _mark_seen(future: asyncio.Future[Any]) -> None:
    """A caller that was cancelled does not come back for the failure."""
    if not future.cancelled():
        future.exception()
