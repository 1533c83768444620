"""View definitions as documents: YAML or JSON, decoded -> ViewDefinition. Pure.

Every refusal is a Rejected that names its place. What passes here is safe to write into SQL as names (lower-case
letters, digits, _); the texts of a filter are not, and never become SQL.
"""

from __future__ import annotations

import re
from typing import Any

from coffee_rt.domain.orders import DIMENSION_BYTES_MAX, check_text
from coffee_rt.domain.views import (
    LANES_DEFAULT,
    RETENTION_DAYS_DEFAULT,
    Aggregate,
    Bucket,
    Field,
    Measure,
    ViewDefinition,
)
from coffee_rt.errors import Rejected

DIMENSIONS_MAX = 4
MEASURES_MAX = 12
FILTER_VALUES_MAX = 100
"""Values a filter lists for one field: each order of the product is looked up in them."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}\Z")
_ATTRIBUTE = re.compile(r"attributes\.([a-z][a-z0-9_]{0,30})\Z")
_RESERVED = frozenset(
    {"tenant", "bucket", "lane", "version", "newest_at", "xid", "rows", "from", "to"}
)
PLAIN_DIMENSIONS = ("store", "drink", "customer_id")
_KEYS = {"name", "bucket", "dimensions", "measures", "lanes", "retention_days", "filter"}


def parse_view(source: object) -> ViewDefinition:
    """A definition from a decoded YAML or JSON document. Raises Rejected naming the place.

    name: hourly
    bucket: hour
    dimensions: [store, drink]
    measures: {orders: count, quantity: {sum: quantity}, revenue: {sum: revenue}}
    filter: {drink: [latte, mocha], attributes.channel: kiosk}
    """
    document = _object(source, "")
    _only(document, _KEYS, "")
    name = _name(document.get("name"), "/name")
    try:
        bucket = Bucket(document.get("bucket"))
    except ValueError:
        raise Rejected("bad-view", "must be minute, hour or day", "/bucket") from None
    dimensions = _dimensions(document.get("dimensions", []))
    measures = _measures(document.get("measures"))
    definition = ViewDefinition(
        name=name,
        bucket=bucket,
        dimensions=dimensions,
        measures=measures,
        lanes=_integer(document.get("lanes", LANES_DEFAULT), 1, 64, "/lanes"),
        retention_days=_integer(
            document.get("retention_days", RETENTION_DAYS_DEFAULT), 2, 36_500, "/retention_days"
        ),
        filter=_filter(document.get("filter", {})),
    )
    columns = [*definition.dimension_columns, *(measure.name for measure in measures)]
    for column in columns:
        if columns.count(column) > 1:
            raise Rejected("bad-view", f"the name {column} is used twice", "/measures")
    return definition


def _object(source: object, place: str) -> dict[str, Any]:
    if not isinstance(source, dict) or not all(isinstance(key, str) for key in source):
        raise Rejected("bad-view", "must be an object", place)
    return source


def _only(document: dict[str, Any], known: set[str], place: str) -> None:
    for key in document:
        if key not in known:
            raise Rejected(
                "bad-view", f"is not known; known are {', '.join(sorted(known))}", f"{place}/{key}"
            )


def _name(source: object, place: str) -> str:
    if not isinstance(source, str) or not _NAME.match(source) or source in _RESERVED:
        raise Rejected(
            "bad-view",
            "must be a name of lower-case letters, digits and _, at most 31, not reserved",
            place,
        )
    return source


def _integer(source: object, low: int, high: int, place: str) -> int:
    if isinstance(source, bool) or not isinstance(source, int) or not low <= source <= high:
        raise Rejected("bad-view", f"must be a whole number from {low} to {high}", place)
    return source


def _dimensions(source: object) -> tuple[str, ...]:
    if not isinstance(source, list) or len(source) > DIMENSIONS_MAX:
        raise Rejected("bad-view", f"must be a list of at most {DIMENSIONS_MAX}", "/dimensions")
    for index, dimension in enumerate(source):
        known = dimension in PLAIN_DIMENSIONS or (
            isinstance(dimension, str) and _ATTRIBUTE.match(dimension)
        )
        if not known or dimension.rpartition(".")[2] in _RESERVED:
            raise Rejected(
                "bad-view",
                f"must be {', '.join(PLAIN_DIMENSIONS)} or attributes.NAME",
                f"/dimensions/{index}",
            )
    return tuple(source)


def _measures(source: object) -> tuple[Measure, ...]:
    document = _object(source, "/measures")
    if not 0 < len(document) <= MEASURES_MAX:
        raise Rejected("bad-view", f"must have 1 to {MEASURES_MAX} measures", "/measures")
    return tuple(
        _measure(_name(name, f"/measures/{name}"), what) for name, what in document.items()
    )


def _measure(name: str, what: object) -> Measure:
    if what == "count":
        return Measure(name, Aggregate.COUNT, Field.ORDERS)
    if isinstance(what, dict) and len(what) == 1:
        [(aggregate, field)] = what.items()
        if aggregate in ("sum", "min", "max") and field in ("quantity", "price", "revenue"):
            return Measure(name, Aggregate(aggregate), Field(field))
    raise Rejected(
        "bad-view", "must be count, or {sum|min|max: quantity|price|revenue}", f"/measures/{name}"
    )


def _filter(source: object) -> tuple[tuple[str, tuple[str, ...]], ...]:
    document = _object(source, "/filter")
    if len(document) > DIMENSIONS_MAX:
        raise Rejected("bad-view", f"must name at most {DIMENSIONS_MAX} fields", "/filter")
    for field in document:
        if field not in PLAIN_DIMENSIONS and not _ATTRIBUTE.match(field):
            raise Rejected(
                "bad-view",
                f"must be {', '.join(PLAIN_DIMENSIONS)} or attributes.NAME",
                f"/filter/{field}",
            )
    return tuple(
        (field, _filter_values(document[field], f"/filter/{field}")) for field in sorted(document)
    )


def _filter_values(source: object, place: str) -> tuple[str, ...]:
    """One text or a list of them, each once, sorted."""
    values = source if isinstance(source, list) else [source]
    if not 0 < len(values) <= FILTER_VALUES_MAX:
        raise Rejected("bad-view", f"must have 1 to {FILTER_VALUES_MAX} values", place)
    for index, value in enumerate(values):
        where = f"{place}/{index}" if isinstance(source, list) else place
        if not isinstance(value, str):
            raise Rejected("bad-view", "must be a text, or a list of texts", where)
        check_text(value, DIMENSION_BYTES_MAX, where, empty_ok=True)
    return tuple(sorted(set(values)))
