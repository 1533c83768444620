"""The stores in memory as a process meets them: behind the network, each method one call.

A method of a store in memory never waits, so a call is one step of its server. What waits or has two steps
has an adapter of its own here: reading from the log, committing, publishing.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from coffee_rt.channels.mailbox import Mailbox
from coffee_rt.channels.memory import MemoryChannels
from coffee_rt.errors import NotExecuted, Retryable
from coffee_rt.runtime.clock import Clock
from coffee_rt.store.contract import Committed, EntryWrite, PreparedBatch
from coffee_rt.store.memory import MemoryOrderWriter
from coffee_rt.store.memory_database import MemoryDatabase
from coffee_rt.streams.contract import Delivery, EntryId
from coffee_rt.streams.flush import Flush, FlushReply
from coffee_rt.streams.memory import MemoryLog, MemoryTarget
from coffee_rt.streams.memory_groups import MemoryReader
from tests.simulation.loop import Process, VirtualLoop
from tests.simulation.network import Later, Network, Server


class ProcessClock:
    """A machine's clocks: the wall clock may be wrong."""

    def __init__(self, loop: VirtualLoop, process: Process, epoch_seconds: float) -> None:
        self._loop = loop
        self._process = process
        self._epoch_seconds = epoch_seconds

    def now(self) -> float:
        return self._epoch_seconds + self._loop.now + self._process.clock_error_seconds

    def monotonic(self) -> float:
        return self._loop.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def run_now(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that does not wait."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    work.close()
    raise AssertionError(f"{work} waits")


class Remote:
    """Any contract of which each method is one step. What is no coroutine is answered here."""

    def __init__(self, network: Network, server: Server, inner: Any) -> None:
        self._network = network
        self._server = server
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not inspect.iscoroutinefunction(found):
            return found
        network, server = self._network, self._server

        async def call(*arguments: Any, **named: Any) -> Any:
            return await network.call(server, lambda: run_now(found(*arguments, **named)), name)

        setattr(self, name, call)
        return call


class SimLog(MemoryLog):
    """A MemoryLog whose readers wait on the virtual loop."""

    def __init__(self, loop: VirtualLoop, clock: Clock, shards: int) -> None:
        super().__init__(clock, shards)
        self._loop = loop
        self._waiters: list[list[asyncio.Future[None]]] = [[] for _ in range(shards)]

    def wake(self, shard: int) -> None:
        waiters, self._waiters[shard] = self._waiters[shard], []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait_change(self, shard: int, seconds_max: float) -> None:
        waiter = self._loop.create_future()
        self._waiters[shard].append(waiter)
        timer = self._loop.call_later(seconds_max, _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class RemoteTarget:
    """A FlushTarget: the append script behind the network. Calls that never got through are NotExecuted."""

    def __init__(
        self,
        network: Network,
        server: Server,
        target: MemoryTarget,
        clock: Clock,
        on_append: Callable[[Flush], None],
    ) -> None:
        self._network = network
        self._server = server
        self._target = target
        self._clock = clock
        self._on_append = on_append

    @property
    def shards(self) -> int:
        return self._target.shards

    async def start(self) -> tuple[int, float, float]:
        sent_at = self._clock.now()
        redis_ms, _, _ = await self._network.call(
            self._server, lambda: run_now(self._target.start()), "start"
        )
        return redis_ms, sent_at, self._clock.now()

    def is_available(self, shard: int) -> bool:
        return not self._network.is_away(self._server)

    async def close(self) -> None:
        return

    async def execute(self, flush: Flush) -> FlushReply:
        sent_at = self._clock.now()
        reply: FlushReply = await self._network.call(
            self._server, lambda: self._append(flush), "append"
        )
        return reply._replace(sent_at=sent_at, received_at=self._clock.now())

    def _append(self, flush: Flush) -> FlushReply:
        self._on_append(flush)
        reply: FlushReply = run_now(self._target.execute(flush))
        return reply


class RemoteReader:
    """A GroupReader. A call without an answer breaks the shard's connections."""

    def __init__(
        self, network: Network, server: Server, log: MemoryLog, reader: MemoryReader, clock: Clock
    ) -> None:
        self._network = network
        self._server = server
        self._log = log
        self._reader = reader
        self._clock = clock

    @property
    def shards(self) -> int:
        return self._reader.shards

    async def read(self, shard: int, entries_max: int, wait_seconds: float) -> list[Delivery]:
        give_up_at = self._clock.monotonic() + wait_seconds
        while True:
            run = self._log.run
            found: list[Delivery] = await self._call(
                shard, lambda: self._reader.read(shard, entries_max, 0), "read"
            )
            left = give_up_at - self._clock.monotonic()
            if found or left <= 0:
                return found
            await self._log.wait_change(shard, left)
            if self._log.run != run:
                raise Retryable("the connection to the log broke")

    async def read_own_pending(
        self, shard: int, entries_max: int, after: EntryId
    ) -> list[Delivery]:
        found: list[Delivery] = await self._call(
            shard, lambda: self._reader.read_own_pending(shard, entries_max, after), "read own"
        )
        return found

    async def claim(self, shard: int, idle_seconds_min: float, entries_max: int) -> list[Delivery]:
        found: list[Delivery] = await self._call(
            shard, lambda: self._reader.claim(shard, idle_seconds_min, entries_max), "claim"
        )
        return found

    async def acknowledge(self, shard: int, deliveries: list[Delivery], timeline: str = "") -> int:
        acknowledged: int = await self._call(
            shard, lambda: self._reader.acknowledge(shard, deliveries, timeline), "acknowledge"
        )
        return acknowledged

    async def leave(self) -> None:
        try:
            await self._network.call(self._server, lambda: run_now(self._reader.leave()), "leave")
        except Retryable:
            return

    async def _call(
        self, shard: int, act: Callable[[], Coroutine[Any, Any, Any]], point: str
    ) -> Any:
        try:
            return await self._network.call(self._server, lambda: run_now(act()), point)
        except NotExecuted:
            raise
        except Retryable:
            self._reader.disconnect(shard)
            raise


class RemoteWriter:
    """An OrderWriter: a transaction begins, and commits a moment later, after others perhaps."""

    def __init__(
        self, network: Network, server: Server, database: MemoryDatabase, writer: MemoryOrderWriter
    ) -> None:
        self._network = network
        self._server = server
        self._database = database
        self._writer = writer

    async def refresh_catalogue(self) -> None:
        await self._network.call(self._server, lambda: None, "refresh catalogue")

    def prepare(self, entries: Sequence[EntryWrite]) -> PreparedBatch:
        return self._writer.prepare(entries)

    async def commit(self, batch: PreparedBatch, *, is_claimed: bool = False) -> Committed:
        return await self._commit(lambda: batch)

    async def store_single(self, entry: EntryWrite) -> Committed:
        return await self._commit(lambda: self._writer.prepare_single(entry))

    async def _commit(self, prepare: Callable[[], PreparedBatch]) -> Committed:
        def begin() -> Later:
            batch = prepare()
            xid = self._database.begin()
            return Later(lambda: self._writer.finish(batch, xid), lambda: self._database.end(xid))

        committed: Committed = await self._network.call(self._server, begin, "commit")
        return committed


class SimBus(MemoryChannels):
    """Pub/sub that loses, doubles and delays messages, each subscriber's apart."""

    def __init__(self, loop: VirtualLoop, chance: random.Random) -> None:
        super().__init__()
        self.trouble = 0.0
        """Probability that a message does not simply arrive."""
        self._loop = loop
        self._chance = chance

    def _deliver(self, mailbox: Mailbox, topic: str, body: bytes) -> None:
        if not self.trouble or self._chance.random() >= self.trouble:
            mailbox.put(topic, body)
            return
        for _ in range(int(self._chance.random() * 3)):
            seconds = 1.5 * self._chance.random()
            self._loop.call_later(
                seconds, mailbox.put, topic, body, context=self._loop.world.context
            )


class RemoteChannels:
    """Channels of one process on the bus."""

    def __init__(self, network: Network, server: Server, bus: SimBus) -> None:
        self._network = network
        self._server = server
        self._bus = bus

    async def publish(self, topic: str, *bodies: bytes) -> None:
        await self._network.call(
            self._server, lambda: run_now(self._bus.publish(topic, *bodies)), f"publish {topic}"
        )

    @asynccontextmanager
    async def subscribe(self, *topics: str) -> AsyncIterator[Mailbox]:
        async with self._bus.subscribe(*topics) as mailbox:
            yield mailbox

    async def close(self) -> None:
        return
