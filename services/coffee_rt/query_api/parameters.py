"""Query strings -> `ViewQuery`. Pure; every refusal names the parameter."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import msgspec

from coffee_rt.domain.times import SECONDS_MAX, format_instant, parse_instant
from coffee_rt.domain.views import Bucket, ViewDefinition
from coffee_rt.errors import Rejected
from coffee_rt.store.view_contract import ViewQuery

ROWS_DEFAULT = 1000
ROWS_MAX = 10_000
FILTER_VALUES_MAX = 100
BUCKETS_MAX = 200_000
"""Buckets a query may span: bounds what one request can make PostgreSQL read."""
SPAN_DEFAULT = "24h"

_SPAN = re.compile(r"([1-9][0-9]{0,5})(m|h|d)\Z")
_SPAN_SECONDS = {"m": 60, "h": 3600, "d": 86400}
_EPOCH_SECONDS = re.compile(r"[0-9]{1,11}\Z")

Parameters = Mapping[str, Sequence[str]]


def parse_span(text: str, place: str = "last") -> int:
    """Seconds of a span such as 90m, 2h or 30d."""
    match = _SPAN.match(text)
    if match is None:
        raise Rejected("bad-parameter", "must be like 90m, 2h or 30d", place, 400)
    return int(match[1]) * _SPAN_SECONDS[match[2]]


def parse_time(text: str, place: str) -> int:
    """Unix seconds of ISO 8601 with an offset (or Z), or of Unix seconds."""
    if _EPOCH_SECONDS.match(text):
        seconds = int(text)
    else:
        try:
            seconds = parse_instant(text, place) // 1_000_000
        except Rejected as error:
            raise Rejected("bad-parameter", error.detail, place, 400) from None
    if not 0 <= seconds <= SECONDS_MAX:
        raise Rejected("bad-parameter", "must be of the years 1970 to 9998", place, 400)
    return seconds


def parse_limit(parameters: Parameters, default: int, maximum: int, name: str = "limit") -> int:
    text = single(parameters, name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 6 or not 1 <= int(text) <= maximum:
        raise Rejected("bad-parameter", f"must be a whole number from 1 to {maximum}", name, 400)
    return int(text)


def single(parameters: Parameters, name: str) -> str | None:
    """The one value of a parameter. Raises Rejected when it is given twice."""
    values = parameters.get(name, ())
    if len(values) > 1:
        raise Rejected("bad-parameter", "must be given once", name, 400)
    return values[0] if values else None


def parse_view_query(
    definition: ViewDefinition, parameters: Parameters, tenant: int, now_seconds: int
) -> ViewQuery:
    """A read of a view between two times. Raises Rejected (400).

    The span is aligned to the buckets: it starts with the bucket that holds `from` and ends with the one
    that holds the last moment before `to`.
    """
    columns = definition.dimension_columns
    own = {"from", "to", "last", "group_by", "bucket", "order_by", "limit", "cursor", "position"}
    refuse_unknown(parameters, own | {*columns, *definition.dimensions})
    bucket, is_total = _bucket(definition, single(parameters, "bucket"))
    start, end = _span(parameters, now_seconds, (bucket or definition.bucket).seconds)
    if (end - start) // definition.bucket.seconds > BUCKETS_MAX:
        raise Rejected("bad-parameter", f"spans more than {BUCKETS_MAX} buckets", "from", 400)
    group_by = _group_by(columns, single(parameters, "group_by"))
    order_by = _order_by(definition, single(parameters, "order_by"))
    cursor = single(parameters, "cursor")
    if cursor is not None and order_by is not None:
        raise Rejected("bad-parameter", "can't be used with order_by", "cursor", 400)
    kept = columns if group_by is None else group_by
    return ViewQuery(
        view=definition.name,
        tenant=tenant,
        start=start,
        end=end,
        filters=_filters(definition, parameters, own),
        group_by=group_by,
        bucket=bucket,
        is_total=is_total,
        order_by=order_by,
        limit=parse_limit(parameters, ROWS_DEFAULT, ROWS_MAX),
        after=None if cursor is None else decode_cursor(cursor, len(kept), is_total),
    )


def top_query(
    definition: ViewDefinition,
    parameters: Parameters,
    *,
    tenant: int,
    now_seconds: int,
    by: str,
    measure: str,
    span_default: str,
    count_default: int,
) -> ViewQuery:
    """The N best values of a dimension over a span, by a measure."""
    columns = definition.dimension_columns
    own = {"from", "to", "last", "by", "measure", "n", "position"}
    refuse_unknown(parameters, own | {*columns, *definition.dimensions})
    if by not in columns:
        raise Rejected("bad-parameter", f"must be one of {', '.join(columns)}", "by", 400)
    start, end = _span(parameters, now_seconds, definition.bucket.seconds, span_default)
    if (end - start) // definition.bucket.seconds > BUCKETS_MAX:
        raise Rejected("bad-parameter", f"spans more than {BUCKETS_MAX} buckets", "from", 400)
    return ViewQuery(
        view=definition.name,
        tenant=tenant,
        start=start,
        end=end,
        filters=_filters(definition, parameters, own),
        group_by=(by,),
        is_total=True,
        order_by=_order_by(definition, measure, "measure"),
        limit=parse_limit(parameters, count_default, 100, "n"),
    )


def refuse_unknown(parameters: Parameters, known: set[str]) -> None:
    """Raises Rejected naming the first parameter that is not known, with those that are."""
    for name in parameters:
        if name not in known:
            raise Rejected(
                "unknown-parameter",
                f"is not known here; known are {', '.join(sorted(known))}",
                name,
                400,
            )


def _bucket(definition: ViewDefinition, text: str | None) -> tuple[Bucket | None, bool]:
    if text is None:
        return None, False
    if text == "total":
        return None, True
    try:
        bucket = Bucket(text)
    except ValueError:
        raise Rejected(
            "bad-parameter", "must be minute, hour, day or total", "bucket", 400
        ) from None
    if bucket.seconds < definition.bucket.seconds:
        detail = f"can't be finer than the view's own, {definition.bucket.value}"
        raise Rejected("bad-parameter", detail, "bucket", 400)
    return bucket, False


def _span(
    parameters: Parameters, now_seconds: int, bucket_seconds: int, default: str = SPAN_DEFAULT
) -> tuple[int, int]:
    since, until, last = (single(parameters, name) for name in ("from", "to", "last"))
    if last is not None and (since is not None or until is not None):
        raise Rejected("bad-parameter", "can't be used with from or to", "last", 400)
    # One bucket ahead: a till's clock may run a little fast, and its orders belong to "now" too.
    end = now_seconds + bucket_seconds if until is None else parse_time(until, "to")
    if since is None:
        start = (now_seconds if until is None else end) - parse_span(last or default)
    else:
        start = parse_time(since, "from")
    start = max(start, 0) // bucket_seconds * bucket_seconds
    end = -(-end // bucket_seconds) * bucket_seconds
    if start >= end:
        raise Rejected("bad-parameter", "must be later than from", "to", 400)
    return start, end


def _group_by(columns: tuple[str, ...], text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(name for name in text.split(",") if name)
    for name in names:
        if name not in columns or names.count(name) > 1:
            detail = f"must be some of {', '.join(columns)}, each once"
            raise Rejected("bad-parameter", detail, "group_by", 400)
    return names


def _order_by(definition: ViewDefinition, text: str | None, place: str = "order_by") -> str | None:
    names = [measure.name for measure in definition.measures]
    if text is not None and text not in names:
        raise Rejected("bad-parameter", f"must be one of {', '.join(names)}", place, 400)
    return text


def _filters(
    definition: ViewDefinition, parameters: Parameters, own: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Wanted texts by column. `attributes.limit` is filtered by its whole name: `limit` is another parameter."""
    filters = {}
    for dimension, column in zip(definition.dimensions, definition.dimension_columns, strict=True):
        names = {dimension} if column in own else {dimension, column}
        values = tuple(value for name in names for value in parameters.get(name, ()))
        if len(values) > FILTER_VALUES_MAX:
            raise Rejected("bad-parameter", f"at most {FILTER_VALUES_MAX} values", column, 400)
        if any("\x00" in value for value in values):
            raise Rejected("bad-parameter", "must not contain NUL", column, 400)
        if values:
            filters[column] = values
    return filters


def encode_cursor(key: Sequence[int | str]) -> str:
    """Text of a keyset position: where the next page begins."""
    return msgspec.json.encode(list(key)).hex()


def decode_cursor(text: str, dimensions: int, is_total: bool) -> tuple[int | str, ...]:
    """Raises Rejected when the text is no cursor of this query's shape."""
    try:
        key = msgspec.json.decode(bytes.fromhex(text), type=list[int | str])
    except (ValueError, msgspec.DecodeError):
        raise Rejected("bad-cursor", "is not a cursor this service gave", "cursor", 400) from None
    shape = [str] * dimensions if is_total else [int, *[str] * dimensions]
    if [type(part) for part in key] != shape:
        raise Rejected("bad-cursor", "belongs to another query", "cursor", 400)
    for part in key:
        # Made up: no such bucket or text was ever an answer, and PostgreSQL could not read it.
        if "\x00" in part if isinstance(part, str) else not 0 <= part <= SECONDS_MAX:
            raise Rejected("bad-cursor", "is not a cursor this service gave", "cursor", 400)
    return tuple(key)


def text_filter(parameters: Parameters, name: str) -> str | None:
    """As `single`, of a value that is compared in PostgreSQL."""
    text = single(parameters, name)
    if text is not None and "\x00" in text:
        raise Rejected("bad-parameter", "must not contain NUL", name, 400)
    return text


def utc_text(seconds: int) -> str:
    """ISO 8601 with Z of Unix seconds."""
    return format_instant(seconds * 1_000_000)
