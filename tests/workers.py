"""A worker over a memory log and a memory store, and entries as order_api (or a stranger) writes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from inspect import isawaitable

from coffee_rt.channels.memory import MemoryChannels
from coffee_rt.domain.ids import IdMinter
from coffee_rt.domain.orders import Order
from coffee_rt.domain.wire import encode_record, join_records
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import SystemClock
from coffee_rt.runtime.health import Health
from coffee_rt.runtime.logs import get_log
from coffee_rt.store.contract import OrderWriter
from coffee_rt.store.intake_contract import Intake
from coffee_rt.store.memory import MemoryKeeper as MemoryStoreKeeper
from coffee_rt.store.memory import MemoryOrderWriter
from coffee_rt.store.memory_database import MemoryDatabase
from coffee_rt.streams.contract import STORE_GROUP
from coffee_rt.streams.memory import MemoryLog
from coffee_rt.streams.memory_groups import MemoryKeeper, MemoryReader
from coffee_rt.worker.care import CareLimits
from coffee_rt.worker.parts import WorkerLimits, WorkerParts
from coffee_rt.worker.pipeline import Worker
from coffee_rt.worker.reading import ReadLimits
from coffee_rt.worker.storing import StoreLimits
from tests.builders import an_order

GROUP = STORE_GROUP
LIMITS = WorkerLimits(
    linger_seconds=0.002,
    drain_seconds_max=2.0,
    read=ReadLimits(wait_seconds=0.02, claim_every_seconds=0.02, backoff_seconds_max=0.02),
    store=StoreLimits(backoff_seconds_max=0.005),
    care=CareLimits(care_seconds=0.05),
)
_minter = IdMinter()


def now_order(**changes: object) -> Order:
    """An order accepted just now."""
    at_us = time.time_ns() // 1000
    return an_order(**{"accepted_at_us": at_us, "ordered_at_us": at_us, **changes})  # type: ignore[arg-type]


def entry_fields(orders: Sequence[Order], counter: int) -> dict[bytes, bytes]:
    """Stream fields of an entry of these orders."""
    return raw_fields([encode_record(order) for order in orders], counter)


def raw_fields(records: Sequence[bytes], counter: int) -> dict[bytes, bytes]:
    return {
        b"v": b"1",
        b"b": _minter.mint(time.time_ns() // 1_000_000),
        b"c": b"%d" % counter,
        b"n": b"%d" % len(records),
        b"d": join_records(list(records)),
    }


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds_max: float = 10.0) -> None:
    """Wait for a condition; fails when it does not come."""
    give_up_at = time.monotonic() + seconds_max
    while True:
        outcome = condition()
        if await outcome if isawaitable(outcome) else outcome:
            return
        if time.monotonic() > give_up_at:
            raise AssertionError("the condition did not come in time")
        await asyncio.sleep(0.005)


class MemoryShop:
    """One log and one store in memory, with as many workers as a test starts."""

    def __init__(self, shards: int = 2) -> None:
        self.clock = SystemClock()
        self.log = MemoryLog(self.clock, shards)
        self.database = MemoryDatabase()
        self.channels = MemoryChannels()
        self.health = Health()
        self.store_breaker = self.make_breaker("postgresql")
        self.running: dict[str, tuple[Worker, asyncio.Task[None]]] = {}

    def make_breaker(self, name: str, failures: int = 1000) -> CircuitBreaker:
        return CircuitBreaker(name, failures=failures, open_seconds=0.05, clock=self.clock)

    def append(self, orders: Sequence[Order], shard: int = 0) -> list[bytes]:
        """One entry of these orders; their ids."""
        state = self.log.shards[shard]
        state.counter += len(orders)
        self.log.insert_raw(shard, entry_fields(orders, state.counter))
        return [order.order_id for order in orders]

    def append_raw(self, records: Sequence[bytes], shard: int = 0) -> None:
        state = self.log.shards[shard]
        state.counter += len(records)
        self.log.insert_raw(shard, raw_fields(records, state.counter))

    def start(
        self,
        instance: str = "w1",
        *,
        limits: WorkerLimits = LIMITS,
        writer: OrderWriter | None = None,
        group: str = GROUP,
        intake: Intake | None = None,
    ) -> Worker:
        parts = WorkerParts(
            reader=MemoryReader(self.log, group, instance),
            log_keeper=MemoryKeeper(self.log),
            writer=writer or MemoryOrderWriter(self.database),
            store_keeper=MemoryStoreKeeper(self.database),
            channels=self.channels,
            log_breaker=self.make_breaker("redis"),
            store_breaker=self.store_breaker,
            clock=self.clock,
            health=self.health,
            log=get_log("worker"),
            intake=intake,
        )
        limits = replace(limits, care=replace(limits.care, group=group, instance=instance))
        worker = Worker(parts, limits)
        self.running[instance] = worker, asyncio.create_task(worker.run())
        return worker

    async def drain(self, instance: str = "w1") -> None:
        """SIGTERM, and its end."""
        worker, task = self.running.pop(instance)
        worker.begin_drain()
        await asyncio.wait_for(task, 10)

    async def kill(self, instance: str = "w1") -> None:
        """No drain, no acknowledgement, no goodbye."""
        _worker, task = self.running.pop(instance)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    def pending(self, group: str = GROUP) -> int:
        """Entries delivered and not acknowledged."""
        return sum(
            len(shard.groups[group].pending) for shard in self.log.shards if group in shard.groups
        )

    def is_settled(self, group: str = GROUP) -> bool:
        """Everything was delivered and acknowledged."""
        return self.pending(group) == 0 and all(
            not shard.ids
            or (group in shard.groups and shard.groups[group].delivered >= shard.ids[-1])
            for shard in self.log.shards
        )

    def stored_ids(self) -> set[bytes]:
        return set(self.database.orders)
