"""order_api over real HTTP and a real Valkey: orders, keys, batches, and every kind of bad input."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest
import pytest_asyncio
import zstandard

from coffee_rt.domain.ids import IdMinter, format_id, id_shard, parse_id
from coffee_rt.streams.contract import Position
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

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def api(valkey_url: str, redis_namespace: str) -> AsyncIterator[RunningOrderApi]:
    async with running_order_api(
        valkey_url, redis_namespace, header_seconds_max=0.5, body_seconds_max=0.5
    ) as running:
        yield running


def assert_problem(reply: Reply, status: int, code: str, place: str | None = None) -> None:
    assert reply.status == status, reply.body
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json["type"] == f"urn:coffee-rt:problem:{code}"
    assert reply.json["status"] == status
    assert reply.json["title"]
    assert reply.json["detail"]
    if place is not None:
        assert reply.json["errors"][0]["place"] == place


def lines(*records: Any) -> bytes:
    return b"\n".join(json.dumps(record).encode() for record in records)


async def test_an_order_is_answered_when_it_is_in_the_log(api: RunningOrderApi) -> None:
    reply = await api.post(ORDERS, ORDER | {"quantity": 2})
    assert reply.status == 202
    answer = reply.json
    assert set(answer) == {"order_id", "position", "ack", "replicas", "duplicate"}
    assert (answer["ack"], answer["duplicate"]) == ("logged", False)
    assert reply.headers["location"] == f"{ORDERS}/{answer['order_id']}"
    position = Position.parse(answer["position"])
    assert id_shard(parse_id(answer["order_id"])) == position.shard
    [order] = await api.logged()
    assert format_id(order.order_id) == answer["order_id"]
    assert (order.price_minor, order.quantity, order.tenant) == (450, 2, 0)


async def test_prefer_representation_gives_the_order_back(api: RunningOrderApi) -> None:
    reply = await api.post(
        ORDERS, ORDER | {"note": "hot", "attributes": {"a": [1]}}, prefer="return=representation"
    )
    order = reply.json["order"]
    assert reply.headers["preference-applied"] == "return=representation"
    assert (order["price"], order["quantity"], order["note"]) == ("4.50", 1, "hot")
    assert order["attributes"] == {"a": [1]}
    assert order["order_id"] == reply.json["order_id"]
    assert datetime.fromisoformat(order["accepted_at"]).tzinfo == UTC


async def test_same_key_and_body_is_answered_with_the_first_order(api: RunningOrderApi) -> None:
    first = await api.post(ORDERS, ORDER, idempotency_key="till-1")
    again = await api.post(ORDERS, ORDER, idempotency_key="till-1")
    assert (first.json["duplicate"], again.json["duplicate"]) == (False, True)
    assert first.json["order_id"] == again.json["order_id"]
    assert first.json["position"] == again.json["position"]
    assert len(await api.logged()) == 1


async def test_same_key_with_another_body_is_a_conflict(api: RunningOrderApi) -> None:
    assert (await api.post(ORDERS, ORDER, idempotency_key="k")).status == 202
    other = await api.post(ORDERS, ORDER | {"quantity": 2}, idempotency_key="k")
    assert_problem(other, 409, "key-conflict", "Idempotency-Key")
    assert len(await api.logged()) == 1


async def test_concurrent_retries_of_one_key_log_one_order(api: RunningOrderApi) -> None:
    replies = await asyncio.gather(
        *(api.post(ORDERS, ORDER, idempotency_key="k") for _ in range(40))
    )
    assert {reply.status for reply in replies} == {202}
    assert len({reply.json["order_id"] for reply in replies}) == 1
    assert sum(not reply.json["duplicate"] for reply in replies) == 1
    assert len(await api.logged()) == 1


async def test_a_clients_own_order_id_is_unique_and_safe_to_repeat(api: RunningOrderApi) -> None:
    own = format_id(IdMinter().mint(int(datetime.now(UTC).timestamp() * 1000)))
    first = await api.post(ORDERS, ORDER | {"order_id": own})
    again = await api.post(ORDERS, ORDER | {"order_id": own})
    other = await api.post(ORDERS, ORDER | {"order_id": own, "price": "9"})
    assert first.json["order_id"] == again.json["order_id"] == own
    assert again.json["duplicate"]
    assert_problem(other, 409, "order-id-conflict", "/order_id")


@pytest.mark.parametrize(
    ("key", "is_taken"),
    [("a", True), ("~" * 255, True), ("!", True), ("", False), ("a" * 256, False), ("a b", False),
     ("a" * 10_000, False), ("ä", False)],
)  # fmt: skip
async def test_keys_are_visible_ascii_of_bounded_length(
    api: RunningOrderApi, key: str, is_taken: bool
) -> None:
    body = json.dumps(ORDER).encode()
    received = await api.raw(
        b"POST /api/v1/orders HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"connection: close\r\nidempotency-key: %b\r\ncontent-length: %d\r\n\r\n%b"
        % (key.encode(), len(body), body)
    )
    assert received.startswith(b"HTTP/1.1 202" if is_taken else b"HTTP/1.1 400")
    assert is_taken or b"bad-idempotency-key" in received


async def test_a_key_with_line_breaks_or_sent_twice_is_refused(api: RunningOrderApi) -> None:
    head = b"POST /api/v1/orders HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    for keys in (b"idempotency-key: a\rb\r\n", b"idempotency-key: a\r\nidempotency-key: b\r\n"):
        received = await api.raw(head + keys + b"content-length: 2\r\nconnection: close\r\n\r\n{}")
        assert received.startswith(b"HTTP/1.1 400")
    assert await api.logged() == []


@pytest.mark.parametrize(
    ("body", "status", "code", "place"),
    [
        (b'{"store":"a","drink":"b","price":NaN}', 400, "bad-json", None),
        (b'{"store":"a","drink":"b","price":1e400}', 422, "bad-price", "/price"),
        (b'{"store":"a","drink":"b","price":-0}', 422, "bad-price", "/price"),
        (b'{"store":"a\\u0000","drink":"b","price":1}', 422, "bad-text", "/store"),
        (b'{"store":"a","drink":"b","price":1,"quantity":0}', 422, "bad-quantity", "/quantity"),
        (b'{"store":"a","store":"a","drink":"b","price":1}', 422, "duplicate-key", "/store"),
        (b'{"store":"a","drink":"b","price":1,"size":1}', 422, "unknown-field", "/size"),
        (b'{"store":"a","drink":"b","price":1}}', 400, "bad-json", None),
        (b"\xef\xbb\xbf{}", 400, "bad-encoding", None),
        ("{}".encode("utf-16"), 400, "bad-encoding", None),
        (b'{"attributes":' + b'{"a":' * 9_000 + b"1" + b"}" * 9_001, 400, "too-deep", None),
        (b'{"store":"a","drink":"b","price":' + b"1" * 50_000 + b"}", 422, "bad-price", "/price"),
        (b"", 400, "bad-json", None),
        (b"null", 422, "wrong-type", None),
        (b'{"store":"' + b"x" * 1_000_000 + b'"}', 413, "too-large", None),
    ],
)
async def test_a_bad_order_is_refused_with_its_place_and_not_logged(
    api: RunningOrderApi, body: bytes, status: int, code: str, place: str | None
) -> None:
    assert_problem(await api.post(ORDERS, body), status, code, place)
    assert await api.logged() == []


@pytest.mark.parametrize("kind", [None, "text/plain", "application/json; charset=latin-1", ""])
async def test_another_content_type_is_refused(api: RunningOrderApi, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    assert_problem(await api.post(ORDERS, ORDER, headers), 415, "wrong-content-type")
    assert_problem(await api.post(BATCH, [ORDER], headers), 415, "wrong-content-type")


async def test_content_types_with_parameters_are_taken(api: RunningOrderApi) -> None:
    kind = {"content-type": "Application/JSON; charset=UTF-8"}
    assert (await api.post(ORDERS, ORDER, kind)).status == 202


@pytest.mark.parametrize(
    ("query", "code"),
    [("ack=now", "bad-ack"), ("wait_ms=-1", "bad-wait"), ("wait_ms=1e3", "bad-wait"),
     ("akc=stored", "unknown-parameter"), ("ack=stored&ack=logged", "repeated-parameter"),
     ("wait_ms=1&wait_ms=1", "repeated-parameter")],
)  # fmt: skip
async def test_bad_parameters_are_refused(api: RunningOrderApi, query: str, code: str) -> None:
    assert_problem(await api.post(f"{ORDERS}?{query}", ORDER), 400, code)


async def test_one_bad_record_of_a_batch_costs_only_itself(api: RunningOrderApi) -> None:
    reply = await api.post(BATCH, [ORDER, ORDER | {"price": "0"}, 7, ORDER])
    assert reply.status == 202
    envelope = reply.json
    assert (envelope["accepted"], envelope["rejected"], envelope["failed"]) == (2, 2, 0)
    assert [result["index"] for result in envelope["results"]] == [0, 1, 2, 3]
    assert [result["status"] for result in envelope["results"]] == [202, 422, 422, 202]
    assert envelope["results"][1]["problem"]["errors"][0]["place"] == "/1/price"
    assert envelope["results"][2]["problem"]["errors"][0]["place"] == "/2"
    assert len(await api.logged()) == 2


async def test_ndjson_takes_the_same_records(api: RunningOrderApi) -> None:
    body = lines(ORDER, ORDER | {"store": ""}, ORDER).replace(b"\n", b"\r\n", 1) + b"\n\n"
    envelope = (await api.post(BATCH, body + b"{oops\n", NDJSON)).json
    assert [result["status"] for result in envelope["results"]] == [202, 422, 202, 400]
    assert envelope["results"][3]["problem"]["errors"][0]["place"] == "/3"
    assert len(await api.logged()) == 2


async def test_a_batch_repeated_under_its_key_logs_nothing_twice(api: RunningOrderApi) -> None:
    batch = [ORDER | {"quantity": n} for n in range(1, 301)]
    first = (await api.post(BATCH, batch, idempotency_key="day-1")).json
    again = (await api.post(BATCH, batch, idempotency_key="day-1")).json
    assert (first["accepted"], first["duplicates"]) == (300, 0)
    assert (again["accepted"], again["duplicates"]) == (300, 300)
    ids = [[result["order_id"] for result in answer["results"]] for answer in (first, again)]
    assert ids[0] == ids[1]
    assert len(await api.logged()) == 300
    other = [ORDER | {"quantity": 999}, *batch[1:]]
    conflict = (await api.post(BATCH, other, idempotency_key="day-1")).json
    assert (conflict["accepted"], conflict["rejected"]) == (299, 1)
    assert conflict["results"][0]["status"] == 409


async def test_records_of_a_batch_may_bring_their_own_ids(api: RunningOrderApi) -> None:
    own = format_id(IdMinter().mint(int(datetime.now(UTC).timestamp() * 1000)))
    batch = [ORDER | {"order_id": own}, ORDER, ORDER | {"order_id": own}]
    envelope = (await api.post(BATCH, batch)).json
    assert [result.get("duplicate") for result in envelope["results"]] == [False, False, True]
    assert len(await api.logged()) == 2


async def test_return_minimal_lists_only_what_was_not_taken(api: RunningOrderApi) -> None:
    reply = await api.post(BATCH, [ORDER, ORDER | {"price": 0}], prefer="return=minimal")
    assert reply.json["accepted"] == 1
    assert [result["index"] for result in reply.json["results"]] == [1]


async def test_a_large_batch_spreads_over_shards_and_is_whole(api: RunningOrderApi) -> None:
    batch = lines(*([ORDER] * 9_000))
    envelope = (await api.post(BATCH, batch, NDJSON)).json
    assert (envelope["accepted"], len(envelope["results"])) == (9_000, 9_000)
    assert len({result["order_id"] for result in envelope["results"]}) == 9_000
    shards = {Position.parse(result["position"]).shard for result in envelope["results"]}
    # Not always all four: a slice joins what a shard gathers at that moment.
    assert len(shards) > 1
    assert len(await api.logged()) == 9_000


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"[]", JSON, 422, "empty-batch"),
        (b"\n\n", NDJSON, 422, "empty-batch"),
        (b"", NDJSON, 422, "empty-batch"),
        (b"{}", JSON, 422, "wrong-type"),
        (b"[{}", JSON, 400, "bad-json"),
        (b"[" * 100_000, JSON, 400, "too-deep"),
        (b"{}\n" * 100_000, NDJSON, 413, "too-many-records"),
        (b"[" + b"{}," * 99_999 + b"{}]", JSON, 413, "too-many-records"),
        ('{"store":"x"}'.encode("utf-16"), NDJSON, 400, "bad-encoding"),
    ],
)
async def test_a_batch_that_is_none_is_refused_whole(
    api: RunningOrderApi, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    assert_problem(await api.post(BATCH, body, headers), status, code)
    assert await api.logged() == []


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "identity"])
async def test_packed_bodies_are_taken(api: RunningOrderApi, encoding: str) -> None:
    plain = lines(*([ORDER] * 3000))
    packed = {
        "gzip": gzip.compress(plain[: len(plain) // 2]) + gzip.compress(plain[len(plain) // 2 :]),
        "zstd": zstandard.compress(plain),
        "identity": plain,
    }[encoding]
    reply = await api.post(BATCH, packed, NDJSON, content_encoding=encoding)
    assert reply.json["accepted"] == 3000


@pytest.fixture(scope="module")
def bombs() -> dict[str, bytes]:
    """Made before there is a process in the same loop, which would take the while for overload."""
    zeros = b"0" * (64 << 20)
    return {"gzip": gzip.compress(zeros, 9), "zstd": zstandard.compress(zeros)}


async def test_bombs_and_broken_packings_are_refused(
    bombs: dict[str, bytes], api: RunningOrderApi
) -> None:
    assert len(bombs["gzip"]) < 100_000
    for encoding, bomb in bombs.items():
        assert_problem(
            await api.post(BATCH, bomb, NDJSON, content_encoding=encoding), 413, "too-large"
        )
        assert_problem(await api.post(ORDERS, bomb, content_encoding=encoding), 413, "too-large")
        for broken in (bomb[:50], b"plain", bomb[:10] + b"x" * 50):
            assert_problem(
                await api.post(BATCH, broken, NDJSON, content_encoding=encoding),
                400,
                "bad-encoding",
            )
    reply = await api.post(BATCH, zlib.compress(b"{}"), NDJSON, content_encoding="deflate")
    assert_problem(reply, 415, "wrong-content-encoding")


async def test_http_that_is_none_is_refused(api: RunningOrderApi) -> None:
    post = b"POST /api/v1/orders HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    chunked = b"transfer-encoding: chunked\r\n"
    for head in (
        post + b"content-length: 5\r\n" + chunked + b"\r\n0\r\n\r\n",
        post + b"content-length: 5\r\ncontent-length: 6\r\n\r\n{}",
        post + b"content-length: -1\r\n\r\n{}",
        b"GARBAGE\r\n\r\n",
    ):
        received = await api.raw(head)
        assert received.startswith(b"HTTP/1.1 400"), head
        assert b"urn:coffee-rt:problem:bad-http" in received
    assert await api.logged() == []


async def test_a_head_too_large_or_too_slow_is_refused(api: RunningOrderApi) -> None:
    post = b"POST /api/v1/orders HTTP/1.1\r\nhost: x\r\n"
    for head in (
        post + b"x-long: " + b"a" * 65_536 + b"\r\n\r\n",
        post + b"x-long: " + b"a" * 65_536,
    ):
        assert (await api.raw(head)).startswith(b"HTTP/1.1 431")
    received = await api.raw(post + b"x-slow: ")
    assert received.startswith(b"HTTP/1.1 408")
    assert b"head-too-slow" in received
    assert (await api.raw(b"")).startswith(b"HTTP/1.1 408")


async def test_a_body_too_slow_or_too_short_is_refused(api: RunningOrderApi) -> None:
    post = b"POST /api/v1/orders HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    for rest in (b"content-length: 50\r\n\r\n{", b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n"):
        received = await api.raw(post + rest)
        assert received.startswith(b"HTTP/1.1 408")
        assert b"body-too-slow" in received
    assert await api.logged() == []


async def test_chunked_pipelined_and_expecting_clients_are_served(api: RunningOrderApi) -> None:
    body = json.dumps(ORDER).encode()
    head = b"POST /api/v1/orders HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    sized = head + b"content-length: %d\r\n\r\n%b" % (len(body), body)
    chunked = head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    last = sized.replace(b"host: x", b"host: x\r\nconnection: close")
    received = await api.raw(sized + chunked + sized + last)
    assert received.count(b"HTTP/1.1 202") == 4
    assert len(await api.logged()) == 4
    expecting = head + b"connection: close\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n"
    received = await api.raw(expecting % len(body) + body)
    assert received.startswith(b"HTTP/1.1 100")
    assert b"HTTP/1.1 202" in received


async def test_a_read_of_orders_is_sent_to_where_they_are_listed(api: RunningOrderApi) -> None:
    """An Ingress gives a path to one process whatever the method."""
    asked = b"GET /api/v1/orders?limit=5 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    received = await api.raw(asked)
    assert received.startswith(b"HTTP/1.1 307")
    assert b"location: /api/v1/orders/recent?limit=5\r\n" in received.lower()


async def test_other_methods_and_paths_are_problems(api: RunningOrderApi) -> None:
    reply = await api.request("PUT", ORDERS, ORDER)
    assert_problem(reply, 405, "method-not-allowed")
    assert reply.headers["allow"] == "GET, HEAD, POST"
    assert_problem(await api.request("GET", f"{ORDERS}/batch"), 405, "method-not-allowed")
    assert_problem(await api.request("GET", "/nowhere"), 404, "not-found")


async def test_health_and_metrics_answer(api: RunningOrderApi) -> None:
    await api.post(ORDERS, ORDER)
    assert (await api.request("GET", "/livez")).json == {"status": "ok"}
    ready = await api.request("GET", "/readyz")
    assert ready.status == 200
    assert set(ready.json["components"]) >= {"log", "clock"}
    async with asyncio.timeout(5):
        while True:
            text = (await api.request("GET", "/metrics")).body
            if b'coffee_rt_order_api_requests_total{route="order",status="202"}' in text:
                break
            await asyncio.sleep(0.05)


async def test_the_openapi_document_is_valid_and_describes_the_hot_routes(
    api: RunningOrderApi,
) -> None:
    document = (await api.request("GET", f"{ORDERS}/openapi.json")).json
    assert document["openapi"].startswith("3.1")
    assert {ORDERS, BATCH, "/api/order", "/api/v3/order"} <= set(document["paths"])
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)

    def check(value: Any, name: str) -> None:
        root = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
        jsonschema.Draft202012Validator(root).validate(value)

    full = ORDER | {"price": 4.5, "quantity": 2, "note": None, "attributes": {"a": 1}}
    for order in (ORDER, full):
        check(order, "IncomingOrder")
    reply = await api.post(ORDERS, full, prefer="return=representation")
    check(reply.json, "Accepted")
    check((await api.post(BATCH, [ORDER, {}])).json, "BatchAccepted")
    check((await api.post(ORDERS, {})).json, "ProblemBody")
    references = json.dumps(document["paths"]).split("#/components/schemas/")[1:]
    assert {part.split('"')[0] for part in references} <= set(schemas)
