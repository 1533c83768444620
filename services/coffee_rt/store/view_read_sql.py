"""The SQL of reading a view, as text and arguments made from a checked query. Nothing runs here.

A query reads folded rows and unfolded deltas in ONE statement: what a fold moves between two statements
would be missed or counted twice. The unfolded ones are read from each lane's floor, up to a limit; above
it the answer is of folded rows alone and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from coffee_rt.domain.views import ViewDefinition
from coffee_rt.errors import Rejected
from coffee_rt.store.view_contract import SnapshotScope, ViewQuery
from coffee_rt.store.view_repair_sql import is_empty, tenants_sql
from coffee_rt.store.view_schema import measure_columns, merged_measure, quoted
from coffee_rt.store.view_tables import deltas_table_of, table_of

ROWS_MAX = 100_000
"""Most rows of one answer; more come in pages."""


@dataclass(slots=True)
class Arguments:
    """Values of a statement; `add` gives the placeholder of one."""

    values: list[Any] = field(default_factory=list)

    def add(self, value: Any) -> str:
        self.values.append(value)
        return f"${len(self.values)}"


def check_query(definition: ViewDefinition, query: ViewQuery) -> None:
    """Raises Rejected for what the view can't answer."""
    dimensions = definition.dimension_columns
    for name in (*query.filters, *(query.group_by or ())):
        if name not in dimensions:
            known = ", ".join(dimensions) or "none"
            raise Rejected("unknown-dimension", f"{name} is not one of: {known}", status=400)
    if query.order_by is not None and query.order_by not in measure_columns(definition):
        known = ", ".join(measure_columns(definition))
        raise Rejected("unknown-measure", f"{query.order_by} is not one of: {known}", status=400)
    if query.bucket is not None and query.bucket.seconds < definition.bucket.seconds:
        raise Rejected(
            "bucket-too-fine", f"the view keeps a row a {definition.bucket.value}", status=400
        )
    if query.after is not None:
        if query.order_by is not None:
            raise Rejected("no-pages", "a page can't follow one sorted by a measure", status=400)
        if len(query.after) != len(answer_keys(definition, query)):
            raise Rejected("bad-page", "is not a page this service gave", status=400)


def answer_keys(definition: ViewDefinition, query: ViewQuery) -> tuple[str, ...]:
    """Columns that name a row of the answer, in its order."""
    dimensions = definition.dimension_columns if query.group_by is None else query.group_by
    return dimensions if query.is_total else ("bucket", *dimensions)


def query_sql(
    definition: ViewDefinition, internal: str, query: ViewQuery, tail_max: int
) -> tuple[str, list[Any]]:
    """One row at least: columns _version, _unfolded, _newest_at, _is_row, then the answer's columns."""
    arguments = Arguments()
    keys = answer_keys(definition, query)
    names = measure_columns(definition)
    condition = _condition(query, arguments)
    selected = "".join(f"{_key(definition, name, query)}, " for name in keys)
    grouped = f"GROUP BY {', '.join(map(str, range(1, 1 + len(keys))))}" if keys else ""
    folded, merged = (_merged(definition, alias) for alias in ("s", "b"))
    unfolded = ", ".join(quoted((name,), "s.") for name in (*names, "newest_at"))
    answer = "".join(f'b."{key}", ' for key in keys)
    page = f"WHERE {_page(keys, query, arguments)}" if query.after is not None else ""
    order = ", ".join([*_first(query, "g."), *(f'g."{key}"' for key in keys)]) or "1"
    limit = arguments.add(min(query.limit, ROWS_MAX))
    sql = f"""
        WITH lane AS MATERIALIZED (
            SELECT lane, version, floor FROM view_lanes WHERE internal = '{internal}'
        ), tail AS MATERIALIZED (
            SELECT d.* FROM lane l CROSS JOIN LATERAL (
                SELECT * FROM {deltas_table_of(internal)} d
                WHERE d.lane = l.lane AND d.xid >= l.floor
            ) d LIMIT {tail_max + 1}
        ), grouped AS (
            SELECT {answer}{merged}, max(max(b.newest_at)) OVER () AS _newest_at
            FROM (
                -- Merged before they meet the few of the tail: a month has hundreds of thousands.
                SELECT {selected}{folded} FROM {table_of(internal)} s
                WHERE {condition} {grouped}
                UNION ALL
                SELECT {selected}{unfolded} FROM tail s
                WHERE {condition} AND (SELECT count(*) FROM tail) <= {tail_max}
            ) b {grouped}
        ), paged AS (
            SELECT * FROM grouped g {page} ORDER BY {order} LIMIT {limit}
        )
        SELECT (SELECT coalesce(sum(version), 0)::bigint FROM lane) AS _version,
               (SELECT count(*)::integer FROM tail) AS _unfolded,
               (SELECT g._newest_at FROM grouped g LIMIT 1) AS _newest_at,
               g._is_row, {quoted((*keys, *names), "g.")}
        FROM (SELECT) always LEFT JOIN (
            SELECT *, true AS _is_row FROM paged p WHERE NOT ({is_empty(definition, "p")})
        ) g ON true
        ORDER BY {order}
    """
    return sql, arguments.values


def _merged(definition: ViewDefinition, alias: str) -> str:
    measures = ", ".join(merged_measure(measure, alias) for measure in definition.measures)
    return f"{measures}, max({alias}.newest_at) AS newest_at"


def _key(definition: ViewDefinition, name: str, query: ViewQuery) -> str:
    """A column that names the answer's rows, of a row of the view (or a delta) `s`."""
    if name != "bucket" or query.bucket in (None, definition.bucket):
        return f's."{name}"'
    stride = f"interval '{query.bucket.seconds} seconds'"
    return f"date_bin({stride}, s.bucket, timestamptz 'epoch') AS bucket"


def _condition(query: ViewQuery, arguments: Arguments) -> str:
    """Which rows of the view (or deltas) `s` count."""
    parts = [
        f"s.tenant = {arguments.add(query.tenant)}",
        f"s.bucket >= {arguments.add(datetime.fromtimestamp(query.start, UTC))}",
        f"s.bucket < {arguments.add(datetime.fromtimestamp(query.end, UTC))}",
    ]
    for name, values in query.filters.items():
        parts.append(f's."{name}" = ANY ({arguments.add(list(values))}::text[])')
    return " AND ".join(parts)


def _page(keys: tuple[str, ...], query: ViewQuery, arguments: Arguments) -> str:
    values = [
        datetime.fromtimestamp(value, UTC) if key == "bucket" else value
        for key, value in zip(keys, query.after or (), strict=True)
    ]
    if not keys:
        return "false"
    placeholders = ", ".join(map(arguments.add, values))
    return f"({quoted(keys, 'g.')}) > ({placeholders})"


def _first(query: ViewQuery, prefix: str) -> list[str]:
    return [f'{prefix}"{query.order_by}" DESC NULLS LAST'] if query.order_by else []


def snapshot_sql(definition: ViewDefinition, internal: str) -> str:
    """Folded rows from bucket $1 on, and all lane versions, in one snapshot. Tenant by tenant through the
    primary key: a plain range of buckets would scan the whole history."""
    table = table_of(internal)
    return f"""
        WITH RECURSIVE {tenants_sql(table)}
        SELECT {_snapshot_columns(definition, internal)}
        FROM (SELECT) always LEFT JOIN (
            SELECT m.* FROM tenants t CROSS JOIN LATERAL (
                SELECT * FROM {table} m WHERE m.tenant = t.tenant AND m.bucket >= $1
            ) m
        ) m ON true
    """


def scoped_snapshot_sql(
    definition: ViewDefinition, internal: str, start: int, scope: SnapshotScope
) -> tuple[str, list[Any]]:
    """The same of one tenant, confined where it is read: the rest of a history is not even sent."""
    arguments = Arguments()
    parts = [
        f"m.tenant = {arguments.add(scope.tenant)}",
        f"m.bucket >= {arguments.add(datetime.fromtimestamp(start, UTC))}",
    ]
    for name, values in scope.filters:
        if name not in definition.dimension_columns:
            raise Rejected("unknown-dimension", f"{definition.name} has no {name}", status=404)
        parts.append(f'm."{name}" = ANY ({arguments.add(list(values))}::text[])')
    sql = f"""
        SELECT {_snapshot_columns(definition, internal)}
        FROM (SELECT) always LEFT JOIN (
            SELECT * FROM {table_of(internal)} m WHERE {" AND ".join(parts)}
            LIMIT {arguments.add(scope.rows_max)}
        ) m ON true
    """
    return sql, arguments.values


def rows_above_sql(definition: ViewDefinition, internal: str) -> str:
    """Rows of lane $2 above version $3 from bucket $1 on, and all lane versions, in one snapshot."""
    return f"""
        SELECT {_snapshot_columns(definition, internal)}
        FROM (SELECT) always LEFT JOIN {table_of(internal)} m
            ON m.bucket >= $1 AND m.lane = $2 AND m.version > $3
    """


def _snapshot_columns(definition: ViewDefinition, internal: str) -> str:
    plain = quoted((*definition.dimension_columns, *measure_columns(definition)), "m.")
    return (
        f"(SELECT array_agg(l.version ORDER BY l.lane) FROM view_lanes l"
        f" WHERE l.internal = '{internal}') AS _versions,"
        f" m.tenant, extract(epoch FROM m.bucket)::bigint AS bucket, {plain}, m.lane, m.version,"
        " floor(extract(epoch FROM m.newest_at) * 1000)::bigint AS newest_at_ms"
    )
