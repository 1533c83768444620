"""The processes of the platform, made of their real cores, as their wiring makes them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from coffee_rt.aggregator.backfill import Backfiller
from coffee_rt.aggregator.core import FoldLimits, FoldLoop
from coffee_rt.aggregator.lanes import LaneShare
from coffee_rt.aggregator.publishing import Publisher
from coffee_rt.domain import wire
from coffee_rt.domain.ids import IdMinter
from coffee_rt.domain.orders import Order
from coffee_rt.errors import Retryable
from coffee_rt.fanout.guarded import GuardedStore
from coffee_rt.fanout.hub import Hub
from coffee_rt.order_api.acks import Acks
from coffee_rt.runtime.breaker import backoff_seconds
from coffee_rt.runtime.health import Health
from coffee_rt.streams.contract import STORE_GROUP, Append, Appended, LogKeeper
from coffee_rt.streams.memory import MemoryTarget
from coffee_rt.streams.memory_groups import MemoryReader
from coffee_rt.streams.producer import GroupProducer
from coffee_rt.worker.care import CareLimits
from coffee_rt.worker.parts import WorkerLimits, WorkerParts
from coffee_rt.worker.pipeline import Worker
from coffee_rt.worker.reading import ReadLimits
from coffee_rt.worker.storing import StoreLimits
from tests.simulation.loop import Process
from tests.simulation.plan import Wish
from tests.simulation.remote import RemoteReader, RemoteTarget, RemoteWriter
from tests.simulation.world import EPOCH_SECONDS, SHARDS, World

COMPACT_MARGIN_SECONDS = 6.0
"""Longer than anybody is frozen with entries in hand, as the hour of the default is."""
HOUR_US = 3_600_000_000

WORKER_LIMITS = WorkerLimits(
    linger_seconds=0.02,
    drain_seconds_max=2.0,
    read=ReadLimits(
        wait_seconds=0.5,
        claim_every_seconds=0.6,
        claim_idle_seconds_min=1.0,
        backoff_seconds_max=0.4,
    ),
    store=StoreLimits(backoff_seconds_max=0.4),
    care=CareLimits(care_seconds=1.0, compact_margin_seconds=COMPACT_MARGIN_SECONDS),
)
FOLD_LIMITS = FoldLimits(interval_seconds=0.05)


class Api:
    """What an order_api does with an order, behind its HTTP: see order_api.placing."""

    def __init__(self, producer: GroupProducer, acks: Acks) -> None:
        self.producer = producer
        self.acks = acks
        self._minter = IdMinter()

    async def place(self, wish: Wish, client_id: bytes | None) -> Appended:
        """Raises what the log's contract says."""
        producer, now_ms = self.producer, self.producer.now_ms()
        key_hash = None if wish.key is None else wire.hash_key(0, wish.key)
        if key_hash is not None:
            shard = wire.shard_of(key_hash, producer.shards)
        elif client_id is not None:
            shard = wire.shard_of_client_id(client_id, producer.shards)
        else:
            shard = producer.choose_shard()
        order_id = client_id or self._minter.mint(now_ms, shard)
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
    clock = world.clock_of(process)
    target = MemoryTarget(world.log, SHARDS)
    remote = RemoteTarget(world.network, world.redis, target, clock, world.on_append)
    producer = GroupProducer(remote, clock)
    keeper: LogKeeper = world.remote_log_keeper()
    acks = Acks(world.channels_of(), partial(keeper.is_settled, STORE_GROUP), clock, waits_max=100)
    listening = asyncio.create_task(acks.run())
    await _until_done(producer.start)
    part, closing = world.parts[process.name], asyncio.Event()
    part.core, part.drain = Api(producer, acks), closing.set
    await closing.wait()
    part.core = None
    await producer.close()
    listening.cancel()


async def run_worker(world: World, process: Process) -> None:
    clock, name = world.clock_of(process), process.name
    reader = MemoryReader(world.log, STORE_GROUP, name)
    parts = WorkerParts(
        reader=RemoteReader(world.network, world.redis, world.log, reader, clock),
        log_keeper=world.remote_log_keeper(),
        writer=RemoteWriter(world.network, world.postgresql, world.database, world.writer),
        store_keeper=world.remote_store_keeper(),
        channels=world.channels_of(),
        log_breaker=world.breaker_of(process, "redis"),
        store_breaker=world.breaker_of(process, "postgresql"),
        clock=clock,
        health=Health(),
        log=world.log_of(process),
    )
    care = replace(WORKER_LIMITS.care, instance=name, trim_keep_seconds=world.plan.keep_seconds)
    worker = Worker(parts, replace(WORKER_LIMITS, care=care))
    part = world.parts[name]
    part.core, part.drain = worker, worker.begin_drain
    await worker.run()


async def run_aggregator(world: World, process: Process) -> None:
    clock, name, log = world.clock_of(process), process.name, world.log_of(process)
    database = world.breaker_of(process, "postgresql")
    channels = world.channels_of()
    publisher = Publisher(channels, world.breaker_of(process, "redis"))
    share = LaneShare(name, steal_seconds=1.0)
    catalogue = world.remote_catalogue()
    folds = FoldLoop(
        instance=name,
        folder=world.remote_folder(),
        catalogue=catalogue,
        channels=channels,
        publisher=publisher,
        share=share,
        database=database,
        clock=clock,
        log=log,
        limits=FOLD_LIMITS,
    )
    backfiller = Backfiller(
        catalogue=catalogue,
        repairer=world.remote_repairer(),
        publisher=publisher,
        share=share,
        database=database,
        clock=clock,
        log=log,
    )
    await _until_done(lambda: catalogue.ensure_views(list(world.definitions)))
    await publisher.publish_catalogue()
    await _until_done(folds.tell_once)
    part, drained = world.parts[name], asyncio.Event()
    part.core, part.drain = folds, drained.set
    works = (folds.listen(), folds.fold(), folds.tell(), backfiller.run(), drained.wait())
    tasks = [asyncio.create_task(work) for work in works]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            task.result()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    try:
        await folds.withdraw()
    except Retryable:
        return


async def run_pod(world: World, process: Process) -> None:
    reader, catalogue = world.remote_view_reader(), world.remote_catalogue()
    store = GuardedStore(
        world.breaker_of(process, "postgresql"),
        catalogue=catalogue,
        snapshots=reader,
        queries=reader,
        orders=world.remote_order_reader(),
        versions=world.remote_folder(),
    )
    hub = Hub(
        messages=world.channels_of(),
        catalogue=store,
        reader=store,
        orders=store,
        versions=store,
        authorize=lambda token: 0,
        needs_token=False,
        clock=world.clock_of(process),
    )
    world.parts[process.name].core = hub
    await hub.run()


async def _until_done(step: Callable[[], Awaitable[object]]) -> None:
    """As processes repeat the steps of their start."""
    attempt = 0
    while True:
        try:
            await step()
            return
        except Retryable:
            attempt += 1
            await asyncio.sleep(0.1 + backoff_seconds(attempt, cap=0.5))


MAINS = {"api": run_api, "worker": run_worker, "aggregator": run_aggregator, "pod": run_pod}
