"""Whom the sentinels name, asked again and again: a server is left as soon as most of them name another, whoever named
it before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError

from coffee_rt.redis_nodes import sentinels
from coffee_rt.redis_nodes.nodes import RedisNodes, has_moved

_OK = b"+OK\r\n"


class Speaker:
    """A server that gives every command the answer that `say` makes of it; it hangs up where that is empty."""

    def __init__(self, say: Callable[[bytes], bytes]) -> None:
        self._say = say
        self.port = 0

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Short commands, one write each: as they come in these tests.
        try:
            while (said := await reader.read(4096)) and (answer := self._say(said)):
                writer.write(answer)
        finally:
            writer.close()


class Cluster:
    """Two servers that both call themselves master, and three sentinels; each names one of the two, or is cut off."""

    def __init__(self) -> None:
        self.named: list[int | None] = [None, None, None]
        self.asked = [0, 0, 0]
        self.masters = [Speaker(_call_myself_master) for _ in range(2)]
        self.sentinels = [Speaker(partial(self._name, number)) for number in range(3)]
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        for speaker in (*self.masters, *self.sentinels):
            self._servers.append(await speaker.start())

    def close(self) -> None:
        for server in self._servers:
            server.close()

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/coffee"

    def _name(self, sentinel: int, _said: bytes) -> bytes:
        self.asked[sentinel] += 1
        master = self.named[sentinel]
        if master is None:
            return b""
        port = str(self.masters[master].port).encode()
        return b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%b\r\n" % (len(port), port)


def _call_myself_master(said: bytes) -> bytes:
    if b"ROLE" in said:
        return b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"
    return _OK * said.count(b"*")


@pytest.fixture
async def cluster(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setattr(sentinels, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(sentinels, "FRESH_SECONDS", 0.0)
    made = Cluster()
    await made.start()
    yield made
    made.close()


async def opened(nodes: RedisNodes) -> AbstractConnection:
    connection = nodes.connection(None, protocol=2, driver_info=None)
    open_it: Callable[[], Awaitable[None]] = connection.connect
    await open_it()
    return connection


async def until_moved(connection: AbstractConnection) -> None:
    async with asyncio.timeout(10):
        while not has_moved(connection):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_server_that_most_never_named_is_left_when_they_name_another(
    cluster: Cluster,
) -> None:
    """A process that starts while it is cut off together with the old master and one sentinel."""
    cluster.named = [0, None, None]
    nodes = RedisNodes(cluster.url)
    connection = await opened(nodes)
    assert not has_moved(connection)
    cluster.named = [0, 1, 1]
    await until_moved(connection)
    there = await opened(nodes)
    assert not has_moved(there)
    await connection.disconnect()
    await there.disconnect()


async def test_a_server_that_few_named_meanwhile_is_left_though_most_name_the_same_as_before(
    cluster: Cluster,
) -> None:
    cluster.named = [1, 1, 1]
    nodes = RedisNodes(cluster.url)
    before = await opened(nodes)
    cluster.named = [0, None, None]
    back = await opened(nodes)
    # Fewer are no reason to leave a server that answers.
    assert not has_moved(before)
    cluster.named = [0, 1, 1]
    await until_moved(back)
    await before.disconnect()
    await back.disconnect()


async def test_a_server_that_all_go_on_naming_is_kept(cluster: Cluster) -> None:
    cluster.named = [0, None, None]
    nodes = RedisNodes(cluster.url)
    connection = await opened(nodes)
    for named in ([0, 0, None], [0, 0, 0], [None, None, 0], [0, 0, 0]):
        cluster.named = list(named)
        another = await opened(nodes)
        await another.disconnect()
    assert not has_moved(connection)
    await connection.disconnect()


async def test_those_who_wait_to_ask_share_the_failure_of_who_asks(cluster: Cluster) -> None:
    nodes = RedisNodes(cluster.url)
    ended = await asyncio.gather(*(opened(nodes) for _ in range(8)), return_exceptions=True)
    assert all(isinstance(each, RedisConnectionError) for each in ended)
    assert cluster.asked == [1, 1, 1]
    cluster.named = [0, 0, 0]
    connection = await opened(nodes)
    await connection.disconnect()
