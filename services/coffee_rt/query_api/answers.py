"""Store rows -> JSON answers. Pure: money becomes exact decimal text, instants ISO 8601 in UTC."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from coffee_rt.domain.ids import format_id
from coffee_rt.domain.money import format_minor
from coffee_rt.domain.orders import Order
from coffee_rt.domain.times import format_instant
from coffee_rt.domain.views import ViewDefinition
from coffee_rt.domain.wire import decode_record
from coffee_rt.errors import Rejected
from coffee_rt.query_api.parameters import encode_cursor, utc_text
from coffee_rt.store.contract import DeadLetter
from coffee_rt.store.view_contract import ViewAnswer, ViewQuery, ViewState


def view_rows(
    definition: ViewDefinition, rows: Sequence[Mapping[str, Any]], decimals: int
) -> list[dict[str, Any]]:
    """Rows as clients read them, columns in the definition's order."""
    money = {measure.name for measure in definition.measures if measure.field.is_money}
    measures = [measure.name for measure in definition.measures]
    columns = definition.dimension_columns
    answer = []
    for row in rows:
        shown: dict[str, Any] = {}
        if "bucket" in row:
            shown["bucket"] = utc_text(row["bucket"])
        shown.update((column, row[column]) for column in columns if column in row)
        for name in measures:
            value = row[name]
            is_money = name in money and value is not None
            shown[name] = format_minor(int(value), decimals) if is_money else value
        answer.append(shown)
    return answer


def next_cursor(query: ViewQuery, definition: ViewDefinition, answer: ViewAnswer) -> str | None:
    """Where the next page begins; None after the last one, and for rankings, which have no pages."""
    if query.order_by is not None or len(answer.rows) < query.limit:
        return None
    last = answer.rows[-1]
    kept = definition.dimension_columns if query.group_by is None else query.group_by
    key = [] if query.is_total else [last["bucket"]]
    return encode_cursor([*key, *(last[name] for name in kept)])


def view_page(
    query: ViewQuery, definition: ViewDefinition, answer: ViewAnswer, decimals: int
) -> dict[str, Any]:
    return {
        "view": definition.name,
        "from": utc_text(query.start),
        "to": utc_text(query.end),
        "bucket": "total" if query.is_total else (query.bucket or definition.bucket).value,
        "rows": view_rows(definition, answer.rows, decimals),
        "next": next_cursor(query, definition, answer),
    }


def order_body(order: Order, decimals: int) -> dict[str, Any]:
    """One order with exact money."""
    return {
        "order_id": format_id(order.order_id),
        "store": order.store,
        "drink": order.drink,
        "price": format_minor(order.price_minor, decimals),
        "quantity": order.quantity,
        "revenue": format_minor(order.revenue_minor, decimals),
        "ordered_at": format_instant(order.ordered_at_us),
        "accepted_at": format_instant(order.accepted_at_us),
        "customer_id": order.customer_id,
        "note": order.note,
        "attributes": None if order.attributes is None else msgspec.json.decode(order.attributes),
    }


def dead_letter_body(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter; `raw` is the record's bytes as hex, since they may be no text at all."""
    return {
        "id": letter.id,
        "order_id": None if letter.order_id is None else format_id(letter.order_id),
        "shard": letter.shard,
        "entry": f"{letter.entry[0]}-{letter.entry[1]}",
        "index": letter.index,
        "code": letter.code,
        "detail": letter.detail,
        "raw": letter.raw.hex(),
        "created_at": format_instant(letter.created_at_us),
    }


def whole_letter_body(letter: DeadLetter, decimals: int) -> dict[str, Any]:
    """A dead letter with all that is known of it. Its bytes are whatever somebody wrote into the log, hence
    base64; `order` is what they say, where they say an order, and `amended` what a redrive sends instead."""
    body = dead_letter_body(letter)
    del body["raw"]
    amended = None
    if letter.amended is not None and letter.amended_at_us is not None:
        amended = {
            "order": record_body(letter.amended, decimals),
            "by": letter.amended_by,
            "at": format_instant(letter.amended_at_us),
        }
    is_sent = letter.redriven_at_us is not None
    return body | {
        "batch_id": format_id(letter.batch_id),
        "raw_base64": b64encode(letter.raw).decode(),
        "order": record_body(letter.raw, decimals),
        "amended": amended,
        "redrive": letter.redrive,
        "outcome": letter.outcome,
        "redriven_at": format_instant(letter.redriven_at_us or 0) if is_sent else None,
    }


def record_body(record: bytes, decimals: int) -> dict[str, Any] | None:
    """The order of a record that may break any rule; None where it can't be shown as one."""
    try:
        order = decode_record(record)
        return order_body(order, decimals) if len(order.order_id) == 16 else None
    except (Rejected, msgspec.DecodeError, RecursionError, ValueError, OverflowError):
        return None


def view_description(state: ViewState) -> dict[str, Any]:
    """A view as the list of views shows it."""
    backfilled_to = state.backfilled_to
    return state.definition.to_dict() | {
        "is_live": state.is_live,
        "backfilled_to": None if backfilled_to is None else utc_text(backfilled_to),
        "epoch": state.epoch,
    }
