"""The processes of the platform, made of their real cores, as their wiring makes them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from coffee_rt.aggregator.backfill import Backfiller
from coffee_rt.aggregator.core import FoldLimits, FoldLoop
from coffee_rt.aggregator.lanes import LaneShare
from coffee_rt.aggregator.publishing import Publisher
from coffee_rt.errors import Retryable
from coffee_rt.fanout.guarded import GuardedStore
from coffee_rt.fanout.hub import Hub
from coffee_rt.runtime.health import Health
from coffee_rt.streams.contract import STORE_GROUP
from coffee_rt.streams.memory_groups import MemoryReader
from coffee_rt.worker.care import CareLimits
from coffee_rt.worker.parts import WorkerLimits, WorkerParts
from coffee_rt.worker.pipeline import Worker
from coffee_rt.worker.reading import ReadLimits
from coffee_rt.worker.storing import StoreLimits
from tests.simulation.apis import run_api, until_done
from tests.simulation.loop import Process
from tests.simulation.redrives import run_redriver
from tests.simulation.remote import RemoteReader, RemoteWriter
from tests.simulation.world import World

COMPACT_MARGIN_SECONDS = 6.0
"""Longer than anybody is frozen with entries in hand, as the hour of the default is."""

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
HASTY_LIMITS = StoreLimits(suspect_attempts_min=2, park_failures=1, backoff_seconds_max=0.2)
"""Of runs with poison: so that it is parked while others are stored, though few are."""
FOLD_LIMITS = FoldLimits(interval_seconds=0.05)


async def run_worker(world: World, process: Process) -> None:
    clock, name = world.clock_of(process), process.name
    reader = MemoryReader(world.log, STORE_GROUP, name)
    intake = world.remote_intake() if world.plan.has_intake else None

    async def check_store() -> None:
        if intake is not None:
            await intake.note_keys(True)

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
        intake=intake,
        check_store=check_store,
    )
    care = replace(WORKER_LIMITS.care, instance=name, trim_keep_seconds=world.plan.keep_seconds)
    store = HASTY_LIMITS if world.plan.is_poisoned else WORKER_LIMITS.store
    worker = Worker(parts, replace(WORKER_LIMITS, care=care, store=store))
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
    await until_done(lambda: catalogue.ensure_views(list(world.definitions)))
    await publisher.publish_catalogue()
    await until_done(folds.tell_once)
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


MAINS = {
    "api": run_api,
    "worker": run_worker,
    "aggregator": run_aggregator,
    "pod": run_pod,
    "redriver": run_redriver,
}
