"""The SQL of recomputation, as text made from a definition. Nothing runs here.

All spans are [$1, $2) of buckets; [$3, $4) are the ids of the on-time orders of that span (order_rows.id_range),
the late ones have an index of their own. From $5 on come the values of the view's filter (filter_values).
"""

from __future__ import annotations

from coffee_rt.domain.views import ViewDefinition
from coffee_rt.store.order_rows import ON_TIME_SECONDS
from coffee_rt.store.view_schema import (
    computed_dimension,
    computed_lane,
    computed_measure,
    empty_measure,
    key_columns,
    measure_columns,
    merged_measure,
    quoted,
)
from coffee_rt.store.view_tables import deltas_table_of, table_of

_ID_SECONDS = "('x' || substr(replace(o.order_id::text, '-', ''), 1, 12))::bit(48)::bigint / 1000"


def chunks_sql(internal: str, seconds: int) -> str:
    """Starts of the chunks that may hold orders or rows, oldest first."""

    def start_of(instant: str) -> str:
        return f"floor(extract(epoch FROM {instant}) / {seconds})::bigint * {seconds}"

    margin = ON_TIME_SECONDS + 1
    return f"""
        WITH ends AS (
            SELECT (SELECT {_ID_SECONDS} FROM orders o ORDER BY o.order_id LIMIT 1) AS low,
                   (SELECT {_ID_SECONDS} FROM orders o ORDER BY o.order_id DESC LIMIT 1) AS high
        )
        SELECT DISTINCT start FROM (
            SELECT {start_of("m.bucket")} AS start FROM {table_of(internal)} m
            UNION ALL
            SELECT {start_of("o.ordered_at")} FROM orders o WHERE o.is_late
            UNION ALL
            SELECT generate_series((e.low - {margin}) / {seconds} * {seconds},
                                   e.high + {margin}, {seconds}::bigint)
            FROM ends e WHERE e.low IS NOT NULL
        ) s ORDER BY start
    """


def rebuild_sql(definition: ViewDefinition, internal: str) -> str:
    """Replace the rows of a span by what its orders say; how many rows changed. The caller holds the lanes.

    Groups whose orders vanished are emptied, not deleted: whoever watches must be told of them.
    """
    keys, names = key_columns(definition), measure_columns(definition)
    lane = computed_lane(definition, "f")
    updates = ", ".join(f'"{name}" = excluded."{name}"' for name in names)
    emptied = ", ".join(
        f'"{measure.name}" = {empty_measure(measure)}' for measure in definition.measures
    )
    return f"""
        WITH dropped AS (
            DELETE FROM {deltas_table_of(internal)} d USING view_lanes l
            WHERE l.internal = '{internal}' AND d.lane = l.lane AND d.xid >= l.floor
              AND d.bucket >= $1 AND d.bucket < $2
        ), fresh AS MATERIALIZED ({_fresh(definition)}
        ), written AS (
            INSERT INTO {table_of(internal)} AS m
                (lane, version, {quoted(keys)}, {quoted(names)}, newest_at)
            SELECT l.lane, l.version + 1, {quoted(keys, "f.")}, {quoted(names, "f.")}, f.newest_at
            FROM fresh f JOIN view_lanes l ON l.internal = '{internal}' AND l.lane = {lane}
            ON CONFLICT ({quoted(keys)}) DO UPDATE
            SET version = excluded.version, {updates}, newest_at = excluded.newest_at
            WHERE ({quoted(names, "m.")}, m.newest_at)
                IS DISTINCT FROM ({quoted(names, "excluded.")}, excluded.newest_at)
            RETURNING m.lane
        ), emptied AS (
            UPDATE {table_of(internal)} m SET version = l.version + 1, {emptied}
            FROM view_lanes l
            WHERE l.internal = '{internal}' AND l.lane = m.lane
              AND m.bucket >= $1 AND m.bucket < $2 AND NOT ({is_empty(definition, "m")})
              AND NOT EXISTS (SELECT FROM fresh f WHERE {_same(keys, "f", "m")})
            RETURNING m.lane
        ), changed AS (
            SELECT lane FROM written UNION ALL SELECT lane FROM emptied
        ), raised AS (
            UPDATE view_lanes l SET version = l.version + 1
            WHERE l.internal = '{internal}' AND l.lane IN (SELECT lane FROM changed)
        )
        SELECT count(*) FROM changed
    """


def audit_sql(definition: ViewDefinition, internal: str, limit: int) -> str:
    """Groups of a span where folded and unfolded together differ from the orders, in one snapshot."""
    keys, names = key_columns(definition), measure_columns(definition)
    merged = ", ".join(merged_measure(measure, "b") for measure in definition.measures)
    columns = f"{quoted(keys)}, {quoted(names)}"
    stored = ", ".join(f'k."{name}" AS "stored_{name}"' for name in names)
    computed = ", ".join(f'f."{name}" AS "computed_{name}"' for name in names)
    return f"""
        WITH fresh AS MATERIALIZED ({_fresh(definition)}
        ), kept AS (
            SELECT {quoted(keys, "b.")}, {merged} FROM (
                SELECT {columns} FROM {table_of(internal)} m
                WHERE m.bucket >= $1 AND m.bucket < $2
                UNION ALL
                SELECT {quoted((*keys, *names), "d.")}
                FROM view_lanes l JOIN {deltas_table_of(internal)} d
                    ON d.lane = l.lane AND d.xid >= l.floor
                WHERE l.internal = '{internal}' AND d.bucket >= $1 AND d.bucket < $2
            ) b GROUP BY {quoted(keys, "b.")}
        )
        SELECT {quoted(keys)}, k.tenant IS NOT NULL AS is_stored, f.tenant IS NOT NULL AS is_computed,
               {stored}, {computed}
        FROM (SELECT * FROM kept k WHERE NOT ({is_empty(definition, "k")})) k
        FULL JOIN fresh f USING ({quoted(keys)})
        WHERE ROW({quoted(names, "k.")}) IS DISTINCT FROM ROW({quoted(names, "f.")})
        ORDER BY {quoted(keys)} LIMIT {limit}
    """


def expire_sql(internal: str, limit: int) -> str:
    """Delete rows past $1 days. Tenant by tenant through the primary key: a plain range of buckets would
    scan the whole history."""
    table = table_of(internal)
    return f"""
        WITH RECURSIVE {tenants_sql(table)}
        DELETE FROM {table} WHERE ctid = ANY (ARRAY(
            SELECT m.ctid FROM tenants t JOIN {table} m ON m.tenant = t.tenant
                AND m.bucket < now() - make_interval(days => $1)
            LIMIT {limit}))
    """


def tenants_sql(table: str) -> str:
    """The tenants that have rows, by a few probes of the primary key: the CTE `tenants` of a WITH RECURSIVE."""
    return f"""tenants AS (
            (SELECT tenant FROM {table} ORDER BY tenant LIMIT 1)
            UNION ALL
            SELECT (SELECT m.tenant FROM {table} m WHERE m.tenant > t.tenant
                    ORDER BY m.tenant LIMIT 1)
            FROM tenants t WHERE t.tenant IS NOT NULL
        )"""


def is_empty(definition: ViewDefinition, alias: str) -> str:
    """Whether a row counts nothing."""
    return " AND ".join(
        f'coalesce({alias}."{measure.name}", 0) = 0' for measure in definition.measures
    )


def _same(keys: tuple[str, ...], left: str, right: str) -> str:
    return " AND ".join(f'{left}."{key}" = {right}."{key}"' for key in keys)


def _fresh(definition: ViewDefinition) -> str:
    """Rows of the span as its orders say."""
    dimensions = "".join(
        f', {computed_dimension(dimension)} AS "{column}"'
        for dimension, column in zip(
            definition.dimensions, definition.dimension_columns, strict=True
        )
    )
    measures = ", ".join(map(computed_measure, definition.measures))
    group = ", ".join(map(str, range(1, 3 + len(definition.dimensions))))
    stride = f"interval '{definition.bucket.seconds} seconds'"
    return f"""
            SELECT o.tenant, date_bin({stride}, o.ordered_at, timestamptz 'epoch') AS bucket
                   {dimensions}, {measures}, max(o.accepted_at) AS newest_at
            FROM (
                SELECT * FROM orders WHERE NOT is_late AND order_id >= $3 AND order_id < $4
                    AND ordered_at >= $1 AND ordered_at < $2
                UNION ALL
                SELECT * FROM orders WHERE is_late AND ordered_at >= $1 AND ordered_at < $2
            ) o {_chosen(definition)} GROUP BY {group}"""


def filter_values(definition: ViewDefinition) -> list[list[str]]:
    """The parameters of `_chosen`: texts of a definition never become SQL."""
    return [list(values) for _, values in definition.filter]


def _chosen(definition: ViewDefinition) -> str:
    """domain.views.choose_orders as a condition on orders `o`."""
    conditions = [
        f"{computed_dimension(field)} = ANY (${number}::text[])"
        for number, (field, _) in enumerate(definition.filter, start=5)
    ]
    return f"WHERE {' AND '.join(conditions)}" if conditions else ""
