"""POST /api/v1/orders and /api/v1/orders/batch: from a request let in to its answer."""

from __future__ import annotations

from urllib.parse import parse_qsl

import msgspec

from coffee_rt.domain.ids import format_id
from coffee_rt.errors import Rejected
from coffee_rt.order_api.acks import Ack, Acks
from coffee_rt.order_api.batch import BatchPlacer, BatchResult
from coffee_rt.order_api.hot import Exchange, Head
from coffee_rt.order_api.http_exchange import (
    Answer,
    content_kind,
    idempotency_key,
    read_body,
)
from coffee_rt.order_api.metrics import Tally
from coffee_rt.order_api.placing import OrderPlacer, Placed, describe_order
from coffee_rt.order_api.settings import OrderApiSettings
from coffee_rt.order_api.splitting import split_array, split_lines
from coffee_rt.runtime import tracing

ORDERS_PATH = "/api/v1/orders"
BATCH_PATH = "/api/v1/orders/batch"
RECENT_PATH = "/api/v1/orders/recent"
"""query_api's list of orders under a path of its own."""

_SINGLE_TYPES = {b"application/json": "object"}
_BATCH_TYPES = {
    b"application/json": "array",
    b"application/x-ndjson": "lines",
    b"application/ndjson": "lines",
    b"application/jsonl": "lines",
}
_JSON = (b"content-type", b"application/json")
_LOGGED = (Ack.LOGGED, 0.0)
_PARAMETERS = frozenset({"ack", "wait_ms"})
_encode = msgspec.json.Encoder().encode


class AckWish:
    """Reads `?ack=` and `?wait_ms=`."""

    def __init__(self, settings: OrderApiSettings) -> None:
        self._default_seconds = settings.ack_wait_seconds_default
        self._seconds_max = settings.ack_wait_seconds_max

    def read(self, query: bytes) -> tuple[Ack, float]:
        """(level, seconds to wait). Raises Rejected for anything else in the query."""
        if not query:
            return _LOGGED
        ack, seconds = Ack.LOGGED, min(self._default_seconds, self._seconds_max)
        given: set[str] = set()
        for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
            if name not in _PARAMETERS:
                detail = "is not a parameter of this route"
                raise Rejected("unknown-parameter", detail, name[:100], status=400)
            if name in given:
                raise Rejected("repeated-parameter", "must be given once", name, status=400)
            given.add(name)
            if name == "ack":
                ack = Ack.parse(value)
            elif value.isascii() and value.isdigit() and len(value) <= 9:
                seconds = min(int(value) / 1000, self._seconds_max)
            else:
                detail = "must be a whole number of milliseconds"
                raise Rejected("bad-wait", detail, "wait_ms", status=400)
        return ack, seconds


class OrderRoutes:
    """The two routes of the order API proper."""

    def __init__(
        self,
        settings: OrderApiSettings,
        placer: OrderPlacer,
        batches: BatchPlacer,
        acks: Acks,
        tally: Tally,
    ) -> None:
        self._settings = settings
        self._placer = placer
        self._batches = batches
        self._acks = acks
        self._tally = tally
        self._wish = AckWish(settings)
        self._level = _level(settings)

    async def post_order(self, exchange: Exchange) -> Answer:
        head, tally = exchange.head, self._tally
        content_kind(head, _SINGLE_TYPES)
        key = idempotency_key(head)
        wanted, wait_seconds = self._wish.read(exchange.request.query)
        body = await read_body(head, exchange.request, self._settings.order_bytes_max)
        tenant = exchange.visit.principal.tenant
        try:
            placed = await self._placer.place(body, tenant, key, _trace(head))
        except Rejected as error:
            tally.took("conflict" if error.status == 409 else "rejected")
            raise
        tally.took("duplicate" if placed.is_duplicate else "new")
        label = "logged"
        if wanted is not Ack.LOGGED:
            label = await self._wait(placed, wanted, wait_seconds)
        return self._answer(placed, label, b"prefer" in head and _prefers(head, "representation"))

    async def _wait(self, placed: Placed, wanted: Ack, wait_seconds: float) -> str:
        appended = placed.appended
        return await self._acks.wait_for_one(
            appended.order_id, appended.position, wanted, wait_seconds
        )

    def _answer(self, placed: Placed, label: str, is_described: bool) -> Answer:
        appended = placed.appended
        order_id = format_id(appended.order_id)
        duplicate = "true" if placed.is_duplicate else "false"
        body = (
            f'{{"order_id":"{order_id}","position":"{appended.position}","ack":"{label}",'
            f'"replicas":{appended.replicas}{self._level},"duplicate":{duplicate}}}'
        ).encode()
        headers = [_JSON, (b"location", f"{ORDERS_PATH}/{order_id}".encode())]
        if is_described:
            described = describe_order(
                placed.order, appended.order_id, self._settings.currency_decimals
            )
            body = body[:-1] + b',"order":' + _encode(described) + b"}"
            headers.append((b"preference-applied", b"return=representation"))
        return Answer(202, body, headers)

    async def post_batch(self, exchange: Exchange) -> Answer:
        head, settings = exchange.head, self._settings
        kind = content_kind(head, _BATCH_TYPES)
        key = idempotency_key(head)
        wanted, wait_seconds = self._wish.read(exchange.request.query)
        body = await read_body(head, exchange.request, settings.batch_bytes_max)
        if kind == "lines":
            records = split_lines(body, settings.batch_records_max)
        else:
            records = split_array(body, settings.batch_records_max, settings.order_bytes_max)
        if not records:
            raise Rejected("empty-batch", "The batch has no records.")
        tenant = exchange.visit.principal.tenant
        parent = tracing.extract(_trace(head))
        with tracing.span("order_api.batch", parent=parent, records=len(records)):
            result = await self._batches.place(records, tenant, key, tracing.inject())
        self._count(result)
        if result.last_error is not None and not result.accepted and not result.rejected:
            raise result.last_error
        label = "logged"
        if wanted is not Ack.LOGGED and result.positions:
            label = (await self._acks.wait(result.positions, wanted, wait_seconds)).label
            result.mark_dead(self._acks.dead_ids(result.positions))
        is_minimal = b"prefer" in head and _prefers(head, "minimal")
        return _batch_answer(result, label, self._level, is_minimal)

    def _count(self, result: BatchResult) -> None:
        for outcome, count in (
            ("new", result.new),
            ("duplicate", result.duplicates),
            ("rejected", result.rejected),
            ("failed", result.failed),
        ):
            if count:
                self._tally.took(outcome, count)


def _level(settings: OrderApiSettings) -> str:
    """What the replicas counted in an answer have done with the order; nothing where none are waited for."""
    return f',"replicas_level":"{settings.replicas_level}"' if settings.replicas_min else ""


def _batch_answer(result: BatchResult, label: str, level: str, is_minimal: bool) -> Answer:
    """The envelope; with Prefer: return=minimal only the records that were not accepted are listed."""
    results = result.results
    headers = [_JSON]
    if is_minimal:
        results = [text for text in results if not _is_accepted(text)]
        headers.append((b"preference-applied", b"return=minimal"))
    head = (
        f'{{"accepted":{result.accepted},"rejected":{result.rejected},"failed":{result.failed},'
        f'"duplicates":{result.duplicates},"ack":"{label}",'
        f'"replicas":{result.replicas}{level},"results":['
    )
    return Answer(202, b"%b%b]}" % (head.encode(), b",".join(results)), headers)


def _is_accepted(result: bytes) -> bool:
    return b'"status":202' in result[:40] and not result.endswith(b'"ack":"dead-letter"}')


def _prefers(head: Head, what: str) -> bool:
    text = head[b"prefer"].decode("latin-1").lower().replace(" ", "")
    return any(part.partition(";")[0] == f"return={what}" for part in text.split(","))


def _trace(head: Head) -> str:
    """The caller's trace context, where traces are on."""
    if not tracing.is_enabled():
        return ""
    return head.get(b"traceparent", b"").decode("latin-1")[:64]
