"""The order routes of the published coffee-rt: its body, its answers' keys, FastAPI's error shape.

There v1 answers when the row is written, so here it waits for `stored`; v2 and v3 answer when the order is in
the log. Keys are only ever added to its answers. Its ids are integers: ours there is display_number, a number
for lists, with the true order_id beside it. Its body may hold more fields than it knows, and a time without
offset counts as UTC.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from coffee_rt.domain.ids import display_number, format_id
from coffee_rt.domain.intake import IncomingOrder, Intake
from coffee_rt.domain.json_text import check_encoding, check_no_duplicates, reject_decode
from coffee_rt.domain.money import format_minor
from coffee_rt.domain.problems import Problem
from coffee_rt.domain.times import format_instant
from coffee_rt.errors import CoffeeRtError, Rejected
from coffee_rt.order_api.acks import Ack, Acks
from coffee_rt.order_api.hot import Exchange, HotRoute
from coffee_rt.order_api.http_exchange import (
    Answer,
    encode_headers,
    idempotency_key,
    read_body,
)
from coffee_rt.order_api.metrics import Tally
from coffee_rt.order_api.placing import OrderPlacer, Placed
from coffee_rt.order_api.settings import OrderApiSettings

_JSON = (b"content-type", b"application/json")
_encode = msgspec.json.Encoder().encode


class CompatOrder(msgspec.Struct, frozen=True):
    """The published body; unknown fields are passed over, as there."""

    drink: str
    store: str
    price: msgspec.Raw
    timestamp: str
    quantity: int | None = None


_decode = msgspec.json.Decoder(CompatOrder).decode


class CompatRoutes:
    """`routes` by path, for HotApp."""

    def __init__(
        self,
        settings: OrderApiSettings,
        placer: OrderPlacer,
        intake: Intake,
        acks: Acks,
        tally: Tally,
    ) -> None:
        self._settings = settings
        self._placer = placer
        self._intake = intake
        self._acks = acks
        self._tally = tally

    def routes(self) -> dict[str, HotRoute]:
        v1 = HotRoute("compat_v1", self._post_stored, refuse)
        v2 = HotRoute("compat_v2", partial(self._post_logged, version="v2"), refuse)
        v3 = HotRoute("compat_v3", partial(self._post_logged, version="v3"), refuse)
        return {
            "/api/order": v1,
            "/api/v1/order": v1,
            "/api/v2/order": v2,
            "/api/v3/order": v3,
        }

    async def _place(self, exchange: Exchange) -> Placed:
        key = idempotency_key(exchange.head)
        body = await read_body(exchange.head, exchange.request, self._settings.order_bytes_max)
        tenant = exchange.visit.principal.tenant
        try:
            incoming = _read(body)
            placed = await self._placer.place_decoded(
                incoming, body, tenant, key, intake=self._intake
            )
        except Rejected as error:
            self._tally.took("conflict" if error.status == 409 else "rejected")
            raise
        self._tally.took("duplicate" if placed.is_duplicate else "new")
        return placed

    async def _post_stored(self, exchange: Exchange) -> Answer:
        placed = await self._place(exchange)
        order, appended = placed.order, placed.appended
        seconds = self._settings.ack_wait_seconds_default
        ack = await self._acks.wait_for_one(
            appended.order_id, appended.position, Ack.STORED, seconds
        )
        return _answer(
            {
                "id": display_number(appended.order_id),
                "drink": order.drink,
                "store": order.store,
                "price": float(format_minor(order.price_minor, self._settings.currency_decimals)),
                "timestamp": format_instant(order.ordered_at_us),
                "order_id": format_id(appended.order_id),
                "quantity": order.quantity,
                "ack": ack,
            }
        )

    async def _post_logged(self, exchange: Exchange, version: str) -> Answer:
        placed = await self._place(exchange)
        return _answer(
            {
                "status": "accepted",
                "version": version,
                "stream": "orders:stream",
                "message_id": format_id(placed.appended.order_id),
                "position": str(placed.appended.position),
                "duplicate": placed.is_duplicate,
            }
        )


def _read(body: bytes) -> IncomingOrder:
    try:
        sent = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        check_encoding(body)
        reject_decode(error)
    check_no_duplicates(body)
    return IncomingOrder(
        sent.store, sent.drink, sent.price, sent.quantity, timestamp=sent.timestamp
    )


def _answer(body: dict[str, Any]) -> Answer:
    return Answer(200, _encode(body), [_JSON])


def refuse(problem: Problem, error: CoffeeRtError) -> Answer:
    """FastAPI's shapes: a list of details for a body that can't be taken, else one text."""
    detail: Any = problem.detail
    status = problem.status
    if isinstance(error, Rejected) and (status == 422 or error.code in _BODY_CODES):
        status = 422
        is_missing = error.code == "missing-field"
        detail = [
            {
                "type": "missing" if is_missing else error.code.replace("-", "_"),
                "loc": ["body", *(part for part in error.place.split("/") if part)],
                "msg": "Field required" if is_missing else error.detail,
            }
        ]
    headers = [_JSON, *encode_headers(problem.headers)]
    return Answer(status, _encode({"detail": detail}), headers)


_BODY_CODES = frozenset({"bad-json", "bad-encoding", "too-deep"})
"""Faults of the JSON itself, which FastAPI answers with 422 too."""
