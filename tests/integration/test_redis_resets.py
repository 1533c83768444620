"""Connections to Redis that are reset while nobody uses them, on the event loop the processes run on."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit

import pytest
import uvloop

from coffee_rt.channels.redis import RedisChannels
from coffee_rt.errors import Retryable

pytestmark = pytest.mark.integration

ROUNDS = 20


class Relay:
    """In front of Redis; can reset every connection, as a firewall or a dead node's successor does."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        credentials = self._url.netloc.rpartition("@")[0]
        return urlunsplit(self._url._replace(netloc=f"{credentials}@127.0.0.1:{port}"))

    def reset(self) -> int:
        count = len(self._writers)
        for writer in self._writers:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        self._writers.clear()
        return count

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, up = await asyncio.open_connection(self._url.hostname, self._url.port)
        self._writers.append(writer)
        for source, target in ((reader, up), (theirs, writer)):
            self._tasks.add(asyncio.create_task(self._pump(source, target)))

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError, RuntimeError):
            while data := await source.read(1 << 16):
                target.write(data)
        target.close()


def test_a_connection_reset_while_idle_is_retryable_and_made_again(
    valkey_url: str, redis_namespace: str
) -> None:
    """uvloop raises RuntimeError where asyncio raises OSError: it must not end the process."""

    async def publish() -> tuple[int, int]:
        relay = Relay(valkey_url)
        channels = RedisChannels(await relay.start(), namespace=redis_namespace)
        published = resets = 0
        try:
            for number in range(ROUNDS):
                # The first after a reset may be lost; the one after it goes through.
                with suppress(Retryable):
                    await channels.publish("topic", b"lost or not")
                await channels.publish("topic", b"%d" % number)
                published += 1
                resets += relay.reset()
                await asyncio.sleep(0.01)
        finally:
            await channels.close()
            await relay.close()
        return published, resets

    published, resets = uvloop.run(publish())
    assert (published, resets >= ROUNDS) == (ROUNDS, True)
