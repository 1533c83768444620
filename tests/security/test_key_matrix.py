"""Which key opens which route, and how a key is changed, over HTTP on real processes."""

from __future__ import annotations

import asyncio

import pytest

from coffee_rt.domain.ids import IdMinter, format_id
from coffee_rt.domain.keys import MintedKey, mint_key
from coffee_rt.runtime.settings import DatabaseSettings
from coffee_rt.store.contract import ApiKey
from coffee_rt.store.keys import PostgresApiKeys
from tests.integration.order_api_process import (
    BATCH,
    ORDER,
    ORDERS,
    RunningOrderApi,
    running_order_api,
)
from tests.integration.test_query_api import served
from tests.view_writing import a_pool

pytestmark = pytest.mark.integration

SCOPES = ("ingest", "read", "admin")
OLD_ORDER = {"store": "a", "drink": "b", "price": 1, "timestamp": "2026-01-01T00:00:00Z"}
WRITES = {
    ORDERS: ORDER,
    BATCH: [ORDER],
    "/api/order": OLD_ORDER,
    "/api/v1/order": OLD_ORDER,
    "/api/v2/order": OLD_ORDER,
    "/api/v3/order": OLD_ORDER,
}
READS = {
    "/api/v1/views": "read",
    "/api/v1/views/hourly": "read",
    "/api/v1/views/hourly/top": "read",
    "/api/v1/top": "read",
    "/api/v1/orders": "read",
    "/api/v1/orders/recent": "read",
    "/api/dashboard": "read",
    "/api/v1/dead-letters": "admin",
}
LETTER_ACTIONS = [
    ("GET", "/api/v1/dead-letters/1", 404),
    ("PUT", "/api/v1/dead-letters/1", 404),
    ("POST", "/api/v1/dead-letters/1/redrive", 404),
    ("POST", "/api/v1/dead-letters/redrive", 422),
]
"""Method, path, and what a key of the right scope gets where there are no letters."""


async def add_key(url: str, *scopes: str, tenant: int = 0, is_revoked: bool = False) -> MintedKey:
    key = mint_key()
    async with a_pool(url) as pool:
        await PostgresApiKeys(pool).add_api_key(
            ApiKey(
                key.key_id, tenant, "matrix", key.secret_hash, frozenset(scopes), None, is_revoked
            )
        )
    return key


async def everybody(url: str) -> tuple[dict[str, MintedKey], list[str]]:
    """A key of each scope, and texts that open nothing."""
    keys = {scope: await add_key(url, scope) for scope in SCOPES}
    revoked = await add_key(url, *SCOPES, is_revoked=True)
    unknown = mint_key()
    mixed = f"crt_{keys['read'].key_id}_{unknown.text.rpartition('_')[2]}"
    nonsense = [
        "",
        "x",
        "crt_",
        "crt__",
        "crt_é_ü",
        "crt_a_" + "b" * 20_000,
        f"{keys['read'].text}é",
    ]
    return keys, [revoked.text, unknown.text, mixed, keys["read"].text[:-1], *nonsense]


async def test_each_route_takes_only_keys_of_its_scope(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    keys, strangers = await everybody(database_url)
    database = DatabaseSettings(url=database_url)
    async with running_order_api(
        valkey_url,
        redis_namespace,
        auth="required",
        database=database,
        ack_wait_seconds_default=0.01,
    ) as api:
        for path, body in WRITES.items():
            assert (await api.post(path, body)).status == 401, path
            for token in strangers:
                reply = await api.post(path, body, authorization=f"Bearer {token}")
                assert reply.status == 401, path
            for scope in ("read", "admin"):
                reply = await api.post(path, body, x_api_key=keys[scope].text)
                assert reply.status == 403, path
        assert await api.logged() == []
        reply = await api.post(ORDERS, ORDER, authorization=f"Bearer {keys['ingest'].text}")
        assert reply.status == 202
    async with served(database_url, valkey_url, redis_namespace, auth="required") as platform:
        for path, wanted in READS.items():
            await platform.get(path, 401)
            for token in strangers:
                await platform.get(path, 401, Authorization=f"Bearer {token}")
            for scope in SCOPES:
                status = 200 if scope == wanted else 403
                await platform.get(path, status, Authorization=f"Bearer {keys[scope].text}")
        for method, path, status in LETTER_ACTIONS:
            await platform.send(method, path, {}, 401)
            for token in strangers:
                await platform.send(method, path, {}, 401, Authorization=f"Bearer {token}")
            for scope in SCOPES:
                wanted_status = status if scope == "admin" else 403
                header = f"Bearer {keys[scope].text}"
                await platform.send(method, path, {}, wanted_status, Authorization=header)


async def test_another_tenants_order_is_not_found(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    mine = await add_key(database_url, "read", tenant=7)
    async with served(database_url, valkey_url, redis_namespace, auth="required") as platform:
        theirs, own = platform.order(tenant=8), platform.order(tenant=7)
        await platform.store([theirs, own])
        nobodys = IdMinter().mint(platform.now_us // 1000)
        header = {"Authorization": f"Bearer {mine.text}"}
        await platform.get(f"{ORDERS}/{format_id(own.order_id)}", 200, **header)
        told = []
        for order_id in (theirs.order_id, nobodys):
            body, _ = await platform.get(f"{ORDERS}/{format_id(order_id)}", 404, **header)
            told.append(body)
        # Not even that there is one.
        assert told[0] == told[1]


async def test_a_key_is_changed_without_a_refused_request(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    old = await add_key(database_url, "ingest")
    current, statuses, is_done = old, [], False
    async with running_order_api(
        valkey_url,
        redis_namespace,
        auth="required",
        database=DatabaseSettings(url=database_url),
        keys_refresh_seconds=0.1,
    ) as api:

        async def place() -> None:
            while not is_done:
                reply = await api.post(ORDERS, ORDER, x_api_key=current.text)
                statuses.append(reply.status)
                await asyncio.sleep(0.005)

        client = asyncio.create_task(place())
        new = await add_key(database_url, "ingest")
        await _until(api, new, 202)
        current = new
        await asyncio.sleep(0.05)
        async with a_pool(database_url) as pool:
            assert await PostgresApiKeys(pool).revoke_api_key(old.key_id)
        await _until(api, old, 401)
        is_done = True
        await client
    assert set(statuses) == {202}


async def test_a_readers_key_is_changed_without_a_refused_request(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    old, path = await add_key(database_url, "read"), "/api/v1/orders"
    current, statuses, is_done = old, [], False
    async with served(
        database_url, valkey_url, redis_namespace, auth="required", keys_refresh_seconds=0.1
    ) as platform:

        async def status_of(key: MintedKey) -> int:
            headers = {"X-API-Key": key.text}
            async with platform.session.get(platform.address + path, headers=headers) as reply:
                await reply.read()
                return reply.status

        async def read() -> None:
            while not is_done:
                statuses.append(await status_of(current))
                await asyncio.sleep(0.005)

        async def until(key: MintedKey, status: int) -> None:
            async with asyncio.timeout(20):
                while await status_of(key) != status:
                    pass

        client = asyncio.create_task(read())
        new = await add_key(database_url, "read")
        await until(new, 200)
        # Both open it now: clients may move one by one.
        assert await status_of(old) == 200
        current = new
        await asyncio.sleep(0.05)
        async with a_pool(database_url) as pool:
            assert await PostgresApiKeys(pool).revoke_api_key(old.key_id)
        await until(old, 401)
        is_done = True
        await client
        assert await status_of(new) == 200
    assert set(statuses) == {200}


async def _until(api: RunningOrderApi, key: MintedKey, status: int) -> None:
    async with asyncio.timeout(20):
        while True:
            reply = await api.post(ORDERS, ORDER, x_api_key=key.text)
            if reply.status == status:
                return
            await asyncio.sleep(0.02)
