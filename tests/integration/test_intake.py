"""Orders while Redis is away, or is away for some of the processes: each is taken and stored once, whatever
came first. A process that is cut off is given an address where nobody listens."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest

from coffee_rt.domain.ids import IdMinter, format_id, parse_id
from coffee_rt.domain.wire import INTAKE_SHARD, WIRE_VERSION, encode_record
from coffee_rt.errors import Busy, Retryable
from coffee_rt.order_api.intake_queue import IntakeLimits, IntakeQueue
from coffee_rt.query_api.finding import Found, OrderFinder
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import SystemClock
from coffee_rt.runtime.lifecycle import Lifecycle
from coffee_rt.runtime.settings import DatabaseSettings, RedisSettings
from coffee_rt.store.intake import PostgresIntake
from coffee_rt.store.intake_contract import IntakeWrite
from coffee_rt.store.pool import create_pool
from coffee_rt.store.queries import PostgresOrderReader
from coffee_rt.streams.contract import Position
from coffee_rt.streams.redis_log import RedisLog
from coffee_rt.worker.settings import WorkerSettings
from coffee_rt.worker.wiring import build_worker
from tests.builders import NOW_MS, an_order
from tests.integration.order_api_process import (
    BATCH,
    ORDER,
    ORDERS,
    Reply,
    RunningOrderApi,
    running_order_api,
)
from tests.workers import until

pytestmark = pytest.mark.integration

NOWHERE = "redis://127.0.0.1:1/0"
LIMIT_SECONDS = 60.0


class Outage:
    """order_api processes that see Redis (`log`) or are cut off from it (`cut`, `cut2`), one database, and a
    worker that sees both, as soon as a test starts it."""

    def __init__(self, valkey_url: str, namespace: str, database_url: str) -> None:
        self.stack = AsyncExitStack()
        self._valkey_url = valkey_url
        self._namespace = namespace
        self.database = DatabaseSettings(url=database_url)
        self._apis: dict[str, RunningOrderApi] = {}
        self._workers = itertools.count(1)

    async def open(self) -> None:
        self.connection = await asyncpg.connect(self.database.url)
        self.stack.push_async_callback(self.connection.close)
        self.pool = await create_pool(self.database)
        self.stack.push_async_callback(self.pool.close)
        self.intake = PostgresIntake(self.pool)
        self.keeper = RedisLog(RedisSettings(url=self._valkey_url), self._namespace, 4).keeper()
        self.stack.push_async_callback(self.keeper.close)

    async def api(self, name: str = "cut", **changes: Any) -> RunningOrderApi:
        if name not in self._apis:
            url = self._valkey_url if name == "log" else NOWHERE
            values: dict[str, Any] = {"database": self.database, "breaker_open_seconds": 0.2}
            # One that is cut off is ready only after some seconds, and takes orders at once.
            running = running_order_api(
                url, self._namespace, is_awaited=name == "log", **(values | changes)
            )
            self._apis[name] = await self.stack.enter_async_context(running)
        return self._apis[name]

    async def post(self, name: str, key: str | None = None, body: Any = None) -> Reply:
        api = await self.api(name)
        sent = ORDER if body is None else body
        if key is None:
            return await api.post(ORDERS, sent)
        return await api.post(ORDERS, sent, idempotency_key=key)

    async def start_worker(self, url: str = "", **changes: Any) -> None:
        """Drained when the test ends. `url`: of another Redis."""
        settings = WorkerSettings(
            http_port=0,
            namespace=self._namespace,
            instance=f"w{next(self._workers)}",
            redis=RedisSettings(url=url or self._valkey_url),
            database=self.database,
            care_seconds=0.2,
            read_wait_seconds=0.1,
            **changes,
        )
        worker = await self.stack.enter_async_context(build_worker(settings, Lifecycle("worker")))
        running = asyncio.create_task(worker.run())

        async def end() -> None:
            worker.begin_drain()
            await asyncio.wait_for(running, LIMIT_SECONDS)

        self.stack.push_async_callback(end)

    async def settle(self) -> None:
        """Until the worker has stored all there is, in the log and in the intake."""

        async def is_done() -> bool:
            backlog = await self.keeper.backlog("workers")
            state = await self.intake.state()
            return not state.records and not any(shard.records for shard in backlog)

        await self.keeper.ensure_group("workers")
        await until(is_done, LIMIT_SECONDS)
        assert (await self.intake.state()).imbalance == 0

    async def orders(self) -> int:
        return int(await self.connection.fetchval("SELECT count(*) FROM orders"))

    async def find(self, order_id: str) -> Found | None:
        log, database = (CircuitBreaker(name, failures=100) for name in ("log", "database"))
        reader = PostgresOrderReader(self.pool)
        finder = OrderFinder(self.keeper, reader, log, database, self.intake)
        return await finder.find(0, parse_id(order_id))


@pytest.fixture
async def outage(valkey_url: str, redis_namespace: str, database_url: str) -> AsyncIterator[Outage]:
    made = Outage(valkey_url, redis_namespace, database_url)
    await made.open()
    yield made
    await made.stack.aclose()


async def test_an_order_is_taken_found_and_stored_though_redis_is_away(outage: Outage) -> None:
    reply = await outage.post("cut")
    assert reply.status == 202, reply.body
    assert (reply.json["ack"], reply.json["duplicate"]) == ("logged", False)
    position = Position.parse(reply.json["position"])
    assert position.shard == INTAKE_SHARD
    found = await outage.find(reply.json["order_id"])
    assert found is not None
    assert (found.state, found.position) == ("logged", position)
    await outage.start_worker()
    await outage.settle()
    found = await outage.find(reply.json["order_id"])
    assert found is not None
    assert found.state == "stored"
    assert await outage.orders() == 1
    assert await PostgresOrderReader(outage.pool).is_entry_stored(position.shard, position.batch_id)


async def test_an_order_in_a_batch_of_a_newer_release_is_not_denied(outage: Outage) -> None:
    reply = await outage.post("cut")
    await outage.connection.execute("UPDATE intake SET version = 99")
    with pytest.raises(Retryable, match="newer release"):
        await outage.find(reply.json["order_id"])


async def test_a_repetition_that_only_the_intake_answers_is_a_write_of_its_own(
    outage: Outage,
) -> None:
    """It is then answered only when what it repeats is on the standbys that a commit waits for."""
    assert (await outage.post("cut", "till-1")).status == 202
    before = await outage.connection.fetchval("SELECT count(*) FROM intake_accepted")
    again = await outage.post("cut", "till-1")
    assert (again.status, again.json["duplicate"]) == (202, True)
    assert await outage.connection.fetchval("SELECT count(*) FROM intake_accepted") == before + 1
    assert (await outage.intake.state()).imbalance == 0


async def test_a_busy_pool_is_no_outage_of_the_intake(
    valkey_url: str, redis_namespace: str, database_url: str
) -> None:
    settings = DatabaseSettings(url=database_url, pool_size_max=1, acquire_seconds_max=0.1)
    pool = await create_pool(settings)
    intake = PostgresIntake(pool)
    producer = RedisLog(RedisSettings(url=valkey_url), redis_namespace, 4).producer()
    breaker = CircuitBreaker("intake", failures=1, open_seconds=600)
    queue = IntakeQueue(intake, producer, breaker, SystemClock(), IntakeLimits())
    write = IntakeWrite(IdMinter().mint(NOW_MS), WIRE_VERSION, [encode_record(an_order())], [])
    async with pool.connection():
        assert not await queue.is_usable()
        with pytest.raises(Busy):
            await intake.append(write)
    assert await queue.is_usable()
    await producer.close()
    await pool.close()


async def test_a_worker_that_starts_while_redis_is_away_stores_what_waits(outage: Outage) -> None:
    assert (await outage.post("cut", "till-1")).status == 202
    await outage.start_worker(NOWHERE)

    async def is_empty() -> bool:
        return not (await outage.intake.state()).records

    await until(is_empty, LIMIT_SECONDS)
    assert await outage.orders() == 1
    assert (await outage.post("cut")).status == 202
    await until(is_empty, LIMIT_SECONDS)
    assert await outage.orders() == 2


async def test_a_process_cut_off_from_redis_is_ready_and_says_what_is_degraded(
    outage: Outage,
) -> None:
    api = await outage.api("cut")

    async def is_ready() -> bool:
        return (await api.request("GET", "/readyz")).status == 200

    await until(is_ready, LIMIT_SECONDS)
    ready = await api.request("GET", "/readyz")
    assert "intake" in ready.json["components"]["log"]["detail"]


@pytest.mark.parametrize(
    "path", [("log", "cut"), ("cut", "log"), ("cut", "cut2"), ("cut", "cut")], ids="-".join
)
@pytest.mark.parametrize("worker", ["first", "between", "last"])
async def test_one_key_makes_one_order_whoever_takes_it_first(
    outage: Outage, path: tuple[str, str], worker: str
) -> None:
    """Before, during and after an outage, and with only some processes cut off; stored between or not."""
    if worker == "first":
        await outage.start_worker()
    first = await outage.post(path[0], "till-1")
    if worker == "between":
        await outage.start_worker()
    if worker != "last":
        await outage.settle()
    second = await outage.post(path[1], "till-1")
    third = await outage.post(path[0], "till-1")
    if worker == "last":
        await outage.start_worker()
    await outage.settle()
    replies = (first, second, third)
    assert {reply.status for reply in replies} == {202}
    assert third.json["duplicate"]
    assert await outage.orders() == 1
    assert await outage.connection.fetchval("SELECT count(*) FROM dead_letters") == 0
    kept = await outage.connection.fetchval("SELECT order_id FROM orders")
    for reply in replies:
        found = await outage.find(reply.json["order_id"])
        assert found is not None
        assert found.order is not None
        assert found.order.order_id == kept.bytes


@pytest.mark.parametrize("path", [("log", "cut"), ("cut", "log"), ("cut", "cut2")], ids="-".join)
async def test_a_clients_own_id_makes_one_order_whoever_takes_it_first(
    outage: Outage, path: tuple[str, str]
) -> None:
    api = await outage.api("cut")
    now_ms = int(api.lifecycle.clock.now() * 1000)
    body = ORDER | {"order_id": format_id(IdMinter().mint(now_ms))}
    replies = [await outage.post(name, None, body) for name in path]
    assert {reply.json["order_id"] for reply in replies} == {body["order_id"]}
    await outage.start_worker()
    await outage.settle()
    assert await outage.orders() == 1
    again = [await outage.post(name, None, body) for name in path]
    assert [reply.json["duplicate"] for reply in again] == [True, True]


async def test_another_body_under_a_key_is_a_conflict_or_found_by_the_worker(
    outage: Outage,
) -> None:
    other = ORDER | {"quantity": 2}
    assert (await outage.post("cut", "k")).status == 202
    for name in ("cut", "cut2"):
        assert (await outage.post(name, "k", other)).status == 409
    late = await outage.post("log", "k", other)
    assert late.status == 202
    await outage.start_worker()
    await outage.settle()
    assert await outage.orders() == 1
    found = await outage.find(late.json["order_id"])
    assert found is not None
    assert found.dead_letter is not None
    assert found.dead_letter.code == "idempotency-key-conflict"


async def test_a_batch_under_one_key_is_repeated_across_the_outage(outage: Outage) -> None:
    records = [ORDER | {"quantity": 1 + index} for index in range(5)]
    ids = set()
    for name in ("log", "cut", "cut2", "log"):
        api = await outage.api(name)
        reply = await api.post(BATCH, records, idempotency_key="morning")
        assert (reply.status, reply.json["accepted"]) == (202, 5)
        ids |= {result["order_id"] for result in reply.json["results"]}
    await outage.start_worker()
    await outage.settle()
    assert await outage.orders() == 5
    assert await outage.connection.fetchval("SELECT sum(quantity) FROM orders") == 15
    for order_id in ids:
        assert await outage.find(order_id) is not None


async def test_two_workers_drain_a_large_intake_once(outage: Outage) -> None:
    api = await outage.api("cut", intake_records_per_second_max=50_000)
    records = [ORDER] * 2_000
    replies = await asyncio.gather(*(api.post(BATCH, records) for _ in range(4)))
    assert [reply.json["accepted"] for reply in replies] == [2_000] * 4
    await outage.start_worker()
    await outage.start_worker()
    await outage.settle()
    assert await outage.orders() == 8_000


async def test_ack_stored_waits_for_the_worker_or_says_what_is_known(outage: Outage) -> None:
    api = await outage.api("cut")
    early = await api.post(f"{ORDERS}?ack=stored&wait_ms=100", ORDER)
    assert (early.status, early.json["ack"]) == (202, "logged")
    await outage.start_worker()
    stored = await api.post(f"{ORDERS}?ack=stored&wait_ms=30000", ORDER)
    assert (stored.status, stored.json["ack"]) == (202, "stored")


async def test_a_full_intake_says_when_to_come_back(outage: Outage) -> None:
    api = await outage.api("cut", intake_records_max=3)
    assert (await api.post(BATCH, [ORDER] * 3)).json["accepted"] == 3
    await asyncio.sleep(1.1)  # What a process knows of the intake may be a second old.
    refused = await api.post(ORDERS, ORDER)
    assert refused.status == 503
    assert refused.json["type"].endswith(":intake-full")
    assert int(refused.headers["retry-after"]) >= 1


async def test_with_both_stores_away_an_order_gets_503_and_when_to_come_back(
    valkey_url: str, redis_namespace: str
) -> None:
    nowhere = DatabaseSettings(url="postgresql://127.0.0.1:1/none", acquire_seconds_max=1)
    async with running_order_api(
        NOWHERE, redis_namespace, is_awaited=False, database=nowhere
    ) as api:
        for _ in range(4):
            reply = await api.post(ORDERS, ORDER, idempotency_key="k")
            assert reply.status == 503
            assert reply.json["type"].endswith(":temporarily-away")
            assert int(reply.headers["retry-after"]) >= 1
        assert (await api.request("GET", "/readyz")).status == 503


async def test_keyed_orders_are_refused_while_not_all_keys_are_noted(outage: Outage) -> None:
    """After an upgrade, or where a worker notes none: an earlier order of the key may be unknown here."""
    await outage.intake.note_keys(False)
    refused = await outage.post("cut", "k")
    assert refused.status == 503
    assert refused.json["type"].endswith(":intake-keys")
    assert (await outage.post("cut")).status == 202
    await outage.intake.note_keys(True)
    await asyncio.sleep(1.1)  # What a process knows of the intake may be a second old.
    assert (await outage.post("cut", "k")).status == 503
