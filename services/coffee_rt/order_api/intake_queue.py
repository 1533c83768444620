"""Orders on their way into the database's intake, while the log is away: group commit at a reduced rate.

One task flushes: everything that waits becomes one row, then nothing for a moment. What a flush of failed is
told to each of its callers. The intake's bounds are looked at no more than a second before each flush, so they
can be exceeded by what the processes take within it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from coffee_rt.domain.ids import IdMinter, id_time_ms
from coffee_rt.domain.wire import INTAKE_SHARD, WIRE_VERSION
from coffee_rt.errors import CoffeeRtError, NotExecuted, Overload, Retryable
from coffee_rt.order_api import metrics
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import Clock
from coffee_rt.store.intake_contract import Intake, IntakeState, IntakeWrite, KeyedRecord, Known
from coffee_rt.streams.contract import Append, EntryId, OrderProducer, Position

FLUSH_PAUSE_SECONDS = 0.02
"""Between two flushes: rows are as many as flushes, and a worker takes them one by one."""
FLUSH_BYTES_MAX = 1 << 20
KEYED_RECORDS_MAX = 1_000
"""Keys of one flush: each is an index look-up under a lock that workers may wait for."""
QUEUE_SECONDS_MAX = 5.0
"""What waits may take so long at the reduced rate; more gets 503."""
STATE_SECONDS_MAX = 1.0
KEYS_MARGIN_SECONDS = 3600.0
"""Workers that note no keys yet may run for so long beside those that do (a roll)."""
RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """`records_max` and `size_bytes_max`: of all that waits. The rate is this process's."""

    records_max: int = 1_000_000
    size_bytes_max: int = 512 << 20
    records_per_second_max: int = 2_000
    key_window_seconds: float = 86_400.0


@dataclass(slots=True)
class _Item:
    plain: Sequence[bytes]
    keyed: Sequence[Append]
    trace: str
    future: asyncio.Future[tuple[bytes, list[Known | None]]]

    @property
    def records(self) -> int:
        return len(self.plain) + len(self.keyed)

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.plain)) + sum(len(append.record) for append in self.keyed)


class IntakeQueue:
    """One of a process; made and used in one event loop. `run` must be running."""

    def __init__(
        self,
        intake: Intake,
        producer: OrderProducer,
        breaker: CircuitBreaker,
        clock: Clock,
        limits: IntakeLimits,
    ) -> None:
        """`producer`: whose clock batch ids are minted on."""
        self._intake = intake
        self._producer = producer
        self._breaker = breaker
        self._clock = clock
        self._limits = limits
        self._minter = IdMinter()
        self._queue: deque[_Item] = deque()
        self._records = 0
        self._wake = asyncio.Event()
        self._state: IntakeState | None = None
        self._state_at = -STATE_SECONDS_MAX

    async def append(
        self, plain: Sequence[bytes], keyed: Sequence[Append], trace: str
    ) -> tuple[Position, list[Known | None]]:
        """Where the records are, and of each keyed one whether it was known. Together in one flush.

        Raises NotExecuted when it certainly did not happen, Overload when it was refused, Retryable when the
        outcome is unknown.
        """
        future: asyncio.Future[tuple[bytes, list[Known | None]]] = (
            asyncio.get_running_loop().create_future()
        )
        item = _Item(plain, keyed, trace, future)
        records = item.records
        if self._records and self._records + records > self._queue_max:
            metrics.INTAKE_REFUSED.labels("queue").inc(records)
            raise Overload("intake-queue-full", "too many orders wait for the intake", 1.0)
        self._queue.append(item)
        self._records += records
        self._wake.set()
        batch_id, answers = await future
        return position_of(batch_id), answers

    async def is_usable(self) -> bool:
        """Whether orders would be taken now: for readiness."""
        try:
            await self._look()
            self._check(0)
        except (Retryable, Overload):
            return False
        return True

    async def run(self) -> None:
        """Flush until cancelled; then what waits is told that nothing happened."""
        try:
            while True:
                await self._wake.wait()
                items = self._take()
                await self._flush(items)
                if not self._queue:
                    self._wake.clear()
                taken = sum(item.records for item in items)
                pause = taken / self._limits.records_per_second_max
                await self._clock.sleep(max(pause, FLUSH_PAUSE_SECONDS))
        finally:
            _fail(self._queue, NotExecuted("the process is ending"))

    @property
    def _queue_max(self) -> float:
        return self._limits.records_per_second_max * QUEUE_SECONDS_MAX

    def _take(self) -> list[_Item]:
        """As much of the queue as fits one row; at least one item."""
        items: list[_Item] = []
        records = keyed = size = 0
        while self._queue:
            item = self._queue[0]
            if items and (
                records + item.records > self._limits.records_per_second_max
                or keyed + len(item.keyed) > KEYED_RECORDS_MAX
                or size + item.size_bytes > FLUSH_BYTES_MAX
            ):
                break
            self._queue.popleft()
            self._records -= item.records
            if item.future.cancelled():
                continue  # Nobody waits for it and nothing of it was sent.
            items.append(item)
            records, keyed = records + item.records, keyed + len(item.keyed)
            size += item.size_bytes
        return items

    async def _flush(self, items: list[_Item]) -> None:
        try:
            await self._look()
            items = self._admit(items)
            if items:
                await self._write(items)
        except (Retryable, Overload) as error:
            reason = "unknown" if not isinstance(error, NotExecuted) else "away"
            metrics.INTAKE_REFUSED.labels(reason).inc(sum(item.records for item in items))
            _fail(items, error)
        except BaseException as error:
            # A bug, or the process is ending: callers must not wait for ever.
            _fail(items, Retryable(f"the flush broke off: {error!r}"))
            raise

    def _admit(self, items: list[_Item]) -> list[_Item]:
        """Those that the intake has room for and may take; the others are told why not."""
        admitted: list[_Item] = []
        for item in items:
            try:
                self._check(sum(each.records for each in admitted) + item.records)
                if item.keyed:
                    self._check_keys()
            except Overload as error:
                metrics.INTAKE_REFUSED.labels(error.code.removeprefix("intake-")).inc(item.records)
                _fail([item], error)
            else:
                admitted.append(item)
        return admitted

    async def _write(self, items: list[_Item]) -> None:
        write = IntakeWrite(
            self._minter.mint(self._producer.now_ms()),
            WIRE_VERSION,
            [record for item in items for record in item.plain],
            [_keyed_record(append) for item in items for append in item.keyed],
            next((item.trace for item in items if item.trace), ""),
        )
        began = self._clock.monotonic()
        async with self._breaker:
            answers = await self._intake.append(write)
        metrics.INTAKE_APPEND_SECONDS.observe(self._clock.monotonic() - began)
        new = len(write.plain) + sum(answer is None for answer in answers)
        metrics.INTAKE_ACCEPTED.inc(new)
        each = iter(answers)
        for item in items:
            own = [next(each) for _ in item.keyed]
            if not item.future.done():
                item.future.set_result((write.batch_id, own))

    async def _look(self) -> None:
        """Renew what is known of the intake, where it is older than a moment. Raises Retryable."""
        if self._clock.monotonic() - self._state_at < STATE_SECONDS_MAX:
            return
        async with self._breaker:
            try:
                self._state = await self._intake.state()
            except NotExecuted:
                # Busy among them: no sign of an outage, which the breaker would take another error for.
                raise
            except Retryable as error:
                # A look takes nothing: whoever waits for it is where it was.
                raise NotExecuted(str(error)) from error
        self._state_at = self._clock.monotonic()

    def _check(self, records: int) -> None:
        state, limits = self._state, self._limits
        if state is not None and (
            state.records + records > limits.records_max or state.size_bytes > limits.size_bytes_max
        ):
            detail = "the log is away, and the database's intake holds as much as it may"
            raise Overload("intake-full", detail, RETRY_SECONDS)

    def _check_keys(self) -> None:
        """Refuse keyed orders while an earlier one of their key may be stored and not be noted."""
        since = None if self._state is None else self._state.keys_since
        known_from = self._limits.key_window_seconds + KEYS_MARGIN_SECONDS
        if since is None or (since and self._clock.now() - since < known_from):
            detail = "the log is away, and the database does not know all keys yet"
            raise Overload("intake-keys", detail, RETRY_SECONDS)


def position_of(batch_id: bytes) -> Position:
    """The position of orders that wait in the intake, or came by it."""
    return Position(INTAKE_SHARD, EntryId(id_time_ms(batch_id), 0), batch_id)


def _keyed_record(append: Append) -> KeyedRecord:
    return KeyedRecord(
        append.order_id,
        append.record,
        append.body_hash,
        append.key_hash,
        append.is_client_id,
        append.tenant,
    )


def _fail(items: Sequence[_Item] | deque[_Item], error: CoffeeRtError) -> None:
    for item in items:
        if not item.future.done():
            item.future.set_exception(_again(error))


def _again(error: CoffeeRtError) -> CoffeeRtError:
    """The same failure as an instance of its own: one raised in many tasks would grow its traceback."""
    if isinstance(error, Overload):
        return Overload(error.code, error.detail, error.retry_after_seconds, error.status)
    if isinstance(error, NotExecuted):
        return NotExecuted(str(error))
    return Retryable(str(error))
