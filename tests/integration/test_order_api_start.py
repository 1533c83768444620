"""order_api started before its servers are as it wants them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio

from coffee_rt.embedded.server_process import TEST
from coffee_rt.embedded.servers import EmbeddedValkey
from coffee_rt.errors import Retryable
from coffee_rt.order_api.main import main
from coffee_rt.order_api.settings import OrderApiSettings
from coffee_rt.order_api.wiring import _keep_greeting
from coffee_rt.runtime.clock import SystemClock
from coffee_rt.runtime.lifecycle import Lifecycle
from coffee_rt.runtime.settings import DatabaseSettings, RedisSettings, SettingsError
from coffee_rt.store.faults import map_error
from coffee_rt.store.migrations import migrate
from coffee_rt.streams.redis_log import RedisLog
from tests.integration.order_api_process import running_order_api

pytestmark = pytest.mark.integration

ORDERS = "/api/v1/orders"
ORDER = {"store": "uptown", "drink": "latte", "price": "4.50"}


async def test_a_database_without_its_tables_is_503_until_it_is_migrated(
    valkey_url: str, redis_namespace: str, empty_database_url: str
) -> None:
    async with running_order_api(
        valkey_url,
        redis_namespace,
        auth="required",
        database=DatabaseSettings(url=empty_database_url),
        keys_refresh_seconds=0.05,
    ) as api:
        key = "crt_0123456789ab_" + "0" * 64
        refused = await api.post(ORDERS, ORDER, x_api_key=key)
        assert (refused.status, refused.json["type"]) == (
            503,
            "urn:coffee-rt:problem:keys-unavailable",
        )
        await migrate(empty_database_url)

        for _ in range(500):
            if (await api.post(ORDERS, ORDER, x_api_key=key)).status == 401:
                break
            await asyncio.sleep(0.02)
        else:
            pytest.fail("the keys were never read")


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.InvalidPasswordError,
        asyncpg.InvalidCatalogNameError,
        asyncpg.CannotConnectNowError,
        # Its disk fails: "could not read block 7 in file ...: Input/output error".
        asyncpg.PostgresIOError,
    ],
)
def test_a_database_that_refuses_us_is_no_reason_to_end(error: type[Exception]) -> None:
    assert isinstance(map_error(error("refused")), Retryable)


async def test_another_number_of_shards_is_refused_in_a_sentence_at_start_and_later(
    valkey_url: str, redis_namespace: str
) -> None:
    redis = RedisSettings(url=valkey_url)
    keeper = RedisLog(redis, redis_namespace, 4).keeper()
    await keeper.start()
    await keeper.close()
    settings = OrderApiSettings(
        auth="off", http_port=0, namespace=redis_namespace, shards=3, redis=redis
    )
    lifecycle = Lifecycle("order-api")
    with pytest.raises(SettingsError, match="COFFEE_RT_SHARDS=4"):
        await main(lifecycle, settings)
    await lifecycle.stop_tasks()
    # As where the log was away at the start: found while it runs.
    producer = RedisLog(redis, redis_namespace, 3, SystemClock()).producer()
    with pytest.raises(SettingsError, match="COFFEE_RT_SHARDS=4"):
        await _keep_greeting(producer, lifecycle)
    await producer.close()


async def test_a_server_that_may_evict_is_refused_in_a_sentence(
    tmp_path: Path, redis_namespace: str
) -> None:
    server = EmbeddedValkey(tmp_path / "valkey", durability=TEST)
    server.start()
    try:
        client = redis.asyncio.Redis.from_url(server.url)
        await client.config_set("maxmemory-policy", "allkeys-lru")
        settings = OrderApiSettings(
            auth="off",
            http_port=0,
            namespace=redis_namespace,
            redis=RedisSettings(url=server.url),
        )
        lifecycle = Lifecycle("order-api")
        with pytest.raises(SettingsError, match="maxmemory-policy noeviction"):
            await main(lifecycle, settings)
        await lifecycle.stop_tasks()
        await client.aclose()
    finally:
        server.stop()


async def test_replicas_asked_for_and_not_there_leave_the_outcome_unknown(
    valkey_url: str, redis_namespace: str
) -> None:
    async with running_order_api(
        valkey_url, redis_namespace, replicas_min=1, replicas_wait_seconds_max=0.1
    ) as api:
        reply = await api.post(ORDERS, ORDER)
        assert reply.status == 503
        assert reply.json["type"] == "urn:coffee-rt:problem:unknown-outcome"
