"""Reads as clients make them: over HTTP, from a real PostgreSQL and a real log."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from coffee_rt.domain.ids import IdMinter, format_id
from coffee_rt.domain.keys import mint_key
from coffee_rt.domain.orders import Order
from coffee_rt.domain.wire import encode_record
from coffee_rt.query_api.settings import QueryApiSettings
from coffee_rt.query_api.wiring import wired
from coffee_rt.runtime.lifecycle import Lifecycle, serve_http
from coffee_rt.runtime.settings import DatabaseSettings, RedisSettings
from coffee_rt.store.contract import ApiKey, DeadRecord, EntryWrite
from coffee_rt.store.definitions import load_definitions
from coffee_rt.store.keeper import PostgresKeeper
from coffee_rt.store.keys import PostgresApiKeys
from coffee_rt.store.orders import PostgresOrderWriter
from coffee_rt.store.pool import Pool
from coffee_rt.store.view_catalogue import PostgresViewCatalogue
from coffee_rt.store.view_fold import PostgresViewFolder
from coffee_rt.streams.contract import STORE_GROUP, Append, EntryId, Position
from coffee_rt.streams.redis_log import RedisLog
from tests.builders import an_order
from tests.view_writing import a_pool

pytestmark = pytest.mark.integration

MINTER = IdMinter()


@dataclass
class Platform:
    """A query_api being served, and hands to put orders where it reads them."""

    address: str
    pool: Pool
    log: RedisLog
    session: aiohttp.ClientSession
    now_us: int
    entries: int = 0

    async def get(
        self, path: str, status: int = 200, **headers: str
    ) -> tuple[dict[str, Any], Mapping[str, str]]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.get(self.address + path, headers=sent) as response:
            body = await response.json(content_type=None)
            assert response.status == status, body
            return body, response.headers

    async def send(
        self, method: str, path: str, body: Any = None, status: int = 200, **headers: str
    ) -> dict[str, Any]:
        """A request with a JSON body (None: without any); bytes are sent as they are."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.request(
            method, self.address + path, data=data, headers=sent
        ) as response:
            answer: dict[str, Any] = await response.json(content_type=None)
            assert response.status == status, answer
            return answer

    async def store(self, orders: Sequence[Order], dead: Sequence[DeadRecord] = ()) -> bytes:
        """Commit orders as one entry; its batch id."""
        self.entries += 1
        batch_id = MINTER.mint(self.now_us // 1000)
        writer = PostgresOrderWriter(self.pool)
        entry = EntryWrite(
            shard=0,
            entry=(self.now_us // 1000, self.entries),
            batch_id=batch_id,
            counter=self.entries,
            records=len(orders) + len(dead),
            orders=orders,
            dead=dead,
        )
        await writer.refresh_catalogue()
        await writer.commit(writer.prepare([entry]))
        return batch_id

    async def log_order(self, order: Order) -> Position:
        """Append to the log only."""
        producer = self.log.producer()
        await producer.start()
        appended = await producer.append(
            0, Append(order.order_id, encode_record(order), order.body_hash)
        )
        await producer.close()
        return appended.position

    async def fold(self) -> None:
        folder = PostgresViewFolder(self.pool)
        waiting = await folder.waiting_lanes()
        assert waiting
        for work in waiting:
            await folder.fold_lane(work.key, 10_000, 10_000)
        assert not await folder.waiting_lanes()

    def order(self, **changes: Any) -> Order:
        return an_order(accepted_at_us=self.now_us, **changes)


@asynccontextmanager
async def served(
    database_url: str, valkey_url: str, namespace: str, **changes: Any
) -> AsyncIterator[Platform]:
    settings = QueryApiSettings(
        **{
            "auth": "off",
            "http_port": 0,
            "namespace": namespace,
            "redis": RedisSettings(url=valkey_url),
            "database": DatabaseSettings(url=database_url),
            "position_wait_seconds_max": 0.2,
            "anonymous_per_minute": 0,
            **changes,
        }
    )
    lifecycle = Lifecycle("query-api")
    log = RedisLog(settings.redis, namespace, settings.shards)
    now_us = int(time.time() * 1_000_000)
    async with a_pool(database_url) as pool, aiohttp.ClientSession() as session:
        await PostgresViewCatalogue(pool).ensure_views(load_definitions())
        await PostgresKeeper(pool).ensure_partitions(now_us // 1000, 2)
        async with wired(settings, lifecycle) as app:
            serving = lifecycle.spawn(serve_http(app, settings, lifecycle), "http")
            while lifecycle.http_address is None:
                await lifecycle.clock.sleep(0.005)
            host, port = lifecycle.http_address
            yield Platform(f"http://{host}:{port}", pool, log, session, now_us)
            await session.close()
            lifecycle.begin_drain()
            await serving
        await lifecycle.stop_tasks()


@pytest.fixture
async def platform(
    database_url: str, valkey_url: str, redis_namespace: str
) -> AsyncIterator[Platform]:
    async with served(database_url, valkey_url, redis_namespace) as running:
        yield running


async def test_a_view_answers_what_the_orders_add_up_to(platform: Platform) -> None:
    await platform.store(
        [
            platform.order(store="uptown", price_minor=450, quantity=2),
            platform.order(store="uptown", price_minor=325),
            platform.order(store="central", drink="tea", price_minor=10),
        ]
    )
    body, headers = await platform.get("/api/v1/views/hourly?last=2h&store=uptown&group_by=store")
    [row] = body["rows"]
    assert (row["store"], row["orders"], row["quantity"]) == ("uptown", 2, 3)
    assert row["revenue"] == "12.25"
    assert "drink" not in row
    assert headers["X-Data-Source"] == "primary"
    assert int(headers["X-Data-Lag-Ms"]) >= 0
    assert headers["X-View-Version"].count(":") == 1


async def test_an_answer_is_the_same_before_and_after_the_fold(platform: Platform) -> None:
    path = "/api/v1/views/hourly?last=2h"
    await platform.store([platform.order(drink=drink) for drink in ("tea", "latte", "tea")])
    before, _ = await platform.get(path)
    await platform.fold()
    after, headers = await platform.get(path)
    assert before["rows"] == after["rows"]
    assert len(after["rows"]) == 2
    await platform.store([platform.order(drink="tea")])
    mixed, _ = await platform.get(path)
    assert sum(row["orders"] for row in mixed["rows"]) == 4
    assert headers["X-View-Unfolded"] == "included"


async def test_pages_of_a_view_meet_every_row_once(platform: Platform) -> None:
    await platform.store([platform.order(drink=f"drink {n}") for n in range(7)])
    seen, cursor = [], ""
    while True:
        body, _ = await platform.get(f"/api/v1/views/hourly?last=2h&limit=3{cursor}")
        seen += [row["drink"] for row in body["rows"]]
        if body["next"] is None:
            break
        cursor = f"&cursor={body['next']}"
    assert sorted(seen) == sorted(f"drink {n}" for n in range(7))


async def test_the_best_drinks_are_ranked_by_orders(platform: Platform) -> None:
    counts = {"latte": 3, "tea": 5, "mocha": 1, "americano": 2, "flat white": 4, "water": 1}
    await platform.store(
        [platform.order(drink=drink) for drink, count in counts.items() for _ in range(count)]
    )
    body, _ = await platform.get("/api/v1/top")
    assert [row["drink"] for row in body["rows"]][:4] == ["tea", "flat white", "latte", "americano"]
    assert len(body["rows"]) == 5
    body, _ = await platform.get("/api/v1/views/hourly/top?by=store&measure=revenue&n=1")
    assert body["rows"] == [{"store": "uptown", "orders": 16, "quantity": 16, "revenue": "72.00"}]


async def test_an_order_is_found_from_its_202_on(platform: Platform) -> None:
    order = platform.order(note="no sugar", attributes=b'{"channel":"kiosk"}')
    position = await platform.log_order(order)
    path = f"/api/v1/orders/{format_id(order.order_id)}"
    body, headers = await platform.get(path)
    assert body["state"] == "logged"
    assert body["position"] == str(position)
    assert headers["X-Data-Source"] == "log"
    await platform.store([order])
    body, headers = await platform.get(path)
    assert body["state"] == "stored"
    assert headers["X-Data-Source"] == "primary"
    assert body["price"] == "4.50"
    assert body["attributes"] == {"channel": "kiosk"}


async def test_a_dead_letter_is_found_by_its_order_and_listed(platform: Platform) -> None:
    order = platform.order()
    dead = DeadRecord(0, b"\xc1raw", "bad-price", "is out of range", 0, order.order_id)
    await platform.store([], [dead])
    body, _ = await platform.get(f"/api/v1/orders/{format_id(order.order_id)}")
    assert body["state"] == "dead"
    assert body["dead_letter"]["code"] == "bad-price"
    listed, _ = await platform.get("/api/v1/dead-letters")
    assert [letter["raw"] for letter in listed["dead_letters"]] == ["c1726177"]


async def test_ids_nobody_was_given_are_not_found(platform: Platform) -> None:
    body, _ = await platform.get(f"/api/v1/orders/{format_id(platform.order().order_id)}", 404)
    assert body["type"] == "urn:coffee-rt:problem:no-such-order"
    body, _ = await platform.get("/api/v1/orders/7", 422)
    assert body["errors"][0]["place"] == "/order_id"


async def test_recent_orders_come_newest_first_in_pages(platform: Platform) -> None:
    orders = [platform.order(store="uptown" if n % 2 else "central") for n in range(5)]
    await platform.store(orders)
    newest = [format_id(order.order_id) for order in reversed(orders)]
    first, _ = await platform.get("/api/v1/orders?limit=3")
    rest, _ = await platform.get(f"/api/v1/orders?limit=3&before={first['next']}")
    assert [order["order_id"] for order in first["orders"] + rest["orders"]] == newest
    assert rest["next"] is None
    uptown, _ = await platform.get("/api/v1/orders?store=uptown")
    assert {order["store"] for order in uptown["orders"]} == {"uptown"}
    same, _ = await platform.get("/api/v1/orders/recent?store=uptown")
    assert same == uptown


async def test_a_position_that_is_stored_is_inside_the_answer(platform: Platform) -> None:
    batch_id = await platform.store([platform.order()])
    position = Position(0, EntryId(1, 1), batch_id)
    path = "/api/v1/views/hourly?last=2h&position="
    _, headers = await platform.get(path + str(position))
    assert headers["X-Position-Included"] == "true"
    _, headers = await platform.get(path + f"0.1-1.{MINTER.mint(platform.now_us // 1000).hex()}")
    assert headers["X-Position-Included"] == "false"
    body, _ = await platform.get(path + "nonsense", 400)
    assert body["errors"][0]["place"] == "/position"


async def test_the_lag_is_the_age_of_what_is_not_stored_yet(platform: Platform) -> None:
    keeper = platform.log.keeper()
    await keeper.ensure_group(STORE_GROUP)
    await platform.log_order(platform.order())
    deadline = time.monotonic() + 10
    while True:
        _, headers = await platform.get("/api/v1/views/hourly?last=2h")
        if int(headers["X-Data-Lag-Ms"]) > 0 or time.monotonic() > deadline:
            break
    await keeper.close()
    assert int(headers["X-Data-Lag-Ms"]) > 0


async def test_the_published_dashboard_has_its_shape(platform: Platform) -> None:
    empty, _ = await platform.get("/api/dashboard")
    assert empty["current_hour"] is None
    assert empty["top5_drinks"] == empty["recent_orders"] == []
    await platform.store(
        [platform.order(drink="tea"), platform.order(drink="tea"), platform.order(drink="latte")]
    )
    body, _ = await platform.get("/api/dashboard")
    assert set(body) == {"current_hour", "top5_drinks", "recent_orders", "server_timestamp"}
    assert body["current_hour"]["hour"] == time.gmtime(platform.now_us // 1_000_000).tm_hour
    assert body["current_hour"]["top_drinks"] == ["tea", "latte"]
    assert body["current_hour"]["revenue"] == 13.5
    assert body["current_hour"]["order_count"] == 3
    assert body["top5_drinks"] == ["tea", "latte"]
    recent = body["recent_orders"][0]
    assert isinstance(recent["id"], int)
    assert recent["price"] == 4.5
    assert recent["timestamp"].endswith("Z")


async def test_unknown_views_parameters_and_routes_are_problems_that_name_them(
    platform: Platform,
) -> None:
    body, headers = await platform.get("/api/v1/views/nope", 404)
    assert "hourly" in body["detail"]
    assert headers["Content-Type"] == "application/problem+json"
    body, _ = await platform.get("/api/v1/views/hourly?colour=blue", 400)
    assert body["errors"][0]["place"] == "colour"
    body, _ = await platform.get("/api/v1/nothing-here", 404)
    assert body["type"] == "urn:coffee-rt:problem:no-such-route"


async def test_views_are_listed_with_their_definitions(platform: Platform) -> None:
    body, _ = await platform.get("/api/v1/views")
    listed = {view["name"]: view for view in body["views"]}
    assert listed["hourly"]["dimensions"] == ["store", "drink"]
    assert listed["minutely"]["bucket"] == "minute"


async def test_health_and_the_openapi_document_are_served(platform: Platform) -> None:
    body, _ = await platform.get("/livez")
    assert body == {"status": "ok"}
    await platform.get("/readyz")
    body, _ = await platform.get("/api/query/openapi.json")
    assert "/api/v1/views/{name}" in body["paths"]


async def test_keys_decide_who_reads_what(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    reader, stranger = mint_key(), mint_key()
    async with a_pool(database_url) as pool:
        await PostgresApiKeys(pool).add_api_key(
            ApiKey(reader.key_id, 7, "till", reader.secret_hash, frozenset({"read"}), None, False)
        )
    async with served(database_url, valkey_url, redis_namespace, auth="required") as platform:
        await platform.store(
            [platform.order(tenant=7, store="mine"), platform.order(store="yours")]
        )
        body, headers = await platform.get("/api/v1/orders", 401)
        assert headers["WWW-Authenticate"] == "Bearer"
        await platform.get("/api/v1/orders", 401, Authorization=f"Bearer {stranger.text}")
        body, _ = await platform.get("/api/v1/orders", Authorization=f"Bearer {reader.text}")
        assert [order["store"] for order in body["orders"]] == ["mine"]
        view, _ = await platform.get("/api/v1/views/hourly", X_API_Key=reader.text)
        assert [row["store"] for row in view["rows"]] == ["mine"]
        await platform.get("/api/v1/dead-letters", 403, Authorization=f"Bearer {reader.text}")


async def test_a_replica_answers_with_its_own_lag(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    database = DatabaseSettings(url=database_url, replica_url=database_url)
    async with served(database_url, valkey_url, redis_namespace, database=database) as platform:
        async with asyncio.timeout(10):
            headers: Any = {}
            while "X-Data-Lag-Ms" not in headers:
                _, headers = await platform.get("/api/v1/views/hourly")
        assert headers["X-Data-Source"] == "replica"


async def test_a_replica_that_is_away_is_replaced_by_the_primary(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    database = DatabaseSettings(url=database_url, replica_url="postgresql://u@127.0.0.1:1/none")
    async with served(
        database_url, valkey_url, redis_namespace, database=database, breaker_failures=2
    ) as platform:
        await platform.store([platform.order()])
        for _ in range(4):  # More failures than a breaker takes.
            body, headers = await platform.get("/api/v1/views/hourly")
            assert headers["X-Data-Source"] == "primary"
            assert sum(row["orders"] for row in body["rows"]) == 1


async def test_a_log_that_is_away_does_not_hide_stored_orders(
    database_url: str, redis_namespace: str
) -> None:
    nobody = "redis://127.0.0.1:1/0"
    async with served(database_url, nobody, redis_namespace) as platform:
        order = platform.order()
        await platform.store([order])
        body, _ = await platform.get(f"/api/v1/orders/{format_id(order.order_id)}")
        assert body["state"] == "stored"
        unknown = format_id(platform.order().order_id)
        body, headers = await platform.get(f"/api/v1/orders/{unknown}", 503)
        assert int(headers["Retry-After"]) >= 1
        _, headers = await platform.get("/api/v1/views/hourly")
        assert "X-Data-Lag-Ms" not in headers
