"""The published dashboard object (`GET /api/dashboard`, WebSocket `/ws/dashboard`), made from view rows.

Pure: the processes that serve it bring the rows. The shape is a promise to existing clients; hours are
UTC and belong to today, money leaves as a float only here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from coffee_rt.domain.ids import display_number, format_id
from coffee_rt.domain.orders import Order
from coffee_rt.domain.times import format_instant
from coffee_rt.domain.views import Aggregate, Field, ViewDefinition

TOP_DRINKS = 5
TOP_DRINKS_DAYS = 30
RECENT_ORDERS = 10


def choose_view(
    definitions: Iterable[ViewDefinition], dimensions: Sequence[str], bucket_seconds_max: int
) -> ViewDefinition | None:
    """The cheapest view that has these dimensions and a bucket no coarser than asked; None without one."""
    fitting = [
        definition
        for definition in definitions
        if set(dimensions) <= set(definition.dimension_columns)
        and definition.bucket.seconds <= bucket_seconds_max
    ]
    return min(
        fitting,
        key=lambda view: (-view.bucket.seconds, len(view.dimensions), view.name),
        default=None,
    )


def measure_name(definition: ViewDefinition, aggregate: Aggregate, field: Field) -> str | None:
    """Name under which a view keeps an aggregate of a field; None when it does not."""
    for measure in definition.measures:
        if measure.aggregate is aggregate and measure.field is field:
            return measure.name
    return None


def compat_order(order: Order, decimals: int) -> dict[str, Any]:
    """An order as the published API shows it; `id` is a display number, `order_id` the true id."""
    return {
        "id": display_number(order.order_id),
        "drink": order.drink,
        "store": order.store,
        "price": order.price_minor / 10**decimals,
        "timestamp": format_instant(order.ordered_at_us),
        "order_id": format_id(order.order_id),
    }


def build_dashboard(
    *,
    now_us: int,
    decimals: int,
    hour_drinks: Sequence[Mapping[str, Any]],
    month_drinks: Sequence[Mapping[str, Any]],
    recent: Sequence[Order],
) -> dict[str, Any]:
    """The dashboard object.

    `hour_drinks` and `month_drinks` are rows {"drink", "orders", "revenue"} (minor units) of the current
    UTC hour and of the last 30 days, best first.
    """
    now = datetime.fromtimestamp(now_us / 1_000_000, UTC)
    current_hour = None
    if hour_drinks:
        current_hour = {
            "hour": now.hour,
            "date": now.date().isoformat(),
            "top_drinks": [row["drink"] for row in hour_drinks[:TOP_DRINKS]],
            "revenue": sum(int(row["revenue"]) for row in hour_drinks) / 10**decimals,
            "order_count": sum(int(row["orders"]) for row in hour_drinks),
        }
    return {
        "current_hour": current_hour,
        "top5_drinks": [row["drink"] for row in month_drinks[:TOP_DRINKS]],
        "recent_orders": [compat_order(order, decimals) for order in recent[:RECENT_ORDERS]],
        "server_timestamp": format_instant(now_us),
    }
