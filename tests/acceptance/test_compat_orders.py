"""The published coffee-rt's clients post orders to ours unchanged, and read our answers by its keys."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio

from coffee_rt.domain.ids import display_number, parse_id
from tests.integration.order_api_process import Reply, RunningOrderApi, running_order_api

pytestmark = pytest.mark.integration

V1 = ("/api/order", "/api/v1/order")
LATER = ("/api/v2/order", "/api/v3/order")


@pytest_asyncio.fixture
async def api(valkey_url: str, redis_namespace: str) -> AsyncIterator[RunningOrderApi]:
    async with running_order_api(
        valkey_url, redis_namespace, ack_wait_seconds_default=10.0
    ) as running:
        yield running


@pytest_asyncio.fixture
async def worker(api: RunningOrderApi) -> AsyncIterator[None]:
    """Acknowledges what is logged, as the worker does after its commit."""
    keeper, reader = api.log.keeper(), api.log.reader("workers", "w")
    await keeper.ensure_group("workers")

    async def acknowledge(shard: int) -> None:
        while True:
            deliveries = await reader.read(shard, 100, 0.05)
            if deliveries:
                await reader.acknowledge(shard, deliveries)

    tasks = [asyncio.create_task(acknowledge(shard)) for shard in range(api.settings.shards)]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await reader.leave()
    await keeper.close()


def generated_order() -> dict[str, Any]:
    """As its load generator makes them."""
    return {
        "drink": random.choice(["cappuccino", "americano", "latte"]),
        "store": random.choice(["uptown", "downtown", "central", "southend"]),
        "price": round(random.uniform(3.0, 6.5), 2),
        "timestamp": datetime.now(UTC).isoformat(),
    }


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("path", V1)
async def test_v1_gives_the_order_back_once_it_is_stored(api: RunningOrderApi, path: str) -> None:
    order = generated_order()
    reply = await api.post(path, order)
    assert reply.status == 200
    answer = reply.json
    assert isinstance(answer["id"], int)
    assert answer["id"] < 2**53
    assert answer["id"] == display_number(parse_id(answer["order_id"]))
    assert (answer["drink"], answer["store"]) == (order["drink"], order["store"])
    assert answer["price"] == order["price"]
    assert instant(answer["timestamp"]) == instant(order["timestamp"])
    assert answer["ack"] == "stored"


@pytest.mark.parametrize("path", LATER)
async def test_v2_and_v3_answer_when_the_order_is_in_the_log(
    api: RunningOrderApi, path: str
) -> None:
    reply = await api.post(path, generated_order())
    assert reply.status == 200
    answer = reply.json
    assert answer["status"] == "accepted"
    assert answer["version"] == path.split("/")[2]
    assert answer["stream"] == "orders:stream"
    [order] = await api.logged()
    assert parse_id(answer["message_id"]) == order.order_id


async def test_fields_it_does_not_know_and_times_without_offset_are_taken(
    api: RunningOrderApi,
) -> None:
    order = generated_order() | {"id": None, "timestamp": datetime.now(UTC).isoformat()[:19]}
    assert (await api.post("/api/v2/order", order)).status == 200
    [logged] = await api.logged()
    assert abs(logged.ordered_at_us - logged.accepted_at_us) < 10_000_000


@pytest.mark.parametrize("path", [*V1, *LATER])
@pytest.mark.parametrize(
    ("changes", "field", "kind"),
    [
        ({"drink": ...}, "drink", "missing"),
        ({"timestamp": ...}, "timestamp", "missing"),
        ({"price": "free"}, "price", "bad_price"),
        ({"price": -1}, "price", "bad_price"),
        ({"store": 7}, "store", "wrong_type"),
        ({"timestamp": "yesterday"}, "timestamp", "bad_time"),
    ],
)
async def test_a_bad_order_is_422_in_the_shape_of_fastapi(
    api: RunningOrderApi, path: str, changes: dict[str, Any], field: str, kind: str
) -> None:
    order = {
        name: value for name, value in (generated_order() | changes).items() if value is not ...
    }
    assert_details(await api.post(path, order), ["body", field], kind)
    assert await api.logged() == []


@pytest.mark.parametrize("body", [b"", b"{", b'{"drink":"a","drink":"b"}', b"[]", b"\xff"])
async def test_what_is_no_json_object_is_422_too(api: RunningOrderApi, body: bytes) -> None:
    reply = await api.post("/api/order", body)
    assert reply.status == 422
    assert reply.json["detail"][0]["loc"][0] == "body"


def assert_details(reply: Reply, place: list[str], kind: str) -> None:
    assert reply.status == 422, reply.body
    [detail] = reply.json["detail"]
    assert detail["loc"] == place
    assert detail["type"] == kind
    assert detail["msg"]


async def test_its_routes_take_idempotency_keys_as_well(api: RunningOrderApi) -> None:
    order = generated_order()
    replies = [await api.post("/api/v2/order", order, idempotency_key="a") for _ in range(2)]
    assert len({reply.json["message_id"] for reply in replies}) == 1
    other = await api.post("/api/v2/order", generated_order(), idempotency_key="a")
    assert (other.status, set(other.json)) == (409, {"detail"})
