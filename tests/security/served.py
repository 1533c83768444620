"""A small application behind the HTTP server of every process, and raw sockets to abuse it with."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from coffee_rt.runtime.http import serve_http
from coffee_rt.runtime.http_bounds import HttpLimits, bounded
from coffee_rt.runtime.lifecycle import Lifecycle
from coffee_rt.runtime.settings import ProcessSettings

WAIT_SECONDS = 20.0
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
LARGE_BYTES = 16 << 20


class Server:
    """A server in the test's loop; `/large` answers with LARGE_BYTES, all else with what it was sent."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 16)
        self._writers.append(writer)
        return reader, writer

    async def ask(self, data: bytes) -> bytes:
        """The first part of the answer on a new connection; b"" when there is none but an end."""
        reader, writer = await self.connect()
        writer.write(data)
        async with asyncio.timeout(WAIT_SECONDS):
            try:
                return await reader.read(65536)
            except ConnectionError:
                return b""

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the server ends the connection."""
    received = b""
    async with asyncio.timeout(WAIT_SECONDS):
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(65536):
                received += part
    return received


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if scope["path"] == "/large":
        body = b"x" * LARGE_BYTES
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def served(**limits: Any) -> AsyncIterator[Server]:
    """`limits` are of HttpLimits."""
    lifecycle = Lifecycle("test")
    settings = ProcessSettings(http_port=0, grace_seconds=1)
    protocol = bounded(HttpLimits(**limits))
    serving = lifecycle.spawn(
        serve_http(_echo, settings, lifecycle, protocol, lifespan="off"), "http"
    )
    _, port = await lifecycle.wait_listening()
    server = Server(port)
    try:
        yield server
    finally:
        server.close()
        lifecycle.begin_drain()
        await serving
        await lifecycle.stop_tasks()
