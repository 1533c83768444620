"""The proxy between the parts does the harm it is told to, and none else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest

from tests.chaos.proxy import Direction, FaultProxy

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Streams]]
SECONDS_MAX = 10


class Echo:
    """A server that answers each chunk with itself and counts what it got."""

    def __init__(self) -> None:
        self.received = b""
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.received += data
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    yield echo
    server.close()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[FaultProxy]:
    proxy = FaultProxy("test", lambda: ("127.0.0.1", echo.port))
    await proxy.start()
    yield proxy
    await proxy.close()


@pytest.fixture
async def connect(proxy: FaultProxy) -> AsyncIterator[Connect]:
    """Opens connections through the proxy, and closes them after the test."""
    writers: list[asyncio.StreamWriter] = []

    async def open_one() -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writers.append(writer)
        return reader, writer

    yield open_one
    for writer in writers:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def say(streams: Streams, data: bytes) -> bytes:
    """Send; as many bytes as were sent come back."""
    streams[1].write(data)
    async with asyncio.timeout(SECONDS_MAX):
        return await streams[0].readexactly(len(data))


async def is_silent(streams: Streams, seconds: float = 0.15) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await streams[0].read(1)
    except TimeoutError:
        return True
    return False


async def is_reset(streams: Streams) -> bool:
    try:
        async with asyncio.timeout(SECONDS_MAX):
            while await streams[0].read(65536):
                pass
    except OSError:
        return True
    return False


async def test_without_faults_bytes_pass_unchanged(proxy: FaultProxy, connect: Connect) -> None:
    streams = await connect()
    data = bytes(range(256)) * 2000
    assert await say(streams, data) == data
    streams[1].write_eof()
    async with asyncio.timeout(SECONDS_MAX):
        assert await streams[0].read() == b""


async def test_latency_delays_without_adding_up(proxy: FaultProxy, connect: Connect) -> None:
    streams = await connect()
    proxy.latency(0.1, jitter=0.02)
    began = asyncio.get_running_loop().time()
    for _ in range(20):
        streams[1].write(b"x")
        await asyncio.sleep(0.001)
    async with asyncio.timeout(SECONDS_MAX):
        assert await streams[0].readexactly(20) == b"x" * 20
    assert asyncio.get_running_loop().time() - began >= 0.2


async def test_reset_cuts_open_connections_and_new_ones_work(
    proxy: FaultProxy, connect: Connect
) -> None:
    streams = await connect()
    await say(streams, b"x")
    assert proxy.reset() == 1
    assert await is_reset(streams)
    assert await say(await connect(), b"y") == b"y"


async def test_swallowed_replies_follow_an_effect(
    proxy: FaultProxy, connect: Connect, echo: Echo
) -> None:
    streams = await connect()
    await say(streams, b"1")
    proxy.swallow_replies()
    streams[1].write(b"2")
    assert await is_silent(streams)
    assert echo.received == b"12"
    await proxy.heal()
    assert await is_reset(streams), "a stream that lost bytes went on"
    assert await say(await connect(), b"3") == b"3"


async def test_a_swallowed_reply_can_reset_its_connection(
    proxy: FaultProxy, connect: Connect, echo: Echo
) -> None:
    streams = await connect()
    proxy.swallow_replies(then_reset=True)
    streams[1].write(b"x")
    assert await is_reset(streams)
    assert echo.received == b"x"


async def test_a_cut_lets_exactly_so_many_bytes_through(
    proxy: FaultProxy, connect: Connect, echo: Echo
) -> None:
    proxy.cut_after(5, Direction.TO_SERVER)
    streams = await connect()
    streams[1].write(b"0123456789")
    assert await is_reset(streams)
    assert echo.received == b"01234"


async def test_a_black_hole_is_one_way_and_ends_with_healing(
    proxy: FaultProxy, connect: Connect, echo: Echo
) -> None:
    streams = await connect()
    await say(streams, b"1")
    proxy.black_hole(Direction.TO_CLIENT)
    streams[1].write(b"2")
    assert await is_silent(streams)
    assert echo.received == b"12"
    await proxy.heal()
    async with asyncio.timeout(SECONDS_MAX):
        assert await streams[0].readexactly(1) == b"2"
    proxy.black_hole(Direction.TO_SERVER)
    streams[1].write(b"3")
    assert await is_silent(streams)
    assert echo.received == b"12"


async def test_half_open_connections_are_silent_and_not_closed(
    proxy: FaultProxy, connect: Connect, echo: Echo
) -> None:
    streams = await connect()
    await say(streams, b"1")
    assert proxy.half_open() == 1
    streams[1].write(b"2")
    assert await is_silent(streams)
    assert echo.received == b"1"
    assert await say(await connect(), b"3") == b"3"
    await proxy.heal()
    assert await is_reset(streams)


async def test_refused_connections_leave_open_ones_alone(
    proxy: FaultProxy, connect: Connect
) -> None:
    streams = await connect()
    await say(streams, b"1")
    port = proxy.port
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await connect()
    assert await say(streams, b"2") == b"2"
    await proxy.heal()
    assert proxy.port == port
    assert await say(await connect(), b"3") == b"3"
