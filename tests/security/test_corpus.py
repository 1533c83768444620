"""The corpus of bad orders through every way orders come in: refused, told why and where, nothing kept of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from yarl import URL

from tests.integration.order_api_process import (
    BATCH,
    NDJSON,
    ORDERS,
    Reply,
    RunningOrderApi,
    running_order_api,
)
from tests.integration.test_query_api import served
from tests.security.corpus import BAD, BAD_QUERIES, GOOD, Bad

pytestmark = pytest.mark.integration

TYPE = "urn:coffee-rt:problem:"


@pytest.fixture
async def api(valkey_url: str, redis_namespace: str) -> AsyncIterator[RunningOrderApi]:
    async with running_order_api(
        valkey_url, redis_namespace, ack_wait_seconds_default=0.01
    ) as running:
        yield running


def told(problem: dict[str, Any]) -> tuple[int, str, str]:
    errors = problem.get("errors") or [{}]
    code = problem.get("type", "").removeprefix(TYPE)
    return problem.get("status", 202), code, errors[0].get("place", "")


async def still_takes_good_ones(api: RunningOrderApi, logged: int) -> None:
    """Exactly so many orders came into the log; then one more does."""
    assert len(await api.logged()) == logged
    assert (await api.post(ORDERS, GOOD)).status == 202
    assert len(await api.logged()) == 1


async def test_alone(api: RunningOrderApi) -> None:
    wrong = []
    for bad in BAD:
        reply = await api.post(ORDERS, bad.text)
        expected = (bad.status, bad.code, bad.place) if bad.is_small else (413, "too-large", "")
        if told(reply.json) != expected or reply.status != expected[0]:
            wrong.append((bad.name, told(reply.json), expected))
        assert reply.headers["content-type"] == "application/problem+json"
    assert not wrong, "\n".join(map(str, wrong))
    await still_takes_good_ones(api, 0)


@pytest.mark.parametrize("kind", ["array", "lines"])
async def test_among_good_ones_of_a_batch(api: RunningOrderApi, kind: str) -> None:
    wrong, taken = [], 0
    for bad in BAD:
        whole = bad.array if kind == "array" else None
        reply = await sent_among_good_ones(api, bad, kind)
        if whole is not None:
            is_right = (reply.status, told(reply.json)[1]) == (400, whole)
        else:
            is_right = is_refused_alone(reply, bad)
            taken += 2
        if not is_right:
            wrong.append((bad.name, reply.status, reply.body[:400]))
    assert not wrong, "\n".join(map(str, wrong))
    await still_takes_good_ones(api, taken)


async def sent_among_good_ones(api: RunningOrderApi, bad: Bad, kind: str) -> Reply:
    if kind == "array":
        return await api.post(BATCH, b"[" + b",".join([GOOD, bad.text, GOOD]) + b"]")
    return await api.post(BATCH, b"\n".join([GOOD, bad.text, GOOD]), NDJSON)


def is_refused_alone(reply: Reply, bad: Bad) -> bool:
    if reply.status != 202:
        return False
    first, second, third = reply.json["results"]
    expected = (bad.status, bad.code, bad.place) if bad.is_small else (413, "too-large", "")
    return (
        (reply.json["accepted"], reply.json["rejected"]) == (2, 1)
        and (first["status"], second["status"], third["status"]) == (202, expected[0], 202)
        and told(second["problem"]) == (expected[0], expected[1], f"/1{expected[2]}")
    )


@pytest.mark.parametrize("path", ["/api/order", "/api/v2/order", "/api/v3/order"])
async def test_through_the_older_routes(api: RunningOrderApi, path: str) -> None:
    wrong, taken = [], 0
    for bad in BAD:
        reply = await api.post(path, bad.text)
        if bad.compat == "" and bad.is_small:
            taken += reply.status == 200
            is_right = reply.status == 200
        elif not bad.is_small:
            is_right = reply.status == 413
        else:
            code = (bad.compat or bad.code).replace("-", "_")
            kind = "missing" if code == "missing_field" else code
            where = ["body", *filter(None, bad.place.split("/"))]
            [detail] = reply.json.get("detail", [{}])
            is_right = (reply.status, detail.get("type"), detail.get("loc")) == (422, kind, where)
        if not is_right:
            wrong.append((bad.name, reply.status, reply.body[:300]))
    assert not wrong, "\n".join(map(str, wrong))
    await still_takes_good_ones(api, taken)


async def test_as_questions(database_url: str, valkey_url: str, redis_namespace: str) -> None:
    wrong = []
    async with served(database_url, valkey_url, redis_namespace) as platform:
        for query, place in BAD_QUERIES:
            url = URL(f"{platform.address}/api/v1/views/hourly?{query}", encoded=True)
            async with platform.session.get(url) as reply:
                status, _, where = told(await reply.json(content_type=None))
                if (reply.status, status, where) != (400, 400, place):
                    wrong.append((query[:60], reply.status, await reply.text()))
        assert not wrong, "\n".join(map(str, wrong))
        await platform.get("/api/v1/views/hourly")


async def test_in_bodies_of_another_length_than_they_say(api: RunningOrderApi) -> None:
    head = b"POST /api/v1/orders HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    for length in (b"-1", b"+5", b"0x10", b"1e2", b"9" * 30, b"5, 5"):
        reply = await api.raw(head + b"content-length: %b\r\n\r\n%b" % (length, GOOD), 1.0)
        assert reply.startswith(b"HTTP/1.1 4"), length
    for more in (
        # What is left over is no request: the connection ends, maybe before the answer is written.
        b"content-length: %d\r\n" % (len(GOOD) - 1),
        b"transfer-encoding: chunked\r\ncontent-length: %d\r\n" % len(GOOD),
        b"transfer-encoding: chunked, identity\r\n",
        b"transfer-encoding: xchunked\r\n",
    ):
        reply = await api.raw(head + more + b"\r\n" + GOOD, 1.0)
        assert not reply.startswith(b"HTTP/1.1 2"), more
    await still_takes_good_ones(api, 0)
