"""What may be asked of live updates, asked wrongly: told so, and nobody else hears anything of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from yarl import URL

from tests.fanouts import Platform, served
from tests.security.raw_sockets import TEXT, frame, is_serving, until_no_session, upgraded

pytestmark = pytest.mark.integration

DAY = 86_400


@pytest.fixture
async def platform(
    database_url: str, valkey_url: str, redis_namespace: str
) -> AsyncIterator[Platform]:
    async with served(database_url, valkey_url, redis_namespace) as running:
        yield running


REFUSED: list[tuple[dict[str, Any], str]] = [
    # (members of a subscription to the view, code)
    ({"filter": {"store": "a\x00b"}, "since": -40 * DAY}, "bad-filter"),
    ({"filter": {"store": "a\x00b"}}, "bad-filter"),
    ({"filter": {"store": ["x" * 129]}}, "bad-filter"),
    ({"filter": {"store": [str(n) for n in range(65)]}}, "bad-filter"),
    ({"filter": {"store": []}}, "bad-filter"),
    ({"filter": {"tenant": "0"}}, "bad-filter"),
    ({"since": -401 * DAY}, "bad-since"),
    ({"since": 401 * DAY}, "bad-since"),
    ({"channel": "view:\x00"}, "unknown-view"),
    ({"channel": "view:hourly; DROP TABLE orders"}, "unknown-view"),
    ({"channel": "x" * 10_000}, "unknown-view"),
]

ENDED: dict[str, bytes] = {
    name: b'{"type":"subscribe","id":1,"channel":"view:hourly",%b}' % members
    for name, members in {
        "a resume of texts": b'"resume":{"epoch":"1","versions":["1"]}',
        "a resume without epoch": b'"resume":{"versions":[1]}',
        "a since of 5000 digits": b'"since":' + b"9" * 5000,
        "a since of 1e400": b'"since":1e400',
        "an id of 70 bits": b'"id":1180591620717411303424',
        "a filter that is a list": b'"filter":["store"]',
    }.items()
} | {
    "a ping of text": b'{"type":"ping","at":"now"}',
}


async def test_a_wish_that_can_not_be_met_is_refused_and_the_session_goes_on(
    platform: Platform,
) -> None:
    now = platform.now_us // 1_000_000
    async with platform.connected() as talk:
        await talk.hear("welcome")
        for wish, code in REFUSED:
            since = {"since": now + wish["since"]} if "since" in wish else {}
            said = {"type": "subscribe", "id": 1, "channel": "view:hourly", **wish, **since}
            await talk.say(**said)
            refused = await talk.hear("error", "snapshot")
            assert (refused.get("id"), refused.get("code")) == (1, code), wish
        await talk.say(type="subscribe", id=1, channel="view:hourly")
        await talk.hear("snapshot")
    assert not platform.lifecycle._crashed.done()


@pytest.mark.parametrize("name", ENDED)
async def test_a_wish_that_makes_no_sense_ends_its_session_alone(
    platform: Platform, name: str
) -> None:
    async with upgraded(platform.fanout.server.port) as socket:
        socket.send(frame(TEXT, ENDED[name]))
        assert await socket.end() == 4400
    await until_no_session(platform)
    assert await is_serving(platform)


async def test_a_made_up_resume_shows_what_is_there(platform: Platform) -> None:
    await platform.store(platform.order())
    await platform.fold()
    async with platform.connected() as talk:
        await talk.say(type="subscribe", id=1, channel="view:hourly")
        told = await talk.hear("snapshot")
        lanes = len(told["versions"])
        for epoch, versions in (
            ("x" * 5000, [0] * lanes),
            (told["epoch"], []),
            (told["epoch"], [0]),
            (told["epoch"], [2**63 - 1] * lanes),
            (told["epoch"], [2**70, *[-(2**70)] * (lanes - 1)]),
            (told["epoch"], [0] * 2000),
        ):
            resume = {"epoch": epoch, "versions": versions}
            await talk.say(type="subscribe", id=1, channel="view:hourly", resume=resume)
            assert (await talk.hear("reset", "error"))["type"] == "reset"
            assert (await talk.hear("snapshot"))["versions"] == told["versions"]
        resume = {"epoch": told["epoch"], "versions": [0] * lanes}
        await talk.say(type="subscribe", id=1, channel="view:hourly", resume=resume)
        assert len((await talk.hear("delta"))["rows"]) == 1


@pytest.mark.parametrize(
    ("query", "headers", "status", "code"),
    [
        ("since=%D9%A1", {}, 422, "bad-since"),
        ("since=1_000", {}, 422, "bad-since"),
        ("since=-1", {}, 422, "bad-since"),
        ("since=" + "9" * 4000, {}, 422, "bad-since"),
        ("since=99999999999", {}, 422, "bad-since"),
        ("store=%00", {}, 422, "bad-filter"),
        ("store=" + "x" * 129, {}, 422, "bad-filter"),
        ("", {"Origin": "http://["}, 403, "bad-origin"),
        ("", {"Origin": "http://[::1]x:1"}, 403, "bad-origin"),
        ("", {"Authorization": "Bearer"}, 200, ""),
    ],
)
async def test_a_stream_asked_for_wrongly_is_a_problem_answer(
    platform: Platform, query: str, headers: dict[str, str], status: int, code: str
) -> None:
    url = URL(f"{platform.http}/api/v1/live?channel=view:hourly&{query}", encoded=True)
    async with platform.session.get(url, headers=headers) as response:
        assert response.status == status
        if code:
            assert (await response.json(content_type=None))["type"].endswith(code)


@pytest.mark.parametrize(
    "mark", ["", ":", "e:", "e:-1", "e:" + "9" * 4000, "e:" + "1," * 200 + "1"]
)
async def test_a_made_up_mark_begins_a_stream_anew(platform: Platform, mark: str) -> None:
    url = f"{platform.http}/api/v1/live?channel=view:hourly"
    async with (
        asyncio.timeout(10),
        platform.session.get(url, headers={"Last-Event-ID": mark}) as response,
    ):
        assert b"welcome" in await response.content.readuntil(b"\n\n")
        event = await response.content.readuntil(b"\n\n")
        if b"reset" in event:
            event = await response.content.readuntil(b"\n\n")
        assert b"event: snapshot" in event


@pytest.mark.parametrize("header", [b"Origin: http://[\r\n", b"X: \xff\xfe\r\n", b"\xff: x\r\n"])
async def test_a_handshake_of_nonsense_ends_alone(platform: Platform, header: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", platform.fanout.server.port)
    writer.write(
        b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        b"%b\r\n" % header
    )
    async with asyncio.timeout(10):
        answer = await reader.read(100)
    writer.transport.abort()
    await until_no_session(platform)
    assert b" 500 " not in answer
    assert not header.startswith(b"Origin") or answer.startswith(b"HTTP/1.1 403")
    assert await is_serving(platform)


async def test_many_subscriptions_and_farewells_leave_nothing_behind(platform: Platform) -> None:
    """Within what a session may say at once."""
    async with platform.connected() as talk:
        await talk.hear("welcome")
        for number in range(40):
            await talk.say(type="subscribe", id=number, channel="orders")
            await talk.say(type="unsubscribe", id=number)
        for number in range(10):
            await talk.say(type="unsubscribe", id=10_000 + number % 3)
        await talk.say(type="subscribe", id=1, channel="orders")
        await talk.hear("orders")
    await until_no_session(platform)
    channels = platform.fanout.hub.channels.values()
    assert not any(channel.subscriptions or channel._audiences for channel in channels)


async def test_more_subscriptions_than_a_session_may_have_are_refused_one_by_one(
    platform: Platform,
) -> None:
    async with platform.connected() as talk:
        await talk.hear("welcome")
        for number in range(17):
            await talk.say(type="subscribe", id=number, channel="orders")
        refused = await talk.hear("error")
        assert (refused["id"], refused["code"]) == (16, "too-many-subscriptions")
