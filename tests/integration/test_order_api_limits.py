"""Who may come in and how often; what is refused early; how far an order is known to have come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from coffee_rt.channels.messages import Beacon, LaneState, Stored, StoredEntry, ViewChange, encode
from coffee_rt.channels.redis import RedisChannels
from coffee_rt.domain.keys import mint_key
from coffee_rt.order_api.settings import OrderApiSettings
from coffee_rt.runtime.settings import DatabaseSettings, RedisSettings, SettingsError
from coffee_rt.store.contract import ApiKey
from coffee_rt.store.keys import PostgresApiKeys
from coffee_rt.store.pool import create_pool
from coffee_rt.streams.contract import Position
from tests.integration.order_api_process import (
    BATCH,
    ORDER,
    ORDERS,
    Reply,
    RunningOrderApi,
    running_order_api,
)

pytestmark = pytest.mark.integration


async def eventually(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while True:
            held = condition()
            if asyncio.iscoroutine(held):
                held = await held
            if held:
                return
            await asyncio.sleep(0.02)


async def add_key(database_url: str, **changes: Any) -> str:
    """A key in the store; its text."""
    minted = mint_key()
    key = ApiKey(
        minted.key_id, 7, "test", minted.secret_hash, frozenset({"ingest"}), None, is_revoked=False
    )
    pool = await create_pool(DatabaseSettings(url=database_url))
    await PostgresApiKeys(pool).add_api_key(replace(key, **changes))
    await pool.close()
    return minted.text


def assert_refused(reply: Reply, status: int, code: str) -> None:
    assert (reply.status, reply.json["type"]) == (status, f"urn:coffee-rt:problem:{code}")


def secured(valkey_url: str, namespace: str, database_url: str, **changes: Any) -> Any:
    return running_order_api(
        valkey_url,
        namespace,
        **{
            "auth": "required",
            "database": DatabaseSettings(url=database_url),
            "keys_refresh_seconds": 0.05,
            "rate_settle_seconds": 0.05,
            **changes,
        },
    )


async def test_orders_need_a_key_with_the_scope_ingest(
    valkey_url: str, redis_namespace: str, database_url: str
) -> None:
    good = await add_key(database_url)
    reader = await add_key(database_url, scopes=frozenset({"read"}))
    revoked = await add_key(database_url, is_revoked=True)
    # Keys three refreshes old are not fresh enough to say 401: a busy machine needs longer ones.
    options = {"keys_refresh_seconds": 5.0}
    async with secured(valkey_url, redis_namespace, database_url, **options) as api:
        for path, body in ((ORDERS, ORDER), (BATCH, [ORDER])):
            assert_refused(await api.post(path, body), 401, "no-api-key")
            none = await api.post(path, body, authorization=f"Bearer {mint_key().text}")
            assert_refused(none, 401, "bad-api-key")
            assert none.headers["www-authenticate"] == "Bearer"
            assert_refused(await api.post(path, body, x_api_key=revoked), 401, "bad-api-key")
            assert_refused(await api.post(path, body, x_api_key=reader), 403, "wrong-scope")
            assert (await api.post(path, body, authorization=f"Bearer {good}")).status == 202
            assert (await api.post(path, body, x_api_key=good)).status == 202
        orders = await api.logged()
        assert [order.tenant for order in orders] == [7] * 4


async def test_a_key_added_or_revoked_later_is_noticed(
    valkey_url: str, redis_namespace: str, database_url: str
) -> None:
    async with secured(valkey_url, redis_namespace, database_url) as api:
        key = await add_key(database_url)

        async def status() -> int:
            return int((await api.post(ORDERS, ORDER, x_api_key=key)).status)

        async def is_taken() -> bool:
            return await status() == 202

        async def is_refused() -> bool:
            return await status() == 401

        await eventually(is_taken)
        pool = await create_pool(DatabaseSettings(url=database_url))
        await PostgresApiKeys(pool).revoke_api_key(key.split("_")[1])
        await pool.close()
        await eventually(is_refused)


async def test_without_postgresql_keys_are_503_never_401_and_the_process_is_ready(
    valkey_url: str, redis_namespace: str
) -> None:
    nowhere = "postgresql://127.0.0.1:1/none"
    async with secured(valkey_url, redis_namespace, nowhere) as api:
        reply = await api.post(ORDERS, ORDER, x_api_key=mint_key().text)
        assert_refused(reply, 503, "keys-unavailable")
        assert int(reply.headers["retry-after"]) >= 1
        assert (await api.request("GET", "/readyz")).status == 200


async def test_a_tenant_s_key_does_not_meet_another_tenant_s(
    valkey_url: str, redis_namespace: str, database_url: str
) -> None:
    keys = [await add_key(database_url, tenant=tenant) for tenant in (1, 2)]
    async with secured(valkey_url, redis_namespace, database_url) as api:
        replies = [
            await api.post(ORDERS, ORDER, x_api_key=key, idempotency_key="same") for key in keys
        ]
        assert [reply.json["duplicate"] for reply in replies] == [False, False]


async def test_a_key_s_limit_is_shared_by_two_processes(
    valkey_url: str, redis_namespace: str, database_url: str
) -> None:
    key = await add_key(database_url, requests_per_minute=20)
    settings = (valkey_url, redis_namespace, database_url)
    async with secured(*settings) as one, secured(*settings) as two:
        await _await_fresh_minute()
        for _ in range(15):
            reply = await one.post(ORDERS, ORDER, x_api_key=key)
            assert reply.status == 202
        assert reply.headers["ratelimit-limit"] == reply.headers["x-ratelimit-limit"] == "20"
        assert reply.headers["ratelimit-remaining"] == "5"
        assert 1 <= int(reply.headers["ratelimit-reset"]) <= 60
        statuses: list[int] = []

        async def is_limited() -> bool:
            reply = await two.post(ORDERS, ORDER, x_api_key=key)
            statuses.append(reply.status)
            if reply.status == 429:
                assert_refused(reply, 429, "rate-limited")
                assert reply.headers["ratelimit-remaining"] == "0"
                assert reply.headers.getall("retry-after") == [reply.headers["ratelimit-reset"]]
            return bool(reply.status == 429)

        await eventually(is_limited)
        # Alone it would have had 20; what is over 5 was taken before the counts were added up.
        assert statuses.count(202) < 20


async def test_guessing_keys_is_limited_by_address(
    valkey_url: str, redis_namespace: str, database_url: str
) -> None:
    options: dict[str, Any] = {
        "anonymous_per_minute": 10,
        "trusted_proxies": ("127.0.0.0/8",),
    }
    async with secured(valkey_url, redis_namespace, database_url, **options) as api:
        await _await_fresh_minute()
        replies = [
            await api.post(ORDERS, ORDER, x_api_key="x", x_forwarded_for="8.8.8.8")
            for _ in range(11)
        ]
        assert [reply.status for reply in replies] == [401] * 10 + [429]
        forged = await api.post(ORDERS, ORDER, x_forwarded_for="1.2.3.4, 8.8.8.8")
        assert forged.status == 429
        other = await api.post(ORDERS, ORDER, x_forwarded_for="9.9.9.9")
        assert other.status == 401


async def test_forwarded_addresses_are_not_believed_without_a_trusted_proxy(
    valkey_url: str, redis_namespace: str
) -> None:
    async with running_order_api(valkey_url, redis_namespace, anonymous_per_minute=5) as api:
        await _await_fresh_minute()
        replies = [await api.post(ORDERS, ORDER, x_forwarded_for=f"8.8.8.{n}") for n in range(6)]
        assert [reply.status for reply in replies] == [202] * 5 + [429]
        compat = await api.post("/api/v2/order", ORDER)
        assert (compat.status, set(compat.json)) == (429, {"detail"})


async def _await_fresh_minute() -> None:
    """A count that a minute's end would divide in two proves nothing: wait for the next one."""
    if time.time() % 60 > 50:
        await asyncio.sleep(60 - time.time() % 60)


def test_auth_off_is_refused_on_other_than_loopback_addresses() -> None:
    assert OrderApiSettings(auth="off").auth == "off"
    with pytest.raises(SettingsError, match="COFFEE_RT_AUTH"):
        OrderApiSettings(auth="off", http_host="0.0.0.0")


async def test_a_log_that_is_too_full_refuses_before_redis_does(
    valkey_url: str, redis_namespace: str
) -> None:
    async with running_order_api(valkey_url, redis_namespace, undelivered_records_max=10) as api:
        assert (await api.post(BATCH, [ORDER] * 50)).json["accepted"] == 50

        async def is_refused() -> bool:
            reply = await api.post(ORDERS, ORDER)
            if reply.status == 429:
                assert_refused(reply, 429, "backlog")
                assert int(reply.headers["retry-after"]) >= 1
            return reply.status == 429

        await eventually(is_refused)
        # A backlog is no fault of this process.
        assert (await api.request("GET", "/readyz")).status == 200


async def stored_message(reply: Reply, xid: int, **more: Any) -> bytes:
    position = Position.parse(reply.json["position"])
    entry = StoredEntry(position.shard, str(position.entry_id), position.batch_id)
    return encode(Stored(xid, [entry], **more))


async def post_and_hear(
    api: RunningOrderApi, channels: RedisChannels, ack: str, publish: Callable[[Reply], Any]
) -> Reply:
    """Post with a key and `ack`; meanwhile publish what `publish` makes of the order's first answer."""
    first = await api.post(ORDERS, ORDER, idempotency_key=ack)
    waiting = asyncio.create_task(
        api.post(f"{ORDERS}?ack={ack}&wait_ms=8000", ORDER, idempotency_key=ack)
    )
    while not waiting.done():
        for topic, body in await publish(first):
            await channels.publish(topic, body)
        await asyncio.sleep(0.02)
    return await waiting


async def test_ack_stored_and_visible_follow_what_is_published(
    valkey_url: str, redis_namespace: str
) -> None:
    channels = RedisChannels(valkey_url, namespace=redis_namespace)
    lanes = {"hourly": [1], "minutely": [0]}

    async def stored(reply: Reply) -> list[tuple[str, bytes]]:
        return [("stored", await stored_message(reply, 100, lanes=lanes))]

    async def half_visible(reply: Reply) -> list[tuple[str, bytes]]:
        change = ViewChange("hourly", "1.1.1", 1, 5, 4, 101, [])
        return [*await stored(reply), ("view:hourly", encode(change))]

    async def visible(reply: Reply) -> list[tuple[str, bytes]]:
        epochs = {"hourly": "1.1.1", "minutely": "1.1.1"}
        floors = {"hourly": [LaneState(1, 0), LaneState(5, 101)], "minutely": [LaneState(7, 101)]}
        return [*await stored(reply), ("beacon", encode(Beacon(1, epochs, floors)))]

    async with running_order_api(valkey_url, redis_namespace) as api:
        assert (await post_and_hear(api, channels, "stored", stored)).json["ack"] == "stored"
        half = asyncio.create_task(
            api.post(f"{ORDERS}?ack=visible&wait_ms=600", ORDER, idempotency_key="half")
        )
        first = await api.post(ORDERS, ORDER, idempotency_key="half")
        while not half.done():
            for topic, body in await half_visible(first):
                await channels.publish(topic, body)
            await asyncio.sleep(0.02)
        assert (await half).json["ack"] == "stored"
        assert (await post_and_hear(api, channels, "visible", visible)).json["ack"] == "visible"
    await channels.close()


async def test_an_order_that_became_a_dead_letter_is_not_called_stored(
    valkey_url: str, redis_namespace: str
) -> None:
    channels = RedisChannels(valkey_url, namespace=redis_namespace)

    async def dead(reply: Reply) -> list[tuple[str, bytes]]:
        from coffee_rt.domain.ids import parse_id

        order_id = parse_id(reply.json["order_id"])
        return [("stored", await stored_message(reply, 9, lanes={}, dead=[order_id]))]

    async with running_order_api(valkey_url, redis_namespace) as api:
        reply = await post_and_hear(api, channels, "stored", dead)
        assert reply.json["ack"] == "dead-letter"
    await channels.close()


async def test_never_heard_of_is_answered_with_the_level_known(
    valkey_url: str, redis_namespace: str
) -> None:
    async with running_order_api(valkey_url, redis_namespace) as api:
        started = time.monotonic()
        reply = await api.post(f"{ORDERS}?ack=stored&wait_ms=300", ORDER)
        assert (reply.status, reply.json["ack"]) == (202, "logged")
        assert 0.3 <= time.monotonic() - started < 5
        batch = await api.post(f"{BATCH}?ack=visible&wait_ms=0", [ORDER])
        assert batch.json["ack"] == "logged"


async def test_an_acknowledged_entry_counts_as_stored_when_its_publication_was_lost(
    valkey_url: str, redis_namespace: str
) -> None:
    async with running_order_api(valkey_url, redis_namespace) as api:
        keeper = api.log.keeper()
        await keeper.ensure_group("workers")
        reader = api.log.reader("workers", "w")
        waiting = asyncio.create_task(api.post(f"{BATCH}?ack=stored&wait_ms=8000", [ORDER] * 3))
        acknowledged = 0
        async with asyncio.timeout(8):
            while acknowledged < 3:
                for shard in range(api.settings.shards):
                    deliveries = await reader.read(shard, 10, 0.02)
                    if deliveries:
                        await reader.acknowledge(shard, deliveries)
                        acknowledged += sum(delivery.records for delivery in deliveries)
        assert (await waiting).json["ack"] == "stored"
        await reader.leave()
        await keeper.close()


async def test_a_redis_that_is_away_is_503_and_not_ready(
    valkey_url: str, redis_namespace: str
) -> None:
    nowhere = RedisSettings(url="redis://127.0.0.1:1/0")
    async with running_order_api(
        valkey_url, redis_namespace, redis=nowhere, is_awaited=False
    ) as api:
        reply = await api.post(ORDERS, ORDER)
        assert_refused(reply, 503, "temporarily-away")
        assert int(reply.headers["retry-after"]) >= 1
        batch = await api.post(BATCH, [ORDER, ORDER])
        assert_refused(batch, 503, "temporarily-away")
        assert (await api.request("GET", "/readyz")).status == 503
        assert (await api.request("GET", "/livez")).status == 200


async def test_requests_under_way_are_answered_before_the_process_ends(
    valkey_url: str, redis_namespace: str
) -> None:
    async with running_order_api(valkey_url, redis_namespace) as api:
        waiting = asyncio.create_task(api.post(f"{ORDERS}?ack=stored&wait_ms=700", ORDER))
        await eventually(lambda: REGISTRY.get_sample_value("coffee_rt_order_api_ack_waits"))
        api.lifecycle.begin_drain()
        assert (await waiting).status == 202
