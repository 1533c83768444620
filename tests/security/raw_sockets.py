"""WebSocket frames written by hand, to a fanout that runs beside a test without a loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import TypeVar

from tests.fanouts import Platform

T = TypeVar("T")

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
WAIT_SECONDS = 20.0
HANDSHAKE = (
    b"GET %b HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    is_masked: bool = True,
    length: int | None = None,
) -> bytes:
    """A client's frame. `length`: what it says of itself, if not the truth."""
    said = len(payload) if length is None else length
    bit = 0x80 if is_masked else 0
    first = bytes([(0x80 if fin else 0) | reserved << 4 | opcode])
    if said < 126:
        head = first + bytes([bit | said])
    elif said < 1 << 16:
        head = first + bytes([bit | 126]) + struct.pack(">H", said)
    else:
        head = first + bytes([bit | 127]) + struct.pack(">Q", said)
    if not is_masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


class RawSocket:
    """An upgraded connection. What comes is read as frames of a server: never masked."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def hear(self) -> tuple[int, bytes]:
        """The next frame."""
        first, second = await self.reader.readexactly(2)
        length = second & 0x7F
        if length == 126:
            length = int.from_bytes(await self.reader.readexactly(2), "big")
        elif length == 127:
            length = int.from_bytes(await self.reader.readexactly(8), "big")
        return first & 0x0F, await self.reader.readexactly(length)

    async def end(self) -> int | None:
        """The code of the close frame with which the server ended it; None when it just hung up."""
        code = None
        async with asyncio.timeout(WAIT_SECONDS):
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    opcode, payload = await self.hear()
                    if opcode == CLOSE and len(payload) >= 2:
                        code = int.from_bytes(payload[:2], "big")
        return code


@asynccontextmanager
async def upgraded(port: int, path: str = "/ws", **headers: str) -> AsyncIterator[RawSocket]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    further = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    writer.write(HANDSHAKE % path.encode() + further.encode() + b"\r\n")
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        yield RawSocket(reader, writer)
    finally:
        writer.transport.abort()


async def until_no_session(platform: Platform) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while platform.fanout.hub.session_count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def is_serving(platform: Platform) -> bool:
    """Whether somebody else's new session is welcomed."""
    async with platform.connected() as talk:
        return bool((await talk.hear())["type"] == "welcome")


@contextmanager
def beside(entered: AbstractAsyncContextManager[T]) -> Iterator[tuple[asyncio.Runner, T]]:
    """Something async kept open for a test that is not: it runs on while the runner runs anything."""
    with asyncio.Runner() as runner:
        value = runner.run(entered.__aenter__())
        try:
            yield runner, value
        finally:
            runner.run(entered.__aexit__(None, None, None))
