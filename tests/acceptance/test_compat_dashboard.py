"""`/ws/dashboard` as the published front end speaks it: it connects, says nothing, and reads whole objects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from tests.fanouts import WAIT_SECONDS, Platform, Talk, served

pytestmark = pytest.mark.acceptance


@pytest.fixture
async def platform(
    database_url: str, valkey_url: str, redis_namespace: str
) -> AsyncIterator[Platform]:
    async with served(database_url, valkey_url, redis_namespace) as running:
        yield running


async def hear_until(talk: Talk, orders: int) -> dict[str, Any]:
    """The first message that counts so many orders this hour."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            message = await talk.hear()
            if (message["current_hour"] or {"order_count": 0})["order_count"] == orders:
                return message


async def test_a_message_comes_at_once_with_the_published_keys(platform: Platform) -> None:
    async with platform.connected("/ws/dashboard") as talk:
        message = await talk.hear()
    assert list(message) == ["current_hour", "top5_drinks", "recent_orders", "server_timestamp"]
    assert message["current_hour"] is None
    assert message["top5_drinks"] == message["recent_orders"] == []
    datetime.fromisoformat(message["server_timestamp"])


async def test_what_changes_is_sent_to_every_socket(platform: Platform) -> None:
    async with (
        platform.connected("/ws/dashboard") as one,
        platform.connected("/ws/dashboard") as two,
    ):
        await one.hear()
        await two.hear()
        await platform.store(
            platform.order(drink="latte", price_minor=450, quantity=2),
            platform.order(drink="latte", store="central", price_minor=400),
            platform.order(drink="americano", price_minor=325),
        )
        await platform.fold()
        first, second = await hear_until(one, 3), await hear_until(two, 3)
    assert first == second
    hour = first["current_hour"]
    assert hour["hour"] == datetime.now(UTC).hour
    assert hour["revenue"] == 16.25
    assert hour["top_drinks"] == first["top5_drinks"] == ["latte", "americano"]
    newest = first["recent_orders"][0]
    assert isinstance(newest["id"], int)
    assert newest["id"] < 2**53
    assert (newest["drink"], newest["store"], newest["price"]) == ("americano", "uptown", 3.25)
    datetime.fromisoformat(newest["timestamp"])


async def test_messages_come_at_most_once_a_second(platform: Platform) -> None:
    async with platform.connected("/ws/dashboard") as talk:
        await talk.hear()
        for _ in range(15):
            await platform.store(platform.order())
            await platform.fold()
            await asyncio.sleep(0.1)
        await hear_until(talk, 15)
        stamps = [datetime.fromisoformat(seen["server_timestamp"]) for seen in talk.seen]
        gaps = [(b - a).total_seconds() for a, b in pairwise(stamps)]
        assert min(gaps) >= 0.99


async def test_what_the_client_says_is_ignored(platform: Platform) -> None:
    async with platform.connected("/ws/dashboard") as talk:
        await talk.connection.send("anything")
        await talk.hear()
        await platform.store(platform.order())
        await platform.fold()
        await hear_until(talk, 1)
