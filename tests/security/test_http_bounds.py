"""HTTP connections of every process are bounded in bytes, seconds and number."""

from __future__ import annotations

import asyncio

import pytest

from tests.security.served import GET, LARGE_BYTES, WAIT_SECONDS, rest_of, served

POST = b"POST / HTTP/1.1\r\nhost: x\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"


async def test_connections_without_a_request_are_ended_by_time() -> None:
    async with served(head_seconds_max=0.2, body_seconds_max=0.2) as server:
        for begun in (
            b"",
            b"GET",
            GET[:-2],
            POST + b"content-length: 9\r\n\r\nx",
            CHUNKED + b"1\r",
        ):
            reader, writer = await server.connect()
            writer.write(begun)
            assert b" 408 " in (await rest_of(reader)).partition(b"\r\n")[0]


async def test_a_head_that_drips_is_ended_by_time() -> None:
    async with served(head_seconds_max=0.3) as server:
        reader, writer = await server.connect()
        ended = asyncio.create_task(rest_of(reader))
        while not ended.done():
            writer.write(b"G" if writer.transport.is_closing() else b"x")
            await asyncio.sleep(0.05)
        assert (await ended).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    "endless",
    [
        (POST + b"x: ", b"y" * 4096),
        (POST, b"x: y\r\n" * 512),
        (b"GET /", b"y" * 4096),
        (CHUNKED + b"1;", b"y" * 4096),
        (CHUNKED + b"1\r\nx\r\n0\r\nx: ", b"y" * 4096),
        (CHUNKED + b"1\r\nx\r\n0\r\n", b"x: y\r\n" * 512),
    ],
    ids=["header", "headers", "target", "chunk extension", "trailer", "trailers"],
)
async def test_what_is_no_body_is_bounded_in_bytes(endless: tuple[bytes, bytes]) -> None:
    begin, more = endless
    async with served(head_bytes_max=8192) as server:
        reader, writer = await server.connect()
        ended = asyncio.create_task(rest_of(reader))
        writer.write(begin)
        for _ in range(100):
            if ended.done():
                break
            writer.write(more)
            await asyncio.sleep(0.01)
        assert b" 431 " in (await ended).partition(b"\r\n")[0]


async def test_bodies_in_the_smallest_chunks_are_taken() -> None:
    body = b"1\r\nx\r\n" * 40_000
    async with served(head_bytes_max=8192) as server:
        reader, writer = await server.connect()
        writer.write(CHUNKED + body + b"0\r\n\r\n")
        async with asyncio.timeout(WAIT_SECONDS):
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(40_000) == b"x" * 40_000


async def test_whoever_does_not_read_an_answer_is_cut() -> None:
    async with served(answer_seconds_max=0.4) as server:
        reader, writer = await server.connect()
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(GET.replace(b"GET / ", b"GET /large "))
        await asyncio.sleep(1.5)
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await rest_of(reader)) < LARGE_BYTES


async def test_whoever_reads_slowly_gets_the_whole_answer() -> None:
    async with served(answer_seconds_max=0.4) as server:
        reader, writer = await server.connect()
        writer.write(GET.replace(b"GET / ", b"GET /large "))
        async with asyncio.timeout(WAIT_SECONDS):
            await reader.readuntil(b"\r\n\r\n")
            for _ in range(LARGE_BYTES >> 18):
                await reader.readexactly(1 << 18)
                await asyncio.sleep(0.02)


async def test_a_storm_of_idle_connections_shuts_nobody_out() -> None:
    async with served(connections_max=50) as server:
        storm = [await server.connect() for _ in range(300)]
        for _ in range(20):
            assert (await server.ask(GET)).startswith(b"HTTP/1.1 200")
        ended = [reader for reader, _ in storm if await _is_ended(reader)]
        assert len(ended) >= 250


async def test_slow_bodies_make_room_and_requests_being_answered_stay() -> None:
    async with served(connections_max=20) as server:
        large, writer = await server.connect()
        writer.write(GET.replace(b"GET / ", b"GET /large "))
        await large.readuntil(b"\r\n\r\n")
        for _ in range(60):
            _, slow = await server.connect()
            slow.write(POST + b"content-length: 99\r\n\r\nx")
        assert (await server.ask(GET)).startswith(b"HTTP/1.1 200")
        async with asyncio.timeout(WAIT_SECONDS):
            assert len(await large.readexactly(LARGE_BYTES)) == LARGE_BYTES


async def test_when_all_are_being_answered_the_next_is_told_to_come_again() -> None:
    async with served(connections_max=8) as server:
        for _ in range(8):
            reader, writer = await server.connect()
            writer.write(GET.replace(b"GET / ", b"GET /large "))
            await reader.readuntil(b"\r\n\r\n")
            reader._transport.pause_reading()  # type: ignore[attr-defined]
        answer = await server.ask(GET)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in answer
        assert b"too-many-connections" in answer


async def _is_ended(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(0.01):
            return await reader.read(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True
