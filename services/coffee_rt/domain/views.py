"""Views: definitions as data, and the algebra of their deltas. No view is known by name here.

A view groups orders by tenant, a time bucket of the order's own time, and dimensions; it keeps measures.
A delta is the partial aggregate of some orders for one group. Deltas of one group merge in any order and
any grouping to the same result (count and sum add, min and max take the extreme), which is what lets
workers write them blindly and folds apply them late.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import md5
from operator import attrgetter, mul
from typing import Any

import msgspec

from coffee_rt.domain.orders import DIMENSION_BYTES_MAX, Order

LANES_DEFAULT = 8
"""Lanes of a view: the largest number of pods that can fold it at once. Fixed when it is created."""
RETENTION_DAYS_DEFAULT = 400


class Bucket(Enum):
    """Time bucket of a view, in UTC."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"

    @property
    def seconds(self) -> int:
        return {"minute": 60, "hour": 3600, "day": 86400}[self.value]


class Aggregate(Enum):
    COUNT = "count"
    SUM = "sum"
    MIN = "min"
    MAX = "max"


class Field(Enum):
    """What a measure aggregates. PRICE is the unit price, REVENUE is price x quantity; both minor units."""

    ORDERS = "orders"
    QUANTITY = "quantity"
    PRICE = "price"
    REVENUE = "revenue"

    @property
    def is_money(self) -> bool:
        return self in (Field.PRICE, Field.REVENUE)


@dataclass(frozen=True, slots=True)
class Measure:
    name: str
    aggregate: Aggregate
    field: Field


@dataclass(frozen=True, slots=True)
class ViewDefinition:
    """One maintained metric view. Immutable; equality means "maintains the same rows"."""

    name: str
    bucket: Bucket
    dimensions: tuple[str, ...]
    measures: tuple[Measure, ...]
    lanes: int = LANES_DEFAULT
    retention_days: int = RETENTION_DAYS_DEFAULT
    filter: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Only orders whose every field here has one of its values are in the view. Sorted, so that equal
    filters are equal; a field that is missing from an order is "" as it is in a dimension."""

    @property
    def dimension_columns(self) -> tuple[str, ...]:
        """SQL and JSON names of the dimensions: `attributes.channel` becomes `channel`."""
        return tuple(dimension.rpartition(".")[2] for dimension in self.dimensions)

    def to_dict(self) -> dict[str, Any]:
        """The definition as view_documents.parse_view reads it."""
        measures: dict[str, Any] = {}
        for measure in self.measures:
            is_count = measure.aggregate is Aggregate.COUNT
            measures[measure.name] = (
                "count" if is_count else {measure.aggregate.value: measure.field.value}
            )
        document = {
            "name": self.name,
            "bucket": self.bucket.value,
            "dimensions": list(self.dimensions),
            "measures": measures,
            "lanes": self.lanes,
            "retention_days": self.retention_days,
        }
        if self.filter:
            document["filter"] = {field: list(values) for field, values in self.filter}
        return document


# A group: tenant, bucket start in Unix seconds, then the dimensions' texts.
Group = tuple[Any, ...]


@dataclass(slots=True)
class Delta:
    """Partial aggregate of some orders for one group; `measures` in the definition's order."""

    group: Group
    measures: list[int]
    newest_at_us: int
    """Largest accepted_at among the orders: what freshness is computed from."""


def lane_of(group: Group, lanes: int) -> int:
    """Lane of a group. SQL computes the same (see store): md5 is the hash both sides have in every version."""
    key = "\x1f".join(map(str, group))
    return int.from_bytes(md5(key.encode(), usedforsecurity=False).digest()[:4], "big") % lanes


def group_of(definition: ViewDefinition, order: Order) -> Group:
    """The group an order belongs to. An attribute that is missing, no text or too long groups as ""."""
    seconds = definition.bucket.seconds
    bucket = order.ordered_at_us // 1_000_000 // seconds * seconds
    return (order.tenant, bucket, *(dimension_value(order, name) for name in definition.dimensions))


def dimension_value(order: Order, dimension: str) -> str:
    if dimension == "store":
        return order.store
    if dimension == "drink":
        return order.drink
    if dimension == "customer_id":
        return order.customer_id or ""
    if order.attributes is None:
        return ""
    value = msgspec.json.decode(order.attributes).get(dimension.removeprefix("attributes."))
    is_text = isinstance(value, str) and len(value.encode()) <= DIMENSION_BYTES_MAX
    return value if is_text else ""


def choose_orders(definition: ViewDefinition, orders: Sequence[Order]) -> Sequence[Order]:
    """The orders that the definition's filter lets in. SQL chooses the same (see store)."""
    for field, values in definition.filter:
        wanted = frozenset(values)
        orders = [order for order in orders if dimension_value(order, field) in wanted]
    return orders


def field_value(order: Order, field: Field) -> int:
    if field is Field.REVENUE:
        return order.price_minor * order.quantity
    if field is Field.QUANTITY:
        return order.quantity
    if field is Field.PRICE:
        return order.price_minor
    return 1


def merge_measure(aggregate: Aggregate, left: int, right: int) -> int:
    if aggregate is Aggregate.MIN:
        return min(left, right)
    if aggregate is Aggregate.MAX:
        return max(left, right)
    return left + right


def merge_deltas(definition: ViewDefinition, left: Delta, right: Delta) -> Delta:
    """Delta of the union of both sides' orders. Commutative and associative."""
    measures = [
        merge_measure(measure.aggregate, a, b)
        for measure, a, b in zip(definition.measures, left.measures, right.measures, strict=True)
    ]
    return Delta(left.group, measures, max(left.newest_at_us, right.newest_at_us))


def compute_deltas(definition: ViewDefinition, orders: Sequence[Order]) -> dict[Group, Delta]:
    """Deltas of a batch of orders, one for each group that occurs.

    Every order of the product passes here once for every view, so orders are first sorted into groups by
    what can be read without computing, and measured a group at a time; compute_deltas_simply says the same
    an order at a time.
    """
    deltas: dict[Group, Delta] = {}
    chosen = choose_orders(definition, orders)
    for group, members in _split_by_group(definition, chosen).items():
        measures = [_measure_orders(measure, members) for measure in definition.measures]
        deltas[group] = Delta(group, measures, max(map(_get_accepted_at, members)))
    return deltas


def compute_deltas_simply(
    definition: ViewDefinition, orders: Sequence[Order]
) -> dict[Group, Delta]:
    """What compute_deltas must equal: an order at a time, merged by the algebra."""
    deltas: dict[Group, Delta] = {}
    fields = [measure.field for measure in definition.measures]
    for order in choose_orders(definition, orders):
        group = group_of(definition, order)
        delta = Delta(group, [field_value(order, field) for field in fields], order.accepted_at_us)
        known = deltas.get(group)
        deltas[group] = delta if known is None else merge_deltas(definition, known, delta)
    return deltas


_get_accepted_at = attrgetter("accepted_at_us")
_get_quantity = attrgetter("quantity")
_get_price = attrgetter("price_minor")


def _split_by_group(
    definition: ViewDefinition, orders: Sequence[Order]
) -> dict[Group, list[Order]]:
    bucket_us = definition.bucket.seconds * 1_000_000
    # An attribute stays raw JSON in the first key: equal texts are decoded once, and merged below.
    fields = ["attributes" if "." in name else name for name in definition.dimensions]
    get_key = attrgetter("tenant", *fields) if fields else _tenant_only
    raw: dict[tuple[int, Any], list[Order]] = {}
    find = raw.get
    for order in orders:
        key = (order.ordered_at_us // bucket_us, get_key(order))
        members = find(key)
        if members is None:
            raw[key] = [order]
        else:
            members.append(order)
    groups: dict[Group, list[Order]] = {}
    for members in raw.values():
        groups.setdefault(group_of(definition, members[0]), []).extend(members)
    return groups


def _tenant_only(order: Order) -> int:
    return order.tenant


def _measure_orders(measure: Measure, orders: list[Order]) -> int:
    if measure.aggregate is Aggregate.COUNT:
        return len(orders)
    if measure.field is Field.QUANTITY:
        values: Iterable[int] = map(_get_quantity, orders)
    elif measure.field is Field.PRICE:
        values = map(_get_price, orders)
    else:
        values = map(mul, map(_get_price, orders), map(_get_quantity, orders))
    if measure.aggregate is Aggregate.MIN:
        return min(values)
    if measure.aggregate is Aggregate.MAX:
        return max(values)
    return sum(values)
