"""Clients that misbehave: storms of reconnects, sockets that never read, requests that never end."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from tests.chaos.scenario import World, scenario

FAULT_SECONDS = 10.0
SOCKETS = 300
DEAF_SOCKETS = 100
SLOW_REQUESTS = 300
FANOUT = "fanout-1"


async def open_live(world: World, port: int) -> ClientConnection:
    """A session that follows both views and the orders."""
    headers = {"Authorization": f"Bearer {world.platform.api_key}"}
    socket = await connect(
        f"ws://127.0.0.1:{port}/ws", additional_headers=headers, open_timeout=20, ping_interval=None
    )
    for number, channel in enumerate(("view:hourly", "view:minutely", "orders")):
        await socket.send(json.dumps({"type": "subscribe", "id": number, "channel": channel}))
    return socket


async def hear(socket: ClientConnection, wanted: str, seconds: float = 20.0) -> None:
    """Wait for a message of a type."""
    async with asyncio.timeout(seconds):
        while json.loads(await socket.recv())["type"] != wanted:
            pass


@scenario(
    "reconnect-storm", fault=f"{SOCKETS} live sessions cut at once and back at once, five times"
)
async def reconnect_storm(world: World) -> None:
    port = world.platform.parts[FANOUT].live_port
    for _ in range(5):
        opened = await asyncio.gather(
            *(open_live(world, port) for _ in range(SOCKETS)), return_exceptions=True
        )
        sockets = [socket for socket in opened if isinstance(socket, ClientConnection)]
        assert len(sockets) >= SOCKETS * 0.9, f"only {len(sockets)} sessions were served"
        for socket in world.chance.sample(sockets, 10):
            await hear(socket, "snapshot")
        for socket in sockets:
            socket.transport.abort()
    last = await open_live(world, port)
    await hear(last, "delta")
    await last.close()


@scenario("sockets-that-never-read", fault=f"{DEAF_SOCKETS} live sessions that read nothing")
async def sockets_that_never_read(world: World) -> None:
    """They cost bounded memory and slow nobody: one that reads goes on hearing."""
    port = world.platform.parts[FANOUT].live_port
    deaf = await asyncio.gather(*(open_live(world, port) for _ in range(DEAF_SOCKETS)))
    for socket in deaf:
        socket.transport.pause_reading()
    reading = await open_live(world, port)
    deadline = asyncio.get_running_loop().time() + FAULT_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        await hear(reading, "delta", 10)
    await reading.close()
    for socket in deaf:
        socket.transport.abort()


@scenario("slowloris", fault=f"{SLOW_REQUESTS} requests that send a byte a second")
async def slowloris(world: World) -> None:
    address = urlsplit(world.platform.addresses[0])

    async def crawl() -> None:
        with suppress(OSError, WebSocketException):
            _, writer = await asyncio.open_connection(address.hostname, address.port)
            writer.write(b"POST /api/v1/orders HTTP/1.1\r\nHost: slow\r\nX-Slow: ")
            try:
                while True:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(1)
            finally:
                writer.close()

    crawling = [asyncio.create_task(crawl()) for _ in range(SLOW_REQUESTS)]
    await asyncio.sleep(FAULT_SECONDS)
    for task in crawling:
        task.cancel()
    await asyncio.gather(*crawling, return_exceptions=True)
