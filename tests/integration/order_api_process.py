"""order_api in this test's loop, on a free port, with the session's real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from coffee_rt.order_api.main import main
from coffee_rt.order_api.settings import OrderApiSettings
from coffee_rt.runtime.lifecycle import Lifecycle
from coffee_rt.runtime.settings import RedisSettings
from coffee_rt.streams.redis_log import RedisLog

ORDERS = "/api/v1/orders"
BATCH = "/api/v1/orders/batch"
JSON = {"content-type": "application/json"}
NDJSON = {"content-type": "application/x-ndjson"}
ORDER: dict[str, Any] = {"store": "uptown", "drink": "latte", "price": "4.50"}
READY_SECONDS_MAX = 10


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


@dataclass(frozen=True)
class RunningOrderApi:
    """The process under test and a client of it."""

    lifecycle: Lifecycle
    settings: OrderApiSettings
    session: aiohttp.ClientSession
    log: RedisLog

    @property
    def port(self) -> int:
        assert self.lifecycle.http_address is not None
        return self.lifecycle.http_address[1]

    async def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Reply:
        """`body`: bytes as they are, anything else as JSON."""
        data = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
        url = f"http://127.0.0.1:{self.port}{path}"
        sent = JSON if headers is None else headers
        async with self.session.request(
            method, url, data=data, headers=sent, skip_auto_headers=["content-type"]
        ) as response:
            return Reply(response.status, response.headers, await response.read())

    async def post(
        self, path: str, body: Any, headers: dict[str, str] | None = None, **more: str
    ) -> Reply:
        """With JSON's content type unless `headers` say otherwise; `more` are further headers."""
        extra = {name.replace("_", "-"): value for name, value in more.items()}
        return await self.request(
            "POST", path, body, (JSON if headers is None else headers) | extra
        )

    async def raw(self, data: bytes, seconds: float = 5.0) -> bytes:
        """What comes back for these bytes until the server hangs up or the time is over."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        received = b""
        try:
            writer.write(data)
            await writer.drain()
            async with asyncio.timeout(seconds):
                while part := await reader.read(65536):
                    received += part
        except (TimeoutError, ConnectionResetError, BrokenPipeError):
            pass
        finally:
            writer.close()
        return received

    async def logged(self) -> list[Any]:
        """Every order in the log, by shard and entry."""
        from coffee_rt.domain.wire import decode_batch

        reader = self.log.reader("test-all", "t")
        keeper = self.log.keeper()
        await keeper.ensure_group("test-all")
        orders: list[Any] = []
        for shard in range(self.settings.shards):
            for delivery in await reader.read(shard, 1000, 0.01):
                if delivery.records:
                    orders += decode_batch(delivery.version, delivery.data)
        await reader.leave()
        await keeper.close()
        return orders


@asynccontextmanager
async def running_order_api(
    valkey_url: str, namespace: str, *, is_awaited: bool = True, **changes: Any
) -> AsyncIterator[RunningOrderApi]:
    """Ready when entered (or only listening, without `is_awaited`); drained when left."""
    values: dict[str, Any] = {
        "http_port": 0,
        "auth": "off",
        "namespace": namespace,
        "redis": RedisSettings(url=valkey_url),
        "anonymous_per_minute": 0,
    }
    settings = OrderApiSettings(**(values | changes))
    lifecycle = Lifecycle("order-api")
    work = asyncio.create_task(main(lifecycle, settings))
    try:
        async with asyncio.timeout(READY_SECONDS_MAX):
            while lifecycle.http_address is None or (is_awaited and not lifecycle.health.is_ready):
                if work.done():
                    work.result()
                await asyncio.sleep(0.01)
        log = RedisLog(settings.redis, namespace, settings.shards)
        async with aiohttp.ClientSession() as session:
            yield RunningOrderApi(lifecycle, settings, session, log)
    finally:
        lifecycle.begin_drain()
        await work
        await lifecycle.stop_tasks()
