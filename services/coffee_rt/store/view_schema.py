"""The SQL that one view consists of: its tables and its fold functions. Pure text; nothing runs here.

Internal names and columns come from checked definitions (lower-case letters, digits, _), so they are
safe to write into SQL; columns are quoted because `order` or `user` are good names for a measure too.
Names of our own inside functions start with _ : no column of a definition can.
"""

from __future__ import annotations

from collections.abc import Iterable

from coffee_rt.domain.views import Aggregate, Field, Measure, ViewDefinition
from coffee_rt.store.view_tables import deltas_table_of, table_of

_FIELD_SQL = {
    Field.ORDERS: "1",
    Field.QUANTITY: "o.quantity::bigint",
    Field.PRICE: "o.price_minor",
    Field.REVENUE: "o.price_minor::numeric * o.quantity",
}


def quoted(names: Iterable[str], prefix: str = "") -> str:
    """Columns for SQL: `p."a", p."b"`."""
    return ", ".join(f'{prefix}"{name}"' for name in names)


def key_columns(definition: ViewDefinition) -> tuple[str, ...]:
    """Columns of a group, in the order of domain.views.Group."""
    return ("tenant", "bucket", *definition.dimension_columns)


def measure_columns(definition: ViewDefinition) -> tuple[str, ...]:
    return tuple(measure.name for measure in definition.measures)


def row_columns(definition: ViewDefinition) -> tuple[str, ...]:
    """Columns of a row as it is published, in the order of `row_json`."""
    last = ("lane", "version", "newest_at_ms")
    return (*key_columns(definition), *measure_columns(definition), *last)


def row_json(definition: ViewDefinition, alias: str) -> str:
    """A view row as a JSON array: instants as Unix seconds, newest_at in milliseconds."""
    columns = quoted((*definition.dimension_columns, *measure_columns(definition)), f"{alias}.")
    return (
        f"json_build_array({alias}.tenant, extract(epoch FROM {alias}.bucket)::bigint, {columns},"
        f" {alias}.lane, {alias}.version, floor(extract(epoch FROM {alias}.newest_at) * 1000)::bigint)"
    )


def merged_measure(measure: Measure, alias: str) -> str:
    """The aggregate that merges partial values of a measure."""
    name = f'{alias}."{measure.name}"'
    function = {Aggregate.MIN: "min", Aggregate.MAX: "max"}.get(measure.aggregate, "sum")
    cast = "::bigint" if measure.aggregate is Aggregate.COUNT else ""
    return f'{function}({name}){cast} AS "{measure.name}"'


def computed_measure(measure: Measure) -> str:
    """A measure over rows of orders `o`: domain.views.field_value, aggregated."""
    if measure.aggregate is Aggregate.COUNT:
        return f'count(*) AS "{measure.name}"'
    return f'{measure.aggregate.value}({_FIELD_SQL[measure.field]}) AS "{measure.name}"'


def computed_dimension(dimension: str) -> str:
    """A dimension of orders `o`: domain.views.dimension_value."""
    if dimension == "customer_id":
        return "coalesce(o.customer_id, '')"
    if dimension.startswith("attributes."):
        return f"view_attribute(o.attributes, '{dimension.removeprefix('attributes.')}')"
    return f"o.{dimension}"


def computed_lane(definition: ViewDefinition, alias: str) -> str:
    """Lane of a row that has the key columns: domain.views.lane_of."""
    dimensions = "".join(f', {alias}."{name}"' for name in definition.dimension_columns)
    key = f"concat_ws(chr(31), {alias}.tenant, extract(epoch FROM {alias}.bucket)::bigint{dimensions})"
    return f"view_lane({key}, {definition.lanes})"


def empty_measure(measure: Measure) -> str:
    """Value of a measure in a row whose orders all vanished: nothing can be the least of nothing."""
    return "NULL" if measure.aggregate in (Aggregate.MIN, Aggregate.MAX) else "0"


def create_view(definition: ViewDefinition, internal: str) -> list[str]:
    """Statements that make a view's tables and functions."""
    return [*_tables(definition, internal), *_functions(definition, internal)]


def retain_view(definition: ViewDefinition, internal: str) -> str:
    """The statement that gives a view another retention: the only part of it that knows the days."""
    return _apply_function(definition, internal)


def drop_view(internal: str) -> list[str]:
    return [
        f"DROP FUNCTION mv_{internal}_fold, mv_{internal}_quarantine, mv_{internal}_part,"
        f" mv_{internal}_apply",
        f"DROP TABLE {table_of(internal)}, {deltas_table_of(internal)}",
    ]


def _tables(definition: ViewDefinition, internal: str) -> list[str]:
    types = {Aggregate.SUM: "numeric NOT NULL", Aggregate.COUNT: "bigint NOT NULL"}
    dimensions = [f'"{name}" text COLLATE "C" NOT NULL' for name in definition.dimension_columns]
    measures = [
        f'"{measure.name}" {types.get(measure.aggregate, "bigint")}'
        for measure in definition.measures
    ]
    group = ["tenant integer NOT NULL", "bucket timestamptz NOT NULL", *dimensions]
    columns = ",\n    ".join([*group, *measures, "newest_at timestamptz NOT NULL"])
    key = quoted(key_columns(definition))
    table, deltas = table_of(internal), deltas_table_of(internal)
    return [
        f"CREATE TABLE {table} (\n    lane smallint NOT NULL,\n    version bigint NOT NULL,\n"
        f"    {columns},\n    PRIMARY KEY ({key})\n) WITH (fillfactor = 90)",
        # Query: rows of a lane changed after a version, to repair a gap.
        f"CREATE INDEX {table}_version ON {table} (lane, version)",
        # vacuum_truncate takes an exclusive lock that commits would wait for.
        f"CREATE TABLE {deltas} (\n    lane smallint NOT NULL,\n"
        f"    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),\n    {columns}\n) WITH ("
        "vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0,"
        " autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_threshold = -1,"
        " autovacuum_analyze_threshold = 1000000)",
        # Query: the unfolded deltas of a lane, from its floor.
        f"CREATE INDEX {deltas}_unfolded ON {deltas} (lane, xid)",
    ]


def _functions(definition: ViewDefinition, internal: str) -> list[str]:
    return [
        _apply_function(definition, internal),
        f"CREATE FUNCTION mv_{internal}_fold(_lanes smallint[], _deltas_max integer,"
        f" _rows_max integer) RETURNS TABLE (_lane smallint, _previous bigint,"
        f" _folded_version bigint, _floor text, _is_drained boolean, {_APPLIED}) {_LANGUAGE}\nAS $$\n"
        f"{_fold(internal)}$$",
        f"CREATE FUNCTION mv_{internal}_part(_ids tid[])"
        f" RETURNS integer {_LANGUAGE}\nAS $$\n{_part(internal)}$$",
        f"CREATE FUNCTION mv_{internal}_quarantine(_lane smallint, _deltas_max integer)"
        f" RETURNS integer {_LANGUAGE}\nAS $$\n{_quarantine(internal)}$$",
    ]


def _apply_function(definition: ViewDefinition, internal: str) -> str:
    return (
        f"CREATE OR REPLACE FUNCTION mv_{internal}_apply(_ids tid[], _rows_max integer)"
        f" RETURNS TABLE (_lane smallint, {_APPLIED}) {_LANGUAGE}\nAS $$\n"
        f"{_apply(definition, internal)}$$"
    )


# Custom plans, which the pool asks for elsewhere, would plan every fold anew.
_LANGUAGE = "LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan"
_APPLIED = "_folded integer, _expired integer, _changed integer, _newest_at timestamptz, _rows text"


def _apply(definition: ViewDefinition, internal: str) -> str:
    """Move the given deltas into the view; a row for each of their lanes. The caller holds those lanes and
    raises their versions afterwards."""
    key = quoted(key_columns(definition))
    merged = ", ".join(merged_measure(measure, "g") for measure in definition.measures)
    names = quoted(measure_columns(definition))
    updates = ", ".join(_merged_row(measure) for measure in definition.measures)
    return f"""
BEGIN
    RETURN QUERY
    WITH gone AS (
        DELETE FROM {deltas_table_of(internal)} d WHERE d.ctid = ANY (_ids)
        -- A bucket past the view's retention would only be removed again.
        RETURNING d.*, d.bucket < now() - interval '{definition.retention_days} days' AS _is_expired
    ), merged AS (
        SELECT g.lane, {quoted(key_columns(definition), "g.")}, {merged},
               max(g.newest_at) AS newest_at
        FROM gone g WHERE NOT g._is_expired
        GROUP BY g.lane, {quoted(key_columns(definition), "g.")}
    ), changed AS (
        INSERT INTO {table_of(internal)} AS m (lane, version, {key}, {names}, newest_at)
        SELECT g.lane, l.version + 1, {quoted(key_columns(definition), "g.")},
               {quoted(measure_columns(definition), "g.")}, g.newest_at
        FROM merged g JOIN view_lanes l ON l.internal = '{internal}' AND l.lane = g.lane
        ON CONFLICT ({key}) DO UPDATE SET version = excluded.version, {updates},
            newest_at = greatest(m.newest_at, excluded.newest_at)
        RETURNING m.*
    ), told AS (
        -- Rows nobody will be sent are not put into words.
        SELECT c.lane, count(*)::integer AS rows, max(c.newest_at) AS newest_at,
               json_agg({row_json(definition, "c")}) FILTER (WHERE c._of_lane <= _rows_max) AS texts
        FROM (SELECT *, count(*) OVER (PARTITION BY lane) AS _of_lane FROM changed) c
        GROUP BY c.lane
    ), taken AS (
        SELECT g.lane, count(*)::integer AS deltas,
               (count(*) FILTER (WHERE g._is_expired))::integer AS expired
        FROM gone g GROUP BY g.lane
    )
    SELECT t.lane, t.deltas, t.expired, coalesce(c.rows, 0), c.newest_at, c.texts::text
    FROM taken t LEFT JOIN told c ON c.lane = t.lane;
END
"""


def _merged_row(measure: Measure) -> str:
    name = f'"{measure.name}"'
    if measure.aggregate in (Aggregate.MIN, Aggregate.MAX):
        function = "least" if measure.aggregate is Aggregate.MIN else "greatest"
        return f"{name} = {function}(m.{name}, excluded.{name})"
    return f"{name} = m.{name} + excluded.{name}"


def _fold(internal: str) -> str:
    """One fold of several lanes; those another holds are left out. Each statement has a snapshot of its
    own: the locks come before the one that picks."""
    return f"""
DECLARE
    _held smallint[];
    _floors xid8[];
    _xmin xid8;
    _ids tid[];
BEGIN
    SELECT array_agg(l.lane), array_agg(l.floor) INTO _held, _floors FROM (
        SELECT lane, floor FROM view_lanes
        WHERE internal = '{internal}' AND lane = ANY (_lanes) FOR UPDATE SKIP LOCKED
    ) l;
    IF _held IS NULL THEN
        RETURN;
    END IF;
    -- A transaction below the xmin of the very snapshot that picks is over: all it wrote is seen here.
    SELECT pg_snapshot_xmin(pg_current_snapshot()), ARRAY(
        SELECT d.ctid FROM unnest(_held, _floors) AS l (lane, floor) CROSS JOIN LATERAL (
            SELECT d.ctid FROM {deltas_table_of(internal)} d
            WHERE d.lane = l.lane AND d.xid >= l.floor ORDER BY d.xid LIMIT _deltas_max
        ) d
    ) INTO _xmin, _ids;
    IF cardinality(_ids) = 0 THEN
        RETURN;
    END IF;
    RETURN QUERY
    UPDATE view_lanes l
    SET version = l.version + (a._changed > 0)::integer,
        -- Raised only when nothing below it is left behind.
        floor = CASE WHEN a._folded < _deltas_max THEN _xmin ELSE l.floor END
    FROM mv_{internal}_apply(_ids, _rows_max) a
    WHERE l.internal = '{internal}' AND l.lane = a._lane
    RETURNING l.lane, l.version - (a._changed > 0)::integer, l.version, l.floor::text,
        a._folded < _deltas_max, a._folded, a._expired, a._changed, a._newest_at, a._rows;
END
"""


def _part(internal: str) -> str:
    """Apply deltas, or halve them until the ones that can't be applied are alone; how many those were."""
    deltas = deltas_table_of(internal)
    return f"""
DECLARE
    _half integer := cardinality(_ids) / 2;
    _code text;
    _detail text;
BEGIN
    BEGIN
        PERFORM mv_{internal}_apply(_ids, 0);
        RETURN 0;
    EXCEPTION WHEN data_exception OR program_limit_exceeded OR not_null_violation
                OR check_violation THEN
        GET STACKED DIAGNOSTICS _code = RETURNED_SQLSTATE, _detail = MESSAGE_TEXT;
    END;
    IF _half = 0 THEN
        INSERT INTO fold_dead_letters (internal, lane, delta, code, detail)
        SELECT '{internal}', d.lane, to_jsonb(d), _code, _detail
        FROM {deltas} d WHERE d.ctid = ANY (_ids);
        DELETE FROM {deltas} d WHERE d.ctid = ANY (_ids);
        RETURN 1;
    END IF;
    RETURN mv_{internal}_part(_ids[:_half]) + mv_{internal}_part(_ids[_half + 1:]);
END
"""


def _quarantine(internal: str) -> str:
    return f"""
DECLARE
    _from xid8;
    _ids tid[];
    _bad integer;
BEGIN
    SELECT l.floor INTO _from FROM view_lanes l
    WHERE l.internal = '{internal}' AND l.lane = _lane FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    _ids := ARRAY(
        SELECT d.ctid FROM {deltas_table_of(internal)} d
        WHERE d.lane = _lane AND d.xid >= _from ORDER BY d.xid LIMIT _deltas_max
    );
    IF cardinality(_ids) = 0 THEN
        RETURN 0;
    END IF;
    _bad := mv_{internal}_part(_ids);
    UPDATE view_lanes l SET version = l.version + 1
    WHERE l.internal = '{internal}' AND l.lane = _lane;
    RETURN _bad;
END
"""
