"""Places one order: its id, its shard, its record in the log. What HTTP says around it is left to the routes.

The shard of an order is decided by its Idempotency-Key, else by the id its client brought, else the log
chooses one: a retry must meet its own key. The key is checked and set in the same call that
appends, so this module keeps nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from coffee_rt.domain import wire
from coffee_rt.domain.ids import IdMinter, format_id
from coffee_rt.domain.intake import IncomingOrder, Intake, decode_order
from coffee_rt.domain.money import format_minor
from coffee_rt.domain.orders import Order
from coffee_rt.domain.times import format_instant
from coffee_rt.errors import Rejected
from coffee_rt.streams.contract import Append, Appended, OrderProducer, Outcome


@dataclass(frozen=True, slots=True)
class Placed:
    """An order and what the log answered. For a duplicate the id in `appended` is the first one's."""

    order: Order
    appended: Appended

    @property
    def is_duplicate(self) -> bool:
        return self.appended.outcome is Outcome.DUPLICATE


class OrderPlacer:
    """Shared by all requests of the process; holds the id minter, so one event loop only."""

    def __init__(self, producer: OrderProducer, intake: Intake) -> None:
        self.producer = producer
        self.intake = intake
        self.minter = IdMinter()

    async def place(
        self, body: bytes, tenant: int, key: bytes | None = None, trace: str = ""
    ) -> Placed:
        """One order from its JSON. Raises Rejected (409: the key or id is taken by another body),
        Overload, Retryable."""
        return await self.place_decoded(decode_order(body), body, tenant, key, trace)

    async def place_decoded(
        self,
        incoming: IncomingOrder,
        body: bytes,
        tenant: int,
        key: bytes | None,
        trace: str = "",
        intake: Intake | None = None,
    ) -> Placed:
        """As `place`, of fields read already; `body` is what stands for the request in its key's record."""
        producer = self.producer
        intake = intake or self.intake
        now_ms = producer.now_ms()
        order_id = client_id = intake.client_order_id(incoming, now_ms)
        key_hash = None
        if key is not None:
            key_hash = wire.hash_key(tenant, key)
            shard = wire.shard_of(key_hash, producer.shards)
        elif client_id is not None:
            shard = wire.shard_of_client_id(client_id, producer.shards)
        else:
            shard = producer.choose_shard()
        if order_id is None:
            order_id = self.minter.mint(now_ms, shard)
        order = intake.order(
            incoming,
            order_id,
            tenant=tenant,
            accepted_at_us=now_ms * 1000,
            body_hash=wire.hash_body(body),
            key_hash=key_hash,
        )
        appended = await producer.append(
            shard,
            Append(
                order_id,
                wire.encode_record(order),
                order.body_hash,
                key_hash,
                client_id is not None,
                tenant,
                trace,
            ),
        )
        if appended.outcome is Outcome.CONFLICT:
            raise conflict(key is not None)
        return Placed(order, appended)


def conflict(has_key: bool) -> Rejected:
    """The refusal of a key, or of a client's order id, that was used with another body."""
    if has_key:
        detail = "was used with another body"
        return Rejected("key-conflict", detail, "Idempotency-Key", status=409)
    return Rejected("order-id-conflict", "was used with another body", "/order_id", status=409)


def describe_order(order: Order, order_id: bytes, decimals: int) -> dict[str, Any]:
    """The order as it was taken: what Prefer: return=representation gives back. Absent fields are left out."""
    described: dict[str, Any] = {
        "order_id": format_id(order_id),
        "store": order.store,
        "drink": order.drink,
        "price": format_minor(order.price_minor, decimals),
        "quantity": order.quantity,
        "ordered_at": format_instant(order.ordered_at_us),
        "accepted_at": format_instant(order.accepted_at_us),
    }
    if order.customer_id is not None:
        described["customer_id"] = order.customer_id
    if order.note is not None:
        described["note"] = order.note
    if order.attributes is not None:
        described["attributes"] = msgspec.json.decode(order.attributes)
    return described
