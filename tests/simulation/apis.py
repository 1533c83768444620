"""order_api as a process of the platform: its group commit, intake, admission and acks, without its HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from coffee_rt.domain import wire
from coffee_rt.domain.ids import IdMinter
from coffee_rt.domain.orders import Order
from coffee_rt.errors import Retryable
from coffee_rt.order_api.acks import Acks
from coffee_rt.order_api.background import IntakeWatch
from coffee_rt.order_api.intake_producer import IntakeProducer
from coffee_rt.order_api.intake_queue import IntakeLimits, IntakeQueue
from coffee_rt.order_api.settling import Settling
from coffee_rt.runtime.breaker import CircuitBreaker, backoff_seconds
from coffee_rt.runtime.health import Health
from coffee_rt.streams.admission import Admission, AdmissionLimits
from coffee_rt.streams.contract import STORE_GROUP, Append, Appended, LogKeeper, OrderProducer
from coffee_rt.streams.flush import ProducerLimits
from coffee_rt.streams.memory import MemoryTarget
from coffee_rt.streams.producer import GroupProducer
from tests.simulation.loop import Process
from tests.simulation.plan import Wish
from tests.simulation.remote import ProcessClock, RemoteTarget
from tests.simulation.world import EPOCH_SECONDS, SHARDS, World

HOUR_US = 3_600_000_000
CLOCK_ERROR_SECONDS_MAX = 5.0
LOOK_SECONDS = 0.1

NARROW = ProducerLimits(queue_records_max=2, wait_seconds_max=0.3)
"""Of runs in which orders are refused."""
NARROW_ADMISSION = AdmissionLimits(undelivered_records_max=2)


@dataclass(slots=True)
class Api:
    """What an order_api does with an order, behind its HTTP: see order_api.gate and order_api.placing."""

    producer: OrderProducer
    acks: Acks
    admission: Admission
    minter: IdMinter

    async def place(self, wish: Wish, client_id: bytes | None) -> Appended:
        """Raises what the log's contract says, and Overload while orders are refused."""
        self.admission.check()
        producer, now_ms = self.producer, self.producer.now_ms()
        key_hash = None if wish.key is None else wire.hash_key(0, wish.key)
        if key_hash is not None:
            shard = wire.shard_of(key_hash, producer.shards)
        elif client_id is not None:
            shard = wire.shard_of_client_id(client_id, producer.shards)
        else:
            shard = producer.choose_shard()
        order_id = client_id or self.minter.mint(now_ms, shard)
        order = Order(
            order_id=order_id,
            tenant=0,
            store=wish.store,
            drink=wish.drink,
            price_minor=wish.price_minor,
            quantity=wish.quantity,
            ordered_at_us=int(EPOCH_SECONDS * 1e6) - wish.hours_ago * HOUR_US,
            accepted_at_us=now_ms * 1000,
            body_hash=wire.hash_body(wish.body),
            key_hash=key_hash,
        )
        record = wire.encode_record(order)
        return await producer.append(
            shard, Append(order_id, record, order.body_hash, key_hash, client_id is not None)
        )


async def run_api(world: World, process: Process) -> None:
    plan, clock = world.plan, world.clock_of(process)
    target = MemoryTarget(world.log, SHARDS)
    remote = RemoteTarget(world.network, world.redis, target, clock, world.on_append)
    producer = GroupProducer(remote, clock, NARROW if plan.has_refusals else None)
    keeper: LogKeeper = world.remote_log_keeper()
    intake = world.remote_intake() if plan.has_intake else None
    queue = None if intake is None else _make_queue(world, clock, producer, intake)
    settling = Settling(keeper, intake, clock)
    acks = Acks(world.channels_of(), settling.is_settled, clock, waits_max=100)
    admission = Admission(keeper, STORE_GROUP, NARROW_ADMISSION)
    works: list[Coroutine[Any, Any, None]] = [acks.run()]
    if queue is not None:
        works.append(queue.run())
    if plan.has_refusals:
        watch = IntakeWatch(admission, producer, Health(), CLOCK_ERROR_SECONDS_MAX, queue)
        works += [watch.run(clock), _keep_looking(producer)]
    tasks = [asyncio.create_task(work) for work in works]
    for task in tasks:
        task.add_done_callback(partial(_on_end, world, process))
    try:
        await producer.start()
    except Retryable:
        # It serves meanwhile: Redis may be away for longer.
        tasks.append(asyncio.create_task(until_done(producer.start)))
    part, closing = world.parts[process.name], asyncio.Event()
    places: OrderProducer = producer if queue is None else IntakeProducer(producer, queue)
    part.core, part.drain = Api(places, acks, admission, IdMinter()), closing.set
    await closing.wait()
    part.core = None
    await producer.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _on_end(world: World, process: Process, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        world.fail(f"{process.name} crashed: {task.exception()!r}")


def _make_queue(
    world: World, clock: ProcessClock, producer: OrderProducer, intake: Any
) -> IntakeQueue:
    breaker = CircuitBreaker("intake", failures=2, open_seconds=0.5, clock=clock)
    limits = IntakeLimits(records_max=world.plan.intake_records_max)
    return IntakeQueue(intake, producer, breaker, clock, limits)


async def _keep_looking(producer: GroupProducer) -> None:
    """As order_api.congestion does."""
    while True:
        producer.look()
        await asyncio.sleep(LOOK_SECONDS)


async def until_done(step: Callable[[], Awaitable[object]]) -> None:
    """As processes repeat the steps of their start."""
    attempt = 0
    while True:
        try:
            await step()
            return
        except Retryable:
            attempt += 1
            await asyncio.sleep(0.1 + backoff_seconds(attempt, cap=0.5))
