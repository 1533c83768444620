"""The worker between a real Valkey and a real PostgreSQL: exactly once, whatever is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import aiohttp
import asyncpg
import pytest
import redis.asyncio as redis

from coffee_rt.domain.orders import Order
from coffee_rt.domain.wire import encode_record
from coffee_rt.runtime.environment import environment, to_environ
from coffee_rt.runtime.lifecycle import Lifecycle
from coffee_rt.runtime.settings import DatabaseSettings, RedisSettings
from coffee_rt.store.definitions import load_definitions
from coffee_rt.store.migrations import migrate
from coffee_rt.store.pool import create_pool
from coffee_rt.store.view_catalogue import PostgresViewCatalogue
from coffee_rt.streams.contract import Append
from coffee_rt.streams.reader import RedisReader
from coffee_rt.streams.redis import LinkLost
from coffee_rt.streams.redis_log import RedisLog
from coffee_rt.worker.pipeline import Worker
from coffee_rt.worker.settings import WorkerSettings
from coffee_rt.worker.wiring import build_worker
from tests.workers import entry_fields, now_order, raw_fields, until

pytestmark = pytest.mark.integration

SHARDS = 2
SETTINGS: dict[str, Any] = {
    "shards": SHARDS,
    "http_port": 0,
    "linger_ms": 5,
    "read_wait_seconds": 0.1,
    "claim_every_seconds": 0.2,
    "backoff_seconds_max": 0.1,
    "grace_seconds": 20.0,
}


class Bed:
    """A log, a database with the built-in views, and workers between them."""

    def __init__(self, valkey_url: str, database_url: str, namespace: str) -> None:
        self.redis = RedisSettings(url=valkey_url)
        self.database = DatabaseSettings(url=database_url)
        self.namespace = namespace
        self.log = RedisLog(self.redis, namespace, SHARDS)
        self.producer = self.log.producer()
        self.client: Any = redis.from_url(valkey_url)
        self.children: list[asyncio.subprocess.Process] = []

    async def open(self) -> None:
        self.connection = await asyncpg.connect(self.database.url)
        pool = await create_pool(self.database)
        await PostgresViewCatalogue(pool).ensure_views(load_definitions())
        await pool.close()

    async def reconnect(self) -> None:
        """The test's own connection, after PostgreSQL was away."""
        self.connection = await asyncpg.connect(self.database.url)

    async def close(self) -> None:
        for child in self.children:
            if child.returncode is None:
                child.kill()
            await child.wait()
        await self.producer.close()
        await self.client.aclose()
        await self.connection.close()

    def settings(self, instance: str, **changes: Any) -> WorkerSettings:
        servers = {"redis": self.redis, "database": self.database}
        return WorkerSettings(
            **{**SETTINGS, **servers, "namespace": self.namespace, "instance": instance, **changes}
        )

    @asynccontextmanager
    async def worker(self, instance: str = "w1", **changes: Any) -> AsyncIterator[Worker]:
        """A worker in this process; drained at the end."""
        lifecycle = Lifecycle("worker")
        async with build_worker(self.settings(instance, **changes), lifecycle) as worker:
            running = asyncio.create_task(worker.run())
            try:
                yield worker
            finally:
                worker.begin_drain()
                await asyncio.wait_for(running, 20)

    async def spawn(self, instance: str, **changes: Any) -> asyncio.subprocess.Process:
        """A worker as a process of its own."""
        environ = environment() | to_environ(self.settings(instance, **changes))
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "coffee_rt.worker.main",
            env=environ,
            stdout=asyncio.subprocess.PIPE,
        )
        self.children.append(child)
        return child

    async def append(self, orders: Sequence[Order], shard: int = 0) -> None:
        """As order_api does it."""
        await self.producer.append_many(
            shard,
            [Append(order.order_id, encode_record(order), order.body_hash) for order in orders],
        )

    async def insert(self, fields: dict[bytes, bytes], shard: int = 0) -> bytes:
        """As a stranger does it."""
        return bytes(await self.client.xadd(self.log.keys.streams[shard], fields))

    async def pending(self, group: str = "workers") -> int:
        total = 0
        for stream in self.log.keys.streams:
            if not await self.client.exists(stream):
                continue
            for found in await self.client.xinfo_groups(stream):
                if found["name"].decode() == group:
                    total += found["pending"]
        return total

    async def stored(self) -> set[bytes]:
        rows = await self.connection.fetch("SELECT order_id FROM orders")
        return {row["order_id"].bytes for row in rows}

    async def is_stored(self, orders: Sequence[Order]) -> bool:
        return await self.stored() == {order.order_id for order in orders} and (
            await self.pending() == 0
        )

    async def wait_stored(self, orders: Sequence[Order]) -> None:
        await until(lambda: self.is_stored(orders), 30)

    async def count_in_views(self) -> list[int]:
        """Orders that each view's deltas add up to (nothing folds here)."""
        rows = await self.connection.fetch("SELECT internal FROM view_catalogue ORDER BY internal")
        return [
            await self.connection.fetchval(f"SELECT sum(orders)::int FROM mv_{row[0]}_deltas")
            for row in rows
        ]


@pytest.fixture
async def bed(valkey_url: str, database_url: str, redis_namespace: str) -> AsyncIterator[Bed]:
    made = Bed(valkey_url, database_url, redis_namespace)
    await made.open()
    yield made
    await made.close()


def orders(count: int) -> list[Order]:
    return [now_order() for _ in range(count)]


async def test_orders_are_stored_with_their_deltas_and_acknowledged(bed: Bed) -> None:
    placed = orders(300)
    await bed.append(placed[:200])
    await bed.append(placed[200:], shard=1)
    async with bed.worker():
        await bed.wait_stored(placed)
        assert await bed.count_in_views() == [300, 300]
    for stream in bed.log.keys.streams:
        for group in await bed.client.xinfo_groups(stream):
            assert group["consumers"] == 0


async def test_crash_after_commit_before_acknowledgement_stores_once(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    acknowledge = RedisReader.acknowledge
    lost: list[int] = []

    async def lose(self: RedisReader, shard: int, deliveries: list[Any], timeline: str) -> int:
        if len(lost) < 3:
            lost.append(shard)
            raise LinkLost("the worker is gone")
        return await acknowledge(self, shard, deliveries, timeline)

    monkeypatch.setattr(RedisReader, "acknowledge", lose)
    placed = orders(90)
    for start in range(0, 90, 30):
        await bed.append(placed[start : start + 30])
    async with bed.worker():
        await bed.wait_stored(placed)
    assert len(lost) == 3
    assert await bed.count_in_views() == [90, 90]
    redelivered = await bed.connection.fetchval("SELECT sum(redeliveries) FROM stream_entries")
    assert redelivered >= 1


async def test_poison_written_straight_into_the_log_is_isolated(bed: Bed) -> None:
    placed = orders(5)
    await bed.append(placed[:2])
    await bed.insert({b"hello": b"world"})
    await bed.insert(raw_fields([encode_record(placed[2]), b"\xc0", b"\x92\x01\x02"], counter=5))
    await bed.insert({**raw_fields([b"\xc0"], counter=6), b"d": b"\xdd\xff\xff\xff\xff"})
    await bed.append(placed[3:])
    async with bed.worker():
        await bed.wait_stored(placed)
    rows = await bed.connection.fetch("SELECT code, raw FROM dead_letters ORDER BY id")
    codes = [row["code"] for row in rows]
    assert sorted(codes) == sorted(
        ["foreign-entry", "unreadable-record", "unreadable-record", "unreadable-entry"]
    )


async def test_data_that_postgres_refuses_is_found_by_bisecting(bed: Bed) -> None:
    await bed.connection.execute(
        "ALTER TABLE orders ADD CONSTRAINT no_mocha CHECK (drink <> 'mocha')"
    )
    good = orders(60)
    bad = now_order(drink="mocha")
    for start in range(0, 60, 2):
        extra = [bad] if start == 30 else []
        await bed.append([*good[start : start + 2], *extra])
    async with bed.worker():
        await bed.wait_stored(good)
    [letter] = await bed.connection.fetch("SELECT order_id, raw FROM dead_letters")
    assert letter["order_id"] == UUID(bytes=bad.order_id)
    assert letter["raw"] == encode_record(bad)
    assert await bed.count_in_views() == [60, 60]


async def test_unknown_version_stays_pending_and_is_not_ready(bed: Bed) -> None:
    placed = orders(4)
    await bed.append(placed)
    child = await bed.spawn("old")
    host, port = await address_of(child)
    await bed.wait_stored(placed)
    await until(lambda: answers(host, port, "/readyz", 200), 20)
    await bed.insert({**entry_fields(orders(1), counter=5), b"v": b"99"})
    await until(lambda: answers(host, port, "/readyz", 503), 20)
    assert await answers(host, port, "/livez", 200)
    assert await bed.pending() == 1
    assert await bed.connection.fetchval("SELECT count(*) FROM dead_letters") == 0
    child.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(child.wait(), 20) == 0
    assert await bed.pending() == 1


async def test_missing_partition_is_made_by_the_commit(bed: Bed) -> None:
    async with bed.worker():
        first = orders(1)
        await bed.append(first)
        await bed.wait_stored(first)
        for row in await bed.connection.fetch(
            "SELECT inhrelid::regclass::text AS name FROM pg_inherits "
            "WHERE inhparent = 'orders'::regclass"
        ):
            await bed.connection.execute(f"DROP TABLE {row['name']}")
        second = orders(10)
        await bed.append(second)
        await bed.wait_stored(second)


async def test_partitions_are_made_ahead_at_start(bed: Bed) -> None:
    async with bed.worker(partition_days_ahead=5):

        async def made() -> bool:
            query = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'orders'::regclass"
            return bool(await bed.connection.fetchval(query) >= 6)

        await until(made, 20)


async def test_sigterm_commits_what_was_read_and_ends_with_0(bed: Bed) -> None:
    child = await bed.spawn("w1", linger_ms=10_000, read_wait_seconds=0.2)
    await address_of(child)
    placed = orders(50)
    await bed.append(placed)

    async def is_read() -> bool:
        return await bed.pending() > 0

    await until(is_read, 20)
    assert not await bed.stored()
    child.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(child.wait(), 20) == 0
    assert await bed.is_stored(placed)


async def test_entries_of_a_stopped_worker_are_claimed(bed: Bed) -> None:
    child = await bed.spawn("frozen", linger_ms=10_000)
    await address_of(child)
    placed = orders(50)
    await bed.append(placed)

    async def is_read() -> bool:
        return await bed.pending() > 0

    await until(is_read, 20)
    child.send_signal(signal.SIGSTOP)
    async with bed.worker("heir", claim_idle_seconds_min=0.3):
        await bed.wait_stored(placed)
        # It wakes up with the same entries in memory: the ledger absorbs them.
        child.send_signal(signal.SIGCONT)
        child.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(child.wait(), 20) == 0
    assert await bed.is_stored(placed)
    assert await bed.count_in_views() == [50, 50]


async def test_slow_second_group_never_loses_an_entry(bed: Bed) -> None:
    keeper = bed.log.keeper()
    await keeper.ensure_group("audit")
    placed = orders(40)
    for start in range(0, 40, 10):
        await bed.append(placed[start : start + 10])
    async with bed.worker(trim_keep_seconds=0, care_seconds=0.1):
        await bed.wait_stored(placed)
        for _ in range(5):
            assert await keeper.trim(0, 0) == 0
        slow = bed.log.reader("audit", "auditor")
        seen = await slow.read(0, 100, 0.1)
        assert sum(delivery.records for delivery in seen) == 40
        await slow.acknowledge(0, seen)
        await slow.leave()

        async def is_trimmed() -> bool:
            return int(await bed.client.xlen(bed.log.keys.streams[0])) == 0

        await until(is_trimmed, 20)
    await keeper.close()


async def test_killed_workers_lose_nothing_and_double_nothing(bed: Bed) -> None:
    placed: list[Order] = []
    killed = 0

    async def post() -> None:
        while killed < 4:
            some = orders(20)
            await bed.append(some, shard=len(placed) % SHARDS)
            placed.extend(some)
            await asyncio.sleep(0.002)

    posting = asyncio.create_task(post())
    for number in range(4):
        child = await bed.spawn(f"mortal-{number}")
        await address_of(child)
        before = len(await bed.stored())

        async def is_busy(before: int = before) -> bool:
            return len(await bed.stored()) > before

        await until(is_busy, 20)
        os.kill(child.pid, signal.SIGKILL)
        await child.wait()
        killed += 1
    await posting
    async with bed.worker("survivor", claim_idle_seconds_min=0.3):
        await bed.wait_stored(placed)
    assert await bed.count_in_views() == [len(placed)] * 2
    total = await bed.connection.fetchrow(
        "SELECT sum(stored) AS stored, sum(records) AS records, sum(dead) AS dead FROM stream_entries"
    )
    assert total is not None
    assert (total["stored"], total["records"], total["dead"]) == (len(placed), len(placed), 0)


async def test_worker_waits_for_the_migrations_and_says_so(
    bed: Bed, empty_database_url: str
) -> None:
    child = await bed.spawn("early", database=DatabaseSettings(url=empty_database_url))
    host, port = await address_of(child)

    async def says_so() -> bool:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{host}:{port}/readyz") as answer,
        ):
            return answer.status == 503 and "coffee-rt migrate" in await answer.text()

    await until(says_so, 20)
    await migrate(empty_database_url)
    await until(lambda: answers(host, port, "/readyz", 200), 30)


async def test_other_number_of_shards_does_not_start(bed: Bed) -> None:
    placed = orders(1)
    await bed.append(placed)
    async with bed.worker():
        await bed.wait_stored(placed)
    child = await bed.spawn("stranger", shards=SHARDS + 1)
    assert child.stdout is not None
    output = (await asyncio.wait_for(child.stdout.read(), 20)).decode()
    assert await child.wait() == 2
    assert f"COFFEE_RT_SHARDS={SHARDS}" in output or f"{SHARDS} shards" in output


async def address_of(child: asyncio.subprocess.Process) -> tuple[str, int]:
    """Where a worker's health is served, from its log; its output is read on in the background."""
    assert child.stdout is not None
    async with asyncio.timeout(20):
        async for line in child.stdout:
            event = json.loads(line)
            if event["event"] == "listening":
                child.draining = asyncio.create_task(child.stdout.read())  # type: ignore[attr-defined]
                return event["host"], event["port"]
    raise AssertionError("the worker ended before it listened")


async def answers(host: str, port: int, path: str, status: int) -> bool:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{host}:{port}{path}") as answer,
    ):
        return answer.status == status
