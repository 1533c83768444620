"""The smoke test's own patience, against processes that are played."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import WSMsgType, web

from coffee_rt.embedded.smoke import SmokeFailure, SmokeOptions, run_smoke

PING_SECONDS = 0.1
ORDER = {"order_id": "0192f0c1-2d4e-7abc-8def-0123456789ab", "position": "0-1-1"}


class SlowShop:
    """Stores an order only after many pings, each of which a socket must answer."""

    def __init__(self) -> None:
        self.is_stored = asyncio.Event()
        self.is_closing = False
        self.pings = 0

    async def post(self, _request: web.Request) -> web.Response:
        asyncio.get_running_loop().call_later(12 * PING_SECONDS, self.is_stored.set)
        return web.json_response(ORDER, status=202)

    async def find(self, _request: web.Request) -> web.Response:
        return web.json_response({"state": "stored" if self.is_stored.is_set() else "logged"})

    async def view(self, _request: web.Request) -> web.Response:
        orders = int(self.is_stored.is_set())
        return web.json_response({"rows": [{"orders": orders}] if orders else []})

    async def watch(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        await socket.receive()
        await socket.send_json({"type": "snapshot", "part": 1, "parts": 1})
        while not self.is_stored.is_set() and not self.is_closing:
            await socket.ping()
            answer = await socket.receive(timeout=20 * PING_SECONDS)
            if answer.type is not WSMsgType.PONG:
                return socket
            self.pings += 1
            await asyncio.sleep(PING_SECONDS)
        if not self.is_closing:
            await socket.send_str(json.dumps({"type": "delta", "rows": [[1]]}))
            await socket.receive()
        return socket


@pytest.fixture
async def shop() -> SlowShop:
    return SlowShop()


@pytest.fixture
async def address(shop: SlowShop) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/api/v1/orders", shop.post)
    app.router.add_get("/api/v1/orders/{id}", shop.find)
    app.router.add_get("/api/v1/views/{view}", shop.view)
    app.router.add_get("/ws", shop.watch)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_the_socket_answers_pings_while_the_order_takes_its_time(
    shop: SlowShop, address: str
) -> None:
    said: list[str] = []
    await run_smoke(SmokeOptions(address, address, address, None, 20.0), said.append)
    assert shop.pings > 1
    assert "Orders go in, are stored, are seen, and arrive live." in said


async def test_a_socket_that_is_closed_meanwhile_is_told_in_a_sentence(
    shop: SlowShop, address: str
) -> None:
    shop.is_closing = True
    with pytest.raises(SmokeFailure, match="the socket was closed with 1000"):
        await run_smoke(SmokeOptions(address, address, address, None, 20.0), lambda _line: None)
