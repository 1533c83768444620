"""A whole fanout process in the test's loop, on real Valkey and PostgreSQL, and hands to feed it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
from websockets.asyncio.client import ClientConnection, connect

from coffee_rt.aggregator.publishing import beacon_of, change_of
from coffee_rt.channels.messages import RecentOrders, encode, recent_order
from coffee_rt.channels.redis import RedisChannels
from coffee_rt.domain.ids import IdMinter
from coffee_rt.domain.orders import Order
from coffee_rt.fanout.settings import FanoutSettings
from coffee_rt.fanout.wiring import Fanout, wired
from coffee_rt.runtime.lifecycle import Lifecycle, serve_http
from coffee_rt.runtime.settings import DatabaseSettings, RedisSettings
from coffee_rt.store.contract import EntryWrite
from coffee_rt.store.definitions import load_definitions
from coffee_rt.store.keeper import PostgresKeeper
from coffee_rt.store.orders import PostgresOrderWriter
from coffee_rt.store.pool import Pool
from coffee_rt.store.view_catalogue import PostgresViewCatalogue
from coffee_rt.store.view_fold import PostgresViewFolder
from coffee_rt.store.view_repair import PostgresViewRepairer
from tests.builders import an_order
from tests.view_writing import a_pool

MINTER = IdMinter()
WAIT_SECONDS = 10.0


@dataclass
class Platform:
    """A served fanout, and what stands for worker and aggregator."""

    fanout: Fanout
    lifecycle: Lifecycle
    pool: Pool
    channels: RedisChannels
    session: aiohttp.ClientSession
    http: str
    socket: str
    now_us: int
    entries: int = 0

    def order(self, **changes: Any) -> Order:
        return an_order(accepted_at_us=self.now_us, **changes)

    async def store(self, *orders: Order) -> None:
        """Commit orders and say so."""
        self.entries += 1
        writer = PostgresOrderWriter(self.pool)
        entry = EntryWrite(
            shard=0,
            entry=(self.now_us // 1000, self.entries),
            batch_id=MINTER.mint(self.now_us // 1000),
            counter=self.entries,
            records=len(orders),
            orders=orders,
        )
        await writer.refresh_catalogue()
        await writer.commit(writer.prepare([entry]))
        recent = [recent_order(order, 2) for order in orders]
        await self.channels.publish("orders", encode(RecentOrders(recent, len(orders))))

    async def fold(self, *, is_published: bool = True) -> None:
        """Fold what waits, and publish it."""
        folder = PostgresViewFolder(self.pool)
        for work in await folder.waiting_lanes():
            fold = await folder.fold_lane(work.key, 10_000, 10_000)
            if fold is not None and is_published:
                await self.channels.publish(f"view:{fold.view}", encode(change_of(fold)))

    async def beacon(self) -> None:
        epochs, lanes = await PostgresViewFolder(self.pool).lane_versions()
        await self.channels.publish("beacon", encode(beacon_of(0, epochs, lanes)))

    @asynccontextmanager
    async def connected(self, path: str = "/ws", **options: Any) -> AsyncIterator[Talk]:
        async with connect(self.socket + path, **options) as connection:
            yield Talk(connection)


class Talk:
    """A conversation over a WebSocket."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.seen: list[dict[str, Any]] = []

    async def say(self, **message: Any) -> None:
        await self.connection.send(encode(message).decode())

    async def hear(self, *types: str) -> dict[str, Any]:
        """The next message of one of the types."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                message: dict[str, Any] = msgspec.json.decode(await self.connection.recv())
                self.seen.append(message)
                if not types or message["type"] in types:
                    return message

    async def hear_close(self) -> tuple[int, str]:
        async with asyncio.timeout(WAIT_SECONDS):
            await self.connection.wait_closed()
        return self.connection.close_code or 0, self.connection.close_reason or ""


@asynccontextmanager
async def served(
    database_url: str, valkey_url: str, namespace: str, **changes: Any
) -> AsyncIterator[Platform]:
    """`changes` are settings of the process."""
    settings = FanoutSettings(
        **{
            "auth": "off",
            "http_port": 0,
            "websocket_port": 0,
            "namespace": namespace,
            "redis": RedisSettings(url=valkey_url),
            "database": DatabaseSettings(url=database_url),
            "drain_seconds": 0.2,
            **changes,
        }
    )
    lifecycle = Lifecycle("fanout")
    channels = RedisChannels(valkey_url, namespace=namespace)
    now_us = int(time.time() * 1_000_000)
    async with a_pool(database_url) as pool, aiohttp.ClientSession() as session:
        for name in await PostgresViewCatalogue(pool).ensure_views(load_definitions()):
            await PostgresViewRepairer(pool).mark_backfilled(name, None)
        await PostgresKeeper(pool).ensure_partitions(now_us // 1000, 2)
        async with wired(settings, lifecycle) as fanout:
            await fanout.start()
            serving = lifecycle.spawn(serve_http(fanout.app, settings, lifecycle), "http")
            host, port = await lifecycle.wait_listening()
            platform = Platform(
                fanout,
                lifecycle,
                pool,
                channels,
                session,
                f"http://{host}:{port}",
                f"ws://127.0.0.1:{fanout.server.port}",
                now_us,
            )
            await until_ready(platform)
            yield platform
            lifecycle.begin_drain()
            await fanout.drain()
            await session.close()
            await serving
        await lifecycle.stop_tasks()
        await channels.close()


async def until_ready(platform: Platform) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            async with platform.session.get(f"{platform.http}/readyz") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.02)


def rows_of(frames: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of frames, by column name."""
    return [dict(zip(columns, row, strict=True)) for frame in frames for row in frame["rows"]]
