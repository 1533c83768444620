"""The chaos harness's observer shows what the database holds, and says so when it does not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from coffee_rt.runtime.settings import DatabaseSettings
from tests.chaos.observer import Observer, read_goals, read_rows
from tests.fanouts import WAIT_SECONDS, Platform, served

pytestmark = pytest.mark.integration


@pytest.fixture
async def platform(
    database_url: str, valkey_url: str, redis_namespace: str
) -> AsyncIterator[Platform]:
    async with served(database_url, valkey_url, redis_namespace) as running:
        yield running


async def test_a_number_that_no_browser_was_told_is_seen(
    platform: Platform, database_url: str
) -> None:
    database = DatabaseSettings(url=database_url)
    observer = Observer([f"{platform.socket}/ws"])
    await observer.start()
    try:
        for drink in ("latte", "tea"):
            await platform.store(platform.order(drink=drink))
            await platform.fold()
        await observer.wait_reaches(await read_goals(database), WAIT_SECONDS)
        truth = await read_rows(database)
        assert len(truth["hourly"]) == 2
        assert await observer.wait_equals(truth, WAIT_SECONDS) == []
        [internal] = await platform.pool.fetchrow(
            "SELECT internal FROM view_catalogue WHERE is_current AND name = 'hourly'"
        )
        await platform.pool.execute(
            f"UPDATE mv_{internal} SET revenue = revenue + 1 WHERE drink = 'tea'"
        )
        told = await observer.wait_equals(await read_rows(database), 0.2)
        assert told == ["observer: 1 rows of view hourly differ from the database's"]
    finally:
        await observer.close()
