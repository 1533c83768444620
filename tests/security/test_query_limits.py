"""What one caller of query_api asks must not be felt by the others: rates, turns, and time of statements."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from coffee_rt.domain.keys import MintedKey
from coffee_rt.runtime.settings import DatabaseSettings
from tests.integration.test_query_api import Platform, served
from tests.security.test_key_matrix import add_key
from tests.view_writing import a_pool

pytestmark = pytest.mark.integration

VIEW = "/api/v1/views/hourly"
ORDERS = "/api/v1/orders"


async def ask(platform: Platform, path: str, **headers: str) -> tuple[int, str, Mapping[str, str]]:
    """Status, problem code and headers."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    async with platform.session.get(platform.address + path, headers=sent) as response:
        body: dict[str, Any] = await response.json(content_type=None)
        return response.status, body.get("type", "").rpartition(":")[2], response.headers


def bearer(key: MintedKey) -> dict[str, str]:
    return {"Authorization": f"Bearer {key.text}"}


async def await_fresh_minute() -> None:
    """A count that a minute's end would divide in two proves nothing: wait for the next one."""
    if time.time() % 60 > 45:
        await asyncio.sleep(60 - time.time() % 60)


@asynccontextmanager
async def stuck_view(database_url: str) -> AsyncIterator[None]:
    """Every read of a view waits as long as the block lasts; those of orders don't."""
    async with a_pool(database_url) as pool, pool.transaction() as connection:
        await connection.execute("LOCK TABLE view_lanes IN ACCESS EXCLUSIVE MODE")
        yield


async def test_pods_share_a_keys_limit_and_other_keys_are_not_touched(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    busy, calm = [await add_key(database_url, "read") for _ in range(2)]
    options: dict[str, Any] = {"auth": "required", "requests_per_minute": 10}
    options["rate_settle_seconds"] = 0.05
    async with (
        served(database_url, valkey_url, redis_namespace, **options) as one,
        served(database_url, valkey_url, redis_namespace, **options) as two,
    ):
        await await_fresh_minute()
        for left in range(9, -1, -1):
            status, _, headers = await ask(one, ORDERS, **bearer(busy))
            assert status == 200
            assert headers["RateLimit-Remaining"] == headers["X-RateLimit-Remaining"] == str(left)
        status, code, headers = await ask(one, ORDERS, **bearer(busy))
        assert (status, code) == (429, "rate-limited")
        assert headers["Retry-After"] == headers["RateLimit-Reset"]
        assert headers["Content-Type"] == "application/problem+json"
        async with asyncio.timeout(20):
            while (await ask(two, ORDERS, **bearer(busy)))[0] != 429:
                pass
        for platform in (one, two):
            assert (await ask(platform, ORDERS, **bearer(calm)))[0] == 200


async def test_guessing_keys_is_limited_by_address(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    known = await add_key(database_url, "read")
    async with served(
        database_url,
        valkey_url,
        redis_namespace,
        auth="required",
        anonymous_per_minute=5,
        trusted_proxies=("127.0.0.0/8",),
    ) as platform:
        await await_fresh_minute()
        guesses = [
            await ask(platform, VIEW, X_API_Key="x", X_Forwarded_For="8.8.8.8") for _ in range(6)
        ]
        assert [status for status, _, _ in guesses] == [401] * 5 + [429]
        forged = await ask(platform, VIEW, X_Forwarded_For="1.2.3.4, 8.8.8.8")
        assert forged[:2] == (429, "rate-limited")
        assert (await ask(platform, VIEW, X_Forwarded_For="9.9.9.9"))[0] == 401
        # Whoever has a key is not held liable for its neighbours.
        status, _, headers = await ask(platform, VIEW, X_Forwarded_For="8.8.8.8", **bearer(known))
        assert status == 200
        assert headers["RateLimit-Limit"] == "6000"


async def test_one_callers_slow_reads_leave_room_for_others(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    greedy, other = [await add_key(database_url, "read") for _ in range(2)]
    async with served(
        database_url,
        valkey_url,
        redis_namespace,
        auth="required",
        database=DatabaseSettings(url=database_url, pool_size_max=4),
        caller_requests_max=3,
        caller_waiting_max=5,
        caller_wait_seconds_max=60.0,
        statement_seconds_max=60.0,
    ) as platform:
        await platform.get("/api/v1/views", 200, **bearer(greedy))
        async with stuck_view(database_url):
            # Half of the four connections, and five that wait.
            flood = [asyncio.create_task(ask(platform, VIEW, **bearer(greedy))) for _ in range(20)]
            refused: set[asyncio.Task[Any]] = set()
            waiting = set(flood)
            while len(refused) < 13:
                done, waiting = await asyncio.wait(
                    waiting, timeout=20, return_when=asyncio.FIRST_COMPLETED
                )
                assert done, "the others were neither refused nor answered"
                refused |= done
            for task in refused:
                status, code, headers = task.result()
                assert (status, code) == (429, "too-many-requests")
                assert int(headers["Retry-After"]) >= 1
            for _ in range(5):
                assert (await ask(platform, ORDERS, **bearer(other)))[0] == 200
            assert not any(task.done() for task in waiting)
        assert [(await task)[0] for task in waiting] == [200] * 7
        assert (await ask(platform, VIEW, **bearer(greedy)))[0] == 200


@pytest.mark.parametrize("statements_kept", [256, 0], ids=["direct", "as behind a pooler"])
async def test_a_question_that_takes_too_long_is_ended_and_shuts_nobody_out(
    database_url: str, valkey_url: str, redis_namespace: str, statements_kept: int
) -> None:
    key = await add_key(database_url, "read")
    async with served(
        database_url,
        valkey_url,
        redis_namespace,
        auth="required",
        database=DatabaseSettings(url=database_url, statement_cache_size=statements_kept),
        statement_seconds_max=0.3,
        breaker_failures=2,
    ) as platform:
        await platform.get(VIEW, 200, **bearer(key))
        async with stuck_view(database_url):
            for _ in range(4):
                status, code, headers = await ask(platform, VIEW, **bearer(key))
                assert (status, code) == (503, "too-slow")
                assert headers["Retry-After"] == "10"
            # PostgreSQL is there: nobody else is told that it is away.
            assert (await ask(platform, ORDERS, **bearer(key)))[0] == 200
            async with a_pool(database_url) as pool:
                assert not await pool.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                    " AND application_name = 'coffee-rt-query-api'"
                )
        await platform.get(VIEW, 200, **bearer(key))


async def test_who_finds_all_connections_in_use_comes_again_and_nobody_calls_it_an_outage(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    *greedy, other = [await add_key(database_url, "read") for _ in range(3)]
    async with served(
        database_url,
        valkey_url,
        redis_namespace,
        auth="required",
        database=DatabaseSettings(url=database_url, pool_size_max=2, acquire_seconds_max=0.3),
        statement_seconds_max=60.0,
        breaker_failures=2,
    ) as platform:
        for key in (*greedy, other):
            await platform.get("/api/v1/views", 200, **bearer(key))
        async with stuck_view(database_url):
            held = [asyncio.create_task(ask(platform, VIEW, **bearer(key))) for key in greedy]
            async with asyncio.timeout(20):
                while (answer := await ask(platform, ORDERS, **bearer(other)))[0] == 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            for _ in range(4):
                status, code, headers = answer
                assert (status, code) == (503, "database-busy")
                assert headers["Retry-After"] == "1"
                answer = await ask(platform, ORDERS, **bearer(other))
            assert not any(task.done() for task in held)
        # No breaker keeps it away now.
        assert (await ask(platform, ORDERS, **bearer(other)))[0] == 200
        assert [(await task)[0] for task in held] == [200, 200]
