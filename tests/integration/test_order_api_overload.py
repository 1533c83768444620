"""order_api with more than it can take: refused at once, with a time to come back, and whole again after."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from prometheus_client import REGISTRY

from coffee_rt.embedded.server_process import TEST
from coffee_rt.streams.contract import STORE_GROUP
from tests.integration.order_api_process import (
    BATCH,
    JSON,
    NDJSON,
    ORDER,
    ORDERS,
    Reply,
    RunningOrderApi,
    running_order_api,
)
from tests.log_servers import ValkeyNode, free_ports

pytestmark = pytest.mark.integration

WAIT_SECONDS_MAX = 60
CROWD = 120
TURNS_MAX = 40
"""Long turns within which a crowd three times as large is answered."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyNode]:
    """A log that this test alone may freeze or fill."""
    made = ValkeyNode(tmp_path / "own", port=free_ports(1)[0], durability=TEST)
    made.start()
    yield made
    made.stop(seconds=1)


def refusals(reason: str) -> float:
    labels = {"reason": reason}
    return REGISTRY.get_sample_value("coffee_rt_order_api_refusals_total", labels) or 0.0


def assert_refused(reply: Reply, status: int, code: str) -> None:
    assert (reply.status, reply.json["type"]) == (status, f"urn:coffee-rt:problem:{code}")
    assert int(reply.headers["retry-after"]) >= 1


async def until(
    api: RunningOrderApi,
    status: int,
    path: str = ORDERS,
    body: Any = ORDER,
    headers: dict[str, str] | None = None,
) -> Reply:
    """The first answer of this status; each of the others may be unknown or refused."""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while True:
            reply = await api.post(path, body, JSON | (headers or {}))
            if reply.status == status:
                return reply
            await asyncio.sleep(0.02)


async def test_orders_for_a_log_that_hangs_are_refused_at_once_and_taken_when_it_goes_on(
    server: ValkeyNode,
) -> None:
    async with running_order_api(server.url, "n", wait_seconds_max=0.3) as api:
        server.freeze()
        # One on each shard finds out; they hang until the log goes on.
        stuck = [
            asyncio.create_task(api.post(ORDERS, ORDER, idempotency_key=f"stuck-{n}"))
            for n in range(40)
        ]
        before = refusals("log-slow")
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while refusals("log-slow") == before:
                await api.post("/api/v1/orders?nonsense", ORDER)
                await asyncio.sleep(0.02)
        # At the door now: before the body is looked at, on each way to each route.
        assert_refused(await api.post(ORDERS, b"no order at all"), 503, "log-slow")
        assert_refused(await api.post(BATCH, b"[" * 100_000, NDJSON), 503, "log-slow")
        compat = await api.post("/api/v2/order", ORDER)
        assert (compat.status, set(compat.json)) == (503, {"detail"})
        assert (await api.request("GET", "/livez")).status == 200
        server.thaw()
        assert (await until(api, 202)).status == 202
        answered = await asyncio.gather(*stuck)
        # A shard is slow until it was fast a few times; each key is taken in the end, and is one order.
        for number in range(40):
            await until(api, 202, headers={"idempotency-key": f"stuck-{number}"})
        assert {reply.status for reply in answered} <= {202, 503}


async def test_bodies_under_way_are_bounded_in_all(
    server: ValkeyNode,
) -> None:
    async with running_order_api(server.url, "n", bodies_bytes_max=1 << 20) as api:
        head = (
            f"POST {BATCH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
            f"Content-Length: {1 << 20}\r\n\r\n"
        )
        _reader, slow_writer = await asyncio.open_connection("127.0.0.1", api.port)
        slow_writer.write(head.encode() + b" " * 1000)
        await slow_writer.drain()
        before = refusals("bodies-full")
        body = b"\n".join([b'{"store":"a","drink":"b","price":"1.00"}'] * 2000)
        refused = await until(api, 503, BATCH, body)
        assert_refused(refused, 503, "bodies-full")
        assert refusals("bodies-full") > before
        # Small ones need none of that room.
        assert (await api.post(ORDERS, ORDER)).status == 202
        slow_writer.close()
        assert (await api.post(ORDERS, ORDER)).status == 202
        reply = await until_taken(api, body)
        assert reply.json["accepted"] == 2000


async def until_taken(api: RunningOrderApi, body: bytes) -> Reply:
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while True:
            reply = await api.post(BATCH, body, NDJSON)
            if reply.status == 202:
                return reply
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("limits", "status", "code"),
    [
        ({"undelivered_records_max": 500}, 429, "backlog"),
        ({"backlog_bytes_max": 100_000}, 503, "log-bytes"),
    ],
)
async def test_producers_faster_than_the_workers_are_told_to_wait_before_redis_is_full(
    server: ValkeyNode, limits: dict[str, Any], status: int, code: str
) -> None:
    async with running_order_api(server.url, "n", **limits) as api:
        keeper = api.log.keeper()
        await keeper.ensure_group(STORE_GROUP)
        accepted = 0
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while (reply := await api.post(BATCH, [ORDER] * 200)).status == 202:
                accepted += reply.json["accepted"]
                await asyncio.sleep(0.02)
        assert_refused(reply, status, code)
        assert server.ask("INFO", "memory")["used_memory"] < (64 << 20)
        # A worker catches up: delivered, acknowledged, trimmed.
        reader = api.log.reader(STORE_GROUP, "w")
        stored = 0
        for shard in range(api.settings.shards):
            entries = await reader.read(shard, 10_000, 0.01)
            stored += sum(entry.records for entry in entries)
            await reader.acknowledge(shard, entries)
            await keeper.trim(shard, 0)
        assert stored == accepted
        assert (await until(api, 202)).status == 202
        await reader.leave()
        await keeper.close()


def test_behind_long_turns_those_not_yet_accepted_are_told_to_come_again(
    server: ValkeyNode,
) -> None:
    """On the loop that processes run on: a turn of it accepts one of them, so that without a look at their queue the
    last would wait for 120 turns."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_visit_behind_long_turns(server))


async def _visit_behind_long_turns(server: ValkeyNode) -> None:
    async with running_order_api(server.url, "n") as api:
        assert (await api.post(ORDERS, ORDER)).status == 202
        before = refusals("overloaded")

        def visit(number: int) -> tuple[int, str | None]:
            connection = HTTPConnection("127.0.0.1", api.port, timeout=WAIT_SECONDS_MAX)
            if number % 20 == 0:
                connection.request("GET", "/livez")
            else:
                connection.request("POST", ORDERS, body, JSON)
            answer = connection.getresponse()
            answer.read()
            connection.close()
            return answer.status, answer.headers["retry-after"]

        body = msgspec.json.encode(ORDER)
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(CROWD) as crowd:
            visits = [loop.run_in_executor(crowd, visit, number) for number in range(CROWD)]
            turns = 0
            while not all(one.done() for one in visits) and turns < TURNS_MAX:
                turns += 1
                # What a crowd of orders does to the loop.
                time.sleep(0.3)  # noqa: ASYNC251
                await asyncio.sleep(0)
            assert turns < TURNS_MAX
            answers = [one.result() for one in visits]
        assert {status for status, _ in answers[::20]} == {200}
        assert {status for status, _ in answers} <= {200, 202, 503}
        refused = [after for status, after in answers if status == 503]
        assert len(refused) > CROWD / 2
        assert all(after and int(after) >= 1 for after in refused)
        assert refusals("overloaded") - before == len(refused)
        assert (await until(api, 202)).status == 202
