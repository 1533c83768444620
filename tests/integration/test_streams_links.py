"""One connection to a real Valkey: whose answer is whose, when it is given up, and when another is opened."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from coffee_rt.errors import NotExecuted
from coffee_rt.streams.redis import KeptLink, Link, LinkLost, RedisConnector

pytestmark = pytest.mark.integration


async def test_a_cancelled_command_leaves_every_other_answer_its_own(valkey_url: str) -> None:
    link = await RedisConnector(valkey_url).open(b"", "test")
    waits = [
        asyncio.ensure_future(link.call("ECHO", str(number), seconds_max=5)) for number in range(20)
    ]
    await asyncio.sleep(0)
    for number in range(0, 20, 3):
        waits[number].cancel()
    answers = await asyncio.gather(*waits, return_exceptions=True)
    for number, answer in enumerate(answers):
        if number % 3 == 0:
            assert isinstance(answer, asyncio.CancelledError)
        else:
            assert answer == str(number).encode()
    link.close()
    with pytest.raises(NotExecuted):
        await link.call("PING", seconds_max=1)


async def test_an_answer_out_of_time_drops_the_connection(valkey_url: str) -> None:
    link = await RedisConnector(valkey_url).open(b"", "test")
    with pytest.raises(LinkLost):
        await link.call("BLPOP", "nothing-comes-here", 5, seconds_max=0.05)
    assert link.is_closed


async def test_a_wrong_password_is_said_plainly(valkey_url: str) -> None:
    url = urlsplit(valkey_url)
    wrong = urlunsplit(url._replace(netloc=f":wrong@{url.hostname}:{url.port}"))
    with pytest.raises(NotExecuted, match=r"(?i)password|WRONGPASS"):
        await RedisConnector(wrong).open(b"", "test")


async def test_a_connection_that_ended_before_it_was_taken_over_is_refused_at_once(
    valkey_url: str,
) -> None:
    class Hasty(RedisConnector):
        """Lets the end of a connection be noticed before the link takes the socket over."""

        async def greet(self, connection: Any) -> None:
            await super().greet(connection)
            await connection.send_command("QUIT")
            while connection._reader is not None and not connection._reader.at_eof():
                connection._reader._buffer.clear()
                await asyncio.sleep(0.001)

    with pytest.raises(NotExecuted):
        await Hasty(valkey_url).open(b"", "test")


async def test_a_link_to_a_server_that_was_replaced_is_closed_before_another_is_opened(
    valkey_url: str,
) -> None:
    """It works all the same: it would do so for ever, and its server keep it."""
    opened: list[Link] = []

    async def open_() -> Link:
        assert all(link._is_closed for link in opened)
        opened.append(await RedisConnector(valkey_url).open(b"", "test"))
        return opened[-1]

    kept = KeptLink(open_)
    assert not kept.is_open
    first, same = await asyncio.gather(kept.get(), kept.get())
    assert first is same
    assert kept.is_open
    waiting = asyncio.create_task(first.call("BLPOP", "nothing-comes-here", 5, seconds_max=5))
    await asyncio.sleep(0)
    first._has_moved = lambda: True
    assert not kept.is_open
    second = await kept.get()
    with pytest.raises(LinkLost):
        await waiting
    assert await second.call("PING", seconds_max=5) == b"PONG"
    assert opened == [first, second]
    kept.close()
    assert not kept.is_open
