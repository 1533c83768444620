"""Whatever a socket sends, its session ends with a code or goes on, and all others are served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coffee_rt.domain.keys import MintedKey, mint_key
from coffee_rt.store.contract import ApiKey
from coffee_rt.store.keys import PostgresApiKeys
from tests.fanouts import Platform, served
from tests.security.raw_sockets import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    WAIT_SECONDS,
    beside,
    frame,
    is_serving,
    until_no_session,
    upgraded,
)

pytestmark = pytest.mark.integration

PROTOCOL_ERROR: set[int | None] = {1002, None}
"""None: the library hangs up without a word."""


@pytest.fixture
async def platform(
    database_url: str, valkey_url: str, redis_namespace: str
) -> AsyncIterator[Platform]:
    async with served(database_url, valkey_url, redis_namespace) as running:
        yield running


BAD: dict[str, tuple[bytes, set[int | None]]] = {
    "reserved bit 1": (frame(TEXT, b"{}", reserved=4), PROTOCOL_ERROR),
    "reserved bits": (frame(TEXT, b"{}", reserved=7), PROTOCOL_ERROR),
    "reserved opcode": (frame(3, b"{}"), PROTOCOL_ERROR | {1003}),
    "reserved control opcode": (frame(11, b"x"), PROTOCOL_ERROR | {1003}),
    "not masked": (frame(TEXT, b'{"type":"ping"}', is_masked=False), PROTOCOL_ERROR),
    "a message inside another": (frame(TEXT, b"{", fin=False) + frame(TEXT, b"{}"), {1002}),
    "ping in parts": (frame(PING, b"x", fin=False), PROTOCOL_ERROR | {1003}),
    "ping too long": (frame(PING, b"x" * 126), PROTOCOL_ERROR),
    "close of one byte": (frame(CLOSE, b"\x03"), PROTOCOL_ERROR | {1000, 1005}),
    "close with a code that is none": (
        frame(CLOSE, (999).to_bytes(2, "big")),
        PROTOCOL_ERROR | {999},
    ),
    "a message of 2^63 bytes": (frame(TEXT, b"x", length=1 << 63), PROTOCOL_ERROR | {1009}),
    "a message of a gigabyte": (frame(TEXT, b"x", length=1 << 30), PROTOCOL_ERROR | {1009}),
    "a continuation of nothing": (frame(CONTINUATION, b"x"), PROTOCOL_ERROR | {1003}),
    "no UTF-8": (frame(TEXT, b'{"type":"ping","at":"\xff"}'), {1007, 4400}),
    "binary": (frame(BINARY, b"\x00"), {1003}),
    "binary in parts": (frame(BINARY, b"\x00", fin=False), {1003}),
    "lone surrogate": (frame(TEXT, b'{"type":"hello","token":"\\ud800"}'), {4400, 1008}),
    "depth": (frame(TEXT, b'{"type":' + b"[" * 10_000), {4400}),
    "a number without end": (frame(TEXT, b'{"type":"ping","at":' + b"9" * 10_000 + b"}"), {4400}),
    "1e400": (frame(TEXT, b'{"type":"ping","at":1e400}'), {4400}),
    "null": (frame(TEXT, b"null"), {4400}),
    "nothing": (frame(TEXT, b""), {4400}),
    "an unknown type": (frame(TEXT, b'{"type":"drop"}'), {4400}),
    "HTTP": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3, PROTOCOL_ERROR | {1009}),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_frame_that_is_none_ends_its_session_alone(platform: Platform, name: str) -> None:
    sent, codes = BAD[name]
    async with upgraded(platform.fanout.server.port) as socket:
        socket.send(sent)
        assert await socket.end() in codes
    await until_no_session(platform)
    assert await is_serving(platform)


@pytest.mark.parametrize("part", [b"", b"x", b"x" * 1000])
async def test_a_message_without_end_is_ended(platform: Platform, part: bytes) -> None:
    async with upgraded(platform.fanout.server.port) as socket:
        socket.send(frame(TEXT, part, fin=False))
        for _ in range(500):
            socket.send(frame(CONTINUATION, part, fin=False))
        assert await socket.end() in (1009, 4429)
    await until_no_session(platform)


@pytest.mark.parametrize("path", ["/ws", "/ws/dashboard"])
@pytest.mark.parametrize("opcode", [PING, PONG, TEXT])
async def test_a_flood_is_ended(platform: Platform, path: str, opcode: int) -> None:
    text = b'{"type":"ping","at":1}' if opcode == TEXT else b"x" * 125
    async with upgraded(platform.fanout.server.port, path) as socket:
        for _ in range(2_000):
            socket.send(frame(opcode, text))
        # What still comes after the close may make the system drop the close frame.
        assert await socket.end() in (4429, None)
    assert await is_serving(platform)


async def test_a_socket_that_pings_and_never_reads_is_cut(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    changes = {"ping_seconds": 0.2, "messages_per_second_max": 1e6, "messages_burst_max": 10**9}
    async with (
        served(database_url, valkey_url, redis_namespace, **changes) as platform,
        upgraded(platform.fanout.server.port) as socket,
        asyncio.timeout(WAIT_SECONDS),
    ):
        socket.reader._transport.pause_reading()  # type: ignore[attr-defined]
        pings = frame(PING, b"x" * 125) * 1000
        while platform.fanout.hub.session_count:
            if not socket.writer.transport.is_closing():
                socket.send(pings)
            await asyncio.sleep(0.02)
            for connection in platform.fanout.server._connections:
                assert connection._transport is not None
                under = connection._transport.underlying_transport
                assert under.get_write_buffer_size() < 1 << 20


SUBSCRIBE = json.dumps({"type": "subscribe", "id": 1, "channel": "view:hourly"}).encode()
FRAMES = st.builds(
    frame,
    st.integers(0, 15),
    st.one_of(st.binary(max_size=200), st.just(SUBSCRIBE), st.just(b'{"type":"ping"}')),
    fin=st.booleans(),
    reserved=st.sampled_from([0, 0, 0, 0, 1, 4, 7]),
    is_masked=st.sampled_from([True, True, True, False]),
    length=st.one_of(st.none(), st.none(), st.integers(0, 2**63)),
)


def test_whatever_bytes_come_others_are_served(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    with beside(served(database_url, valkey_url, redis_namespace)) as (runner, platform):
        port = platform.fanout.server.port

        async def send(data: bytes) -> None:
            async with upgraded(port) as socket:
                socket.send(data)
                socket.send(frame(CLOSE, (1000).to_bytes(2, "big")))
                socket.writer.write_eof()
                await socket.end()
            await until_no_session(platform)

        @settings(
            max_examples=150,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(FRAMES | st.binary(max_size=300), max_size=8).map(b"".join))
        def fuzz(data: bytes) -> None:
            runner.run(send(data))

        fuzz()
        assert runner.run(is_serving(platform))
        assert not platform.lifecycle._crashed.done()


async def with_keys(platform: Platform, *scopes: str) -> list[MintedKey]:
    made = []
    for scope in scopes:
        key = mint_key()
        await PostgresApiKeys(platform.pool).add_api_key(
            ApiKey(key.key_id, 0, scope, key.secret_hash, frozenset({scope}), None, False)
        )
        made.append(key)
    return made


async def test_open_sessions_end_when_their_key_is_revoked(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    changes = {"auth": "required", "keys_refresh_seconds": 0.1}
    async with served(database_url, valkey_url, redis_namespace, **changes) as platform:
        gone, stays = await with_keys(platform, "read", "read")
        await asyncio.sleep(0.5)
        port = platform.fanout.server.port
        url = f"{platform.http}/api/v1/live?channel=orders"
        headers = {"Authorization": f"Bearer {gone.text}"}
        protocols = {"Sec_WebSocket_Protocol": f"coffee-rt.v1, bearer.{gone.text}"}
        async with (
            upgraded(port, Authorization=f"Bearer {gone.text}") as socket,
            upgraded(port, **protocols) as browser,
            upgraded(port, "/ws/dashboard", Authorization=f"Bearer {gone.text}") as dashboard,
            platform.connected() as greeted,
            platform.session.get(url, headers=headers) as stream,
            platform.connected(additional_headers={"X-API-Key": stays.text}) as other,
        ):
            await greeted.say(type="hello", token=gone.text)
            await greeted.hear("welcome")
            await other.hear("welcome")
            await stream.content.readuntil(b"\n\n")
            await PostgresApiKeys(platform.pool).revoke_api_key(gone.key_id)
            assert [await each.end() for each in (socket, browser, dashboard)] == [1008] * 3
            assert (await greeted.hear_close())[0] == 1008
            async with asyncio.timeout(WAIT_SECONDS):
                await stream.content.read()
            await other.say(type="ping", at=1)
            await other.hear("pong")
            await other.hear("heartbeat")
