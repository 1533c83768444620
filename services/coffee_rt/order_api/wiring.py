"""Puts order_api together: the only place where its logic meets Redis, PostgreSQL and the HTTP server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import yaml

from coffee_rt.callers.identity import callers_of, key_ring_of
from coffee_rt.callers.rate import RateLimiter
from coffee_rt.channels.redis import RedisChannels
from coffee_rt.domain.intake import Catalogue, Intake
from coffee_rt.domain.keys import KeyRing
from coffee_rt.domain.problems import problem_of
from coffee_rt.errors import CoffeeRtError, Rejected, Retryable
from coffee_rt.order_api.acks import Acks
from coffee_rt.order_api.app import build_app
from coffee_rt.order_api.background import IntakeWatch, KeyWatch
from coffee_rt.order_api.batch import BatchPlacer
from coffee_rt.order_api.body_room import BodyRoom
from coffee_rt.order_api.compat import CompatRoutes
from coffee_rt.order_api.congestion import Congestion, overloaded
from coffee_rt.order_api.doorkeeper import Doorkeeper
from coffee_rt.order_api.gate import Gate
from coffee_rt.order_api.hot import HotApp, HotRoute, flush_tally
from coffee_rt.order_api.http_exchange import problem_answer
from coffee_rt.order_api.intake_producer import IntakeProducer
from coffee_rt.order_api.intake_queue import IntakeLimits, IntakeQueue
from coffee_rt.order_api.metrics import Tally
from coffee_rt.order_api.placing import OrderPlacer
from coffee_rt.order_api.routes import BATCH_PATH, ORDERS_PATH, RECENT_PATH, OrderRoutes
from coffee_rt.order_api.settings import OrderApiSettings
from coffee_rt.order_api.settling import Settling
from coffee_rt.redis_nodes.counts import SharedCounts
from coffee_rt.runtime.breaker import CircuitBreaker, backoff_seconds
from coffee_rt.runtime.lifecycle import Lifecycle
from coffee_rt.runtime.settings import SettingsError
from coffee_rt.store.intake import PostgresIntake
from coffee_rt.store.intake_contract import Intake as DatabaseIntake
from coffee_rt.store.key_refresh import keep_fresh
from coffee_rt.store.pool import Pool, create_pool
from coffee_rt.streams.admission import Admission, AdmissionLimits
from coffee_rt.streams.contract import STORE_GROUP, LogKeeper, OrderProducer
from coffee_rt.streams.flush import ProducerLimits
from coffee_rt.streams.producer import GroupProducer
from coffee_rt.streams.redis_log import RedisLog

INTAKE_FAILURES = 2
INTAKE_OPEN_SECONDS = 5.0
"""A database that does not answer is left alone so long: both stores being away is answered at once then."""


@dataclass(frozen=True, slots=True)
class OrderApi:
    """The assembled process; `app` is what the HTTP server runs."""

    app: HotApp
    producer: OrderProducer
    keeper: LogKeeper
    doorkeeper: Doorkeeper


def load_catalogue(settings: OrderApiSettings) -> Catalogue:
    """The closed lists of stores and drinks, if there are any. Raises SettingsError."""
    path = settings.catalogue_file
    if path is None:
        return Catalogue()
    name = "COFFEE_RT_ORDER_API_CATALOGUE_FILE"
    try:
        document: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise SettingsError(f"{name}: can't read {path}: {error}") from None
    if not isinstance(document, dict) or not set(document) <= {"stores", "drinks"}:
        raise SettingsError(f"{name}: {path} must hold the lists `stores` and `drinks`, no more")
    for listed in document.values():
        if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
            raise SettingsError(f"{name}: {path} must hold lists of texts")
    return Catalogue(document.get("stores"), document.get("drinks"))


def admission_limits(settings: OrderApiSettings) -> AdmissionLimits:
    return AdmissionLimits(
        memory_ratio_slow=settings.memory_ratio_slow,
        memory_ratio_max=settings.memory_ratio_max,
        backlog_bytes_max=settings.backlog_bytes_max,
        undelivered_records_max=settings.undelivered_records_max,
        oldest_seconds_max=settings.backlog_hours_max * 3600,
    )


def producer_limits(settings: OrderApiSettings) -> ProducerLimits:
    """The producer's bounds as this process is told them."""
    return ProducerLimits(
        flush_records_max=settings.flush_records_max,
        queue_records_max=settings.queue_records_max,
        queue_bytes_max=settings.queue_bytes_max,
        wait_seconds_max=settings.wait_seconds_max,
        reply_seconds_max=settings.redis.command_seconds_max,
        key_window_seconds=settings.key_window_hours * 3600,
        replicas_min=settings.replicas_min,
        is_disk_awaited=settings.replicas_level == "disk",
        replicas_wait_seconds_max=settings.replicas_wait_seconds_max,
    )


@asynccontextmanager
async def open_order_api(
    settings: OrderApiSettings, lifecycle: Lifecycle
) -> AsyncIterator[OrderApi]:
    """The process while the context is open. Redis may be away: the process is then not ready."""
    clock = lifecycle.clock
    breaker = CircuitBreaker(
        "log",
        failures=settings.breaker_failures,
        open_seconds=settings.breaker_open_seconds,
        clock=clock,
    )
    log = RedisLog(settings.redis, settings.namespace, settings.shards, clock, breaker)
    producer, keeper = log.producer(producer_limits(settings)), log.keeper()
    channels = RedisChannels(settings.redis, namespace=settings.namespace)
    counts = SharedCounts(settings.redis, settings.namespace)

    pool = await _open_pool(settings)
    try:
        if not await _greet_log(producer, lifecycle):
            lifecycle.spawn(_keep_greeting(producer, lifecycle), "greet-log")
        intake = PostgresIntake(pool) if pool is not None and settings.intake else None
        queue = None if intake is None else _make_queue(settings, lifecycle, producer, intake)
        settling = Settling(keeper, intake, clock)
        acks = Acks(channels, settling.is_settled, clock, waits_max=settings.ack_waits_max)
        admission = Admission(keeper, STORE_GROUP, admission_limits(settings))
        watch = IntakeWatch(
            admission, producer, lifecycle.health, settings.clock_offset_seconds_max, queue
        )
        rate = RateLimiter(counts, clock, "rate")
        ring = None if pool is None else await _open_keys(settings, lifecycle, pool)
        gate = Gate(callers_of(settings, ring, rate, clock), admission)
        places = producer if queue is None else IntakeProducer(producer, queue)
        congestion = Congestion(
            clock,
            producer.look,
            wait_seconds_max=settings.wait_seconds_max,
            turn_seconds_max=settings.turn_seconds_max,
        )
        app = assemble(settings, lifecycle, places, acks, gate, congestion)
        lifecycle.spawn(producer.join(), "flushes")
        lifecycle.spawn(watch.run(clock), "intake-watch")
        lifecycle.spawn(congestion.run(), "congestion")
        lifecycle.spawn(acks.run(), "acks")
        lifecycle.spawn(rate.run(settings.rate_settle_seconds), "rates")
        doorkeeper = Doorkeeper(
            clock,
            congestion,
            problem_answer(problem_of(overloaded())).to_bytes(is_last=True),
            lambda: lifecycle.is_draining,
            wait_seconds_max=settings.wait_seconds_max,
            turn_seconds_max=settings.turn_seconds_max,
        )
        yield OrderApi(app, producer, keeper, doorkeeper)
    finally:
        await lifecycle.stop_tasks()
        if pool is not None:
            await pool.close()
        await producer.close()
        await keeper.close()
        await channels.close()
        await counts.close()


def assemble(
    settings: OrderApiSettings,
    lifecycle: Lifecycle,
    producer: OrderProducer,
    acks: Acks,
    gate: Gate,
    congestion: Congestion,
) -> HotApp:
    """The ASGI application on these parts."""
    tally = Tally()
    lifecycle.spawn(flush_tally(tally, lifecycle.clock.sleep), "tally")
    catalogue = load_catalogue(settings)
    placer = OrderPlacer(producer, Intake(settings.currency_decimals, catalogue))
    batches = BatchPlacer(
        placer,
        slice_records_max=settings.batch_slice_records_max,
        record_bytes_max=settings.order_bytes_max,
    )
    orders = OrderRoutes(settings, placer, batches, acks, tally)
    lenient = Intake(settings.currency_decimals, catalogue, is_utc_assumed=True)
    routes = CompatRoutes(settings, placer, lenient, acks, tally).routes()
    routes[ORDERS_PATH] = HotRoute("order", orders.post_order, read_at=RECENT_PATH.encode())
    routes[BATCH_PATH] = HotRoute("batch", orders.post_batch)
    room = BodyRoom(settings.bodies_bytes_max)
    return HotApp(build_app(lifecycle.health), gate, routes, tally, congestion, room)


async def _greet_log(producer: GroupProducer, lifecycle: Lifecycle) -> bool:
    """Connect, check the installation, learn the clock; False while Redis is away, which is no reason not
    to start. Another installation is. Raises SettingsError."""
    try:
        await producer.start()
    except Rejected as error:
        raise SettingsError(error.detail) from None
    except Retryable as error:
        lifecycle.log.warning("the log is away", reason=str(error))
        return False
    return True


async def _keep_greeting(producer: GroupProducer, lifecycle: Lifecycle) -> None:
    attempt = 0
    while not await _greet_log(producer, lifecycle):
        await lifecycle.clock.sleep(1 + backoff_seconds(attempt))
        attempt += 1


def _warn_of_keys(lifecycle: Lifecycle, error: CoffeeRtError) -> None:
    lifecycle.log.warning("the API keys could not be read", reason=str(error))


async def _open_pool(settings: OrderApiSettings) -> Pool | None:
    """For API keys and the intake; None where neither is wanted. PostgreSQL may be away."""
    if settings.auth == "off" and not settings.intake:
        return None
    return await create_pool(settings.database, application_name="coffee-rt order_api")


def _make_queue(
    settings: OrderApiSettings,
    lifecycle: Lifecycle,
    producer: OrderProducer,
    intake: DatabaseIntake,
) -> IntakeQueue:
    breaker = CircuitBreaker(
        "intake",
        failures=INTAKE_FAILURES,
        open_seconds=min(settings.breaker_open_seconds, INTAKE_OPEN_SECONDS),
        clock=lifecycle.clock,
    )
    limits = IntakeLimits(
        records_max=settings.intake_records_max,
        size_bytes_max=settings.intake_bytes_max,
        records_per_second_max=settings.intake_records_per_second_max,
        key_window_seconds=settings.key_window_hours * 3600,
    )
    queue = IntakeQueue(intake, producer, breaker, lifecycle.clock, limits)
    lifecycle.spawn(queue.run(), "intake")
    return queue


async def _open_keys(
    settings: OrderApiSettings, lifecycle: Lifecycle, pool: Pool
) -> KeyRing | None:
    ring = key_ring_of(settings)
    if ring is not None:
        watch = KeyWatch(ring, lifecycle.clock, partial(_warn_of_keys, lifecycle))
        await keep_fresh(ring, pool, lifecycle, settings.keys_refresh_seconds, watch.see)
    return ring
