"""An order is found in every moment of its way from the log to PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from coffee_rt.errors import Retryable
from coffee_rt.query_api.finding import OrderFinder
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import SystemClock
from coffee_rt.runtime.settings import DatabaseSettings
from coffee_rt.store.orders import PostgresOrderWriter
from coffee_rt.store.pool import create_pool
from coffee_rt.store.queries import PostgresOrderReader
from coffee_rt.worker.decoding import EntryDecoder
from tests.streams_bed import RedisBed, an_append
from tests.workers import entry_fields, now_order, until

pytestmark = pytest.mark.integration


class Between:
    """A server that lets something happen right after it was first asked for an order."""

    def __init__(self, asked: Any, happen: Callable[[], Awaitable[None]]) -> None:
        self._asked = asked
        self._happen = happen

    async def find_order(self, *arguments: Any) -> Any:
        found = await self._asked.find_order(*arguments)
        await self._happen()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._asked, name)


async def test_an_order_stored_and_trimmed_between_two_looks_is_found(
    valkey_url: str, redis_namespace: str, database_url: str
) -> None:
    """Whichever server is asked first: what is trimmed meanwhile was seen in the log before."""
    bed = RedisBed(valkey_url, redis_namespace)
    pool = await create_pool(DatabaseSettings(url=database_url))
    writer, keeper, reader = PostgresOrderWriter(pool), bed.keeper(), bed.reader()
    orders = PostgresOrderReader(pool)
    has_moved = False

    async def move() -> None:
        """A worker and a trim, both done in the worst moment."""
        nonlocal has_moved
        if has_moved:
            return
        has_moved = True
        [delivery] = await reader.read(0, 1, 1.0)
        entry = EntryDecoder(400).decode(delivery, int(time.time() * 1000))
        await writer.commit(writer.prepare([entry]))
        await reader.acknowledge(0, [delivery])

        async def is_trimmed() -> bool:
            await keeper.trim(0, 0)
            return (await keeper.horizon(0)).first_entry is None

        await until(is_trimmed)

    try:
        await keeper.ensure_group("workers")
        producer = bed.producer()
        await producer.start()
        append = an_append(producer)
        await producer.append(0, append)
        log: Any = Between(keeper, move)
        database: Any = Between(orders, move)
        clock = SystemClock()
        finder = OrderFinder(
            log,
            database,
            CircuitBreaker("redis", clock=clock),
            CircuitBreaker("postgresql", clock=clock),
        )
        found = await finder.find(0, append.order_id)
        assert has_moved
        assert found is not None
        assert found.order is not None
        assert found.order.order_id == append.order_id
    finally:
        await bed.close()
        await pool.close()


async def test_an_order_of_a_newer_release_is_not_denied(
    valkey_url: str, redis_namespace: str, database_url: str
) -> None:
    """It may have been accepted, so the answer is "not known", and one such order closes no breaker."""
    bed = RedisBed(valkey_url, redis_namespace)
    pool = await create_pool(DatabaseSettings(url=database_url))
    try:
        order, other = now_order(), now_order()
        await bed.insert_raw(0, entry_fields([order], counter=1) | {b"v": b"99"})
        clock = SystemClock()
        log_breaker = CircuitBreaker("redis", clock=clock, failures=1)
        finder = OrderFinder(
            bed.keeper(),
            PostgresOrderReader(pool),
            log_breaker,
            CircuitBreaker("postgresql", clock=clock),
        )
        with pytest.raises(Retryable, match="newer release"):
            await finder.find(0, order.order_id)
        assert not log_breaker.is_open
        assert await finder.find(0, other.order_id) is None
    finally:
        await bed.close()
        await pool.close()
