"""Many sockets that only count: the other end of a fan-out measurement, in a process of its own.

Run as `python -m coffee_rt.bench.swarm` with a JSON `Swarm` on standard input. It opens the sockets, says
"ready" on standard output, counts bytes until its standard input closes, then writes a JSON `Tally`.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import msgspec
import uvloop

from coffee_rt.runtime.files import ensure_open_files

OPENING_MAX = 200
"""Handshakes under way at once: below the listener's backlog."""


class Swarm(msgspec.Struct):
    port: int
    path: str
    sockets: int
    message: str
    """Text frame each socket sends once it is open; at most 125 bytes."""


class Tally(msgspec.Struct):
    sockets: int
    received_bytes: int
    closed: int


class _Counter(asyncio.Protocol):
    received_bytes = 0
    closed = 0

    def __init__(self, swarm: Swarm, opened: asyncio.Future[None]) -> None:
        self._swarm = swarm
        self._opened: asyncio.Future[None] | None = opened
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        request = (
            f"GET {self._swarm.path} HTTP/1.1\r\nHost: 127.0.0.1:{self._swarm.port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        self._transport.write(request.encode())

    def data_received(self, data: bytes) -> None:
        if self._opened is not None:
            opened, self._opened = self._opened, None
            if not data.startswith(b"HTTP/1.1 101"):
                opened.set_exception(RuntimeError(f"no upgrade: {data[:200]!r}"))
                return
            assert self._transport is not None
            self._transport.write(_masked(self._swarm.message.encode()))
            opened.set_result(None)
        _Counter.received_bytes += len(data)

    def connection_lost(self, error: Exception | None) -> None:
        _Counter.closed += 1


def _masked(text: bytes) -> bytes:
    """A client's text frame, with a mask of zeros."""
    return bytes((0x81, 0x80 | len(text))) + bytes(4) + text


async def run_swarm(swarm: Swarm) -> Tally:
    loop = asyncio.get_running_loop()
    gate = asyncio.Semaphore(OPENING_MAX)

    async def open_one() -> asyncio.BaseTransport:
        async with gate:
            opened: asyncio.Future[None] = loop.create_future()
            transport, _ = await loop.create_connection(
                lambda: _Counter(swarm, opened), "127.0.0.1", swarm.port
            )
            await asyncio.wait_for(opened, 30)
            return transport

    transports = await asyncio.gather(*(open_one() for _ in range(swarm.sockets)))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    before: int | None = None
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if line.strip() == "count":
            before = _Counter.received_bytes
    tally = Tally(swarm.sockets, _Counter.received_bytes - (before or 0), _Counter.closed)
    for transport in transports:
        transport.close()
    return tally


def main() -> None:
    swarm = msgspec.json.decode(sys.stdin.readline(), type=Swarm)
    ensure_open_files(swarm.sockets + 200)
    tally = uvloop.run(run_swarm(swarm))
    sys.stdout.write(msgspec.json.encode(tally).decode() + "\n")


if __name__ == "__main__":
    main()
