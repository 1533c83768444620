"""Servers of the worker are killed under load and come back: nothing lost, nothing doubled."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coffee_rt.domain.orders import Order
from coffee_rt.embedded.server_process import LAPTOP, Server
from coffee_rt.embedded.servers import EmbeddedPostgres, EmbeddedValkey
from coffee_rt.errors import CoffeeRtError
from coffee_rt.store.migrations import migrate
from tests.integration.test_worker import SHARDS, Bed, orders
from tests.workers import until

pytestmark = pytest.mark.integration


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[tuple[EmbeddedValkey, EmbeddedPostgres]]:
    """Servers of this test's own, as durable as on a laptop."""
    # PostgreSQL runs as another user where the test is root.
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    valkey = EmbeddedValkey(tmp_path / "valkey", durability=LAPTOP)
    postgres = EmbeddedPostgres(tmp_path / "postgres", durability=LAPTOP)
    await asyncio.to_thread(valkey.start)
    await asyncio.to_thread(postgres.start)
    yield valkey, postgres
    await asyncio.to_thread(valkey.stop)
    await asyncio.to_thread(postgres.stop)


@pytest.mark.parametrize("victim", ["postgres", "valkey"])
async def test_killed_server_comes_back_and_every_order_is_stored_once(
    servers: tuple[EmbeddedValkey, EmbeddedPostgres], victim: str
) -> None:
    valkey, postgres = servers
    await migrate(postgres.url)
    bed = Bed(valkey.url, postgres.url, "outage")
    await bed.open()
    answered: list[Order] = []
    unknown: list[Order] = []
    is_over = asyncio.Event()

    async def post() -> None:
        while not is_over.is_set():
            some = orders(10)
            try:
                await bed.append(some, shard=len(answered) % SHARDS)
                answered.extend(some)
            except CoffeeRtError:
                unknown.extend(some)
            await asyncio.sleep(0.005)

    async with bed.worker(breaker_open_seconds=0.5, claim_idle_seconds_min=1.0):
        posting = asyncio.create_task(post())
        await until(lambda: len(answered) > 200, 20)
        await kill(valkey if victim == "valkey" else postgres)
        count = len(answered)
        await until(lambda: len(answered) > count + 200, 30)
        is_over.set()
        await posting
        if victim == "postgres":
            await bed.reconnect()

        async def is_all_stored() -> bool:
            return {order.order_id for order in answered} <= await bed.stored() and (
                await bed.pending() == 0
            )

        await until(is_all_stored, 40)
    stored = await bed.stored()
    assert stored <= {order.order_id for order in (*answered, *unknown)}
    assert await bed.count_in_views() == [len(stored)] * 2
    await bed.close()


async def kill(server: Server) -> None:
    """kill -9 of the server with all its processes, and a start on the same data."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await asyncio.to_thread(server.process.wait)
    await asyncio.sleep(1.5)
    await asyncio.to_thread(server.start)
