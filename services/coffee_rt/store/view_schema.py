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
    # Custom plans, which the pool asks for elsewhere, would plan every fold anew.
    language = "LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan"
    return [
        f"CREATE FUNCTION mv_{internal}_apply(_lane smallint, _version bigint, _ids tid[],"
        f" _rows_max integer, {_APPLY_OUT}) {language}\nAS $$\n{_apply(definition, internal)}$$",
        f"CREATE FUNCTION mv_{internal}_fold(_lane smallint, _deltas_max integer,"
        f" _rows_max integer, {_FOLD_OUT}) {language}\nAS $$\n{_fold(internal)}$$",
        f"CREATE FUNCTION mv_{internal}_part(_lane smallint, _version bigint, _ids tid[])"
        f" RETURNS integer {language}\nAS $$\n{_part(internal)}$$",
        f"CREATE FUNCTION mv_{internal}_quarantine(_lane smallint, _deltas_max integer)"
        f" RETURNS integer {language}\nAS $$\n{_quarantine(internal)}$$",
    ]


_APPLY_OUT = (
    "OUT _expired integer, OUT _changed integer, OUT _newest_at timestamptz, OUT _rows text"
)
_FOLD_OUT = (
    "OUT _previous bigint, OUT _folded_version bigint, OUT _floor text, OUT _folded integer,"
    f" OUT _is_drained boolean, {_APPLY_OUT}"
)


def _apply(definition: ViewDefinition, internal: str) -> str:
    """Move the given deltas into the view. The caller holds the lane."""
    key = quoted(key_columns(definition))
    merged = ", ".join(merged_measure(measure, "g") for measure in definition.measures)
    names = quoted(measure_columns(definition))
    updates = ", ".join(_merged_row(measure) for measure in definition.measures)
    return f"""
BEGIN
    WITH gone AS (
        DELETE FROM {deltas_table_of(internal)} d WHERE d.ctid = ANY (_ids) RETURNING d.*
    ), merged AS (
        SELECT {quoted(key_columns(definition), "g.")}, {merged}, max(g.newest_at) AS newest_at
        FROM gone g
        -- A bucket past the view's retention would only be removed again.
        WHERE g.bucket >= now() - interval '{definition.retention_days} days'
        GROUP BY {quoted(key_columns(definition), "g.")}
    ), changed AS (
        INSERT INTO {table_of(internal)} AS m (lane, version, {key}, {names}, newest_at)
        SELECT _lane, _version, {key}, {names}, newest_at FROM merged
        ON CONFLICT ({key}) DO UPDATE SET version = excluded.version, {updates},
            newest_at = greatest(m.newest_at, excluded.newest_at)
        RETURNING m.*
    )
    SELECT (SELECT count(*) FROM gone g
            WHERE g.bucket < now() - interval '{definition.retention_days} days'),
           (SELECT count(*) FROM changed),
           (SELECT max(c.newest_at) FROM changed c),
           CASE WHEN (SELECT count(*) FROM changed) <= _rows_max
                THEN (SELECT json_agg({row_json(definition, "c")}) FROM changed c)::text END
    INTO _expired, _changed, _newest_at, _rows;
END
"""


def _merged_row(measure: Measure) -> str:
    name = f'"{measure.name}"'
    if measure.aggregate in (Aggregate.MIN, Aggregate.MAX):
        function = "least" if measure.aggregate is Aggregate.MIN else "greatest"
        return f"{name} = {function}(m.{name}, excluded.{name})"
    return f"{name} = m.{name} + excluded.{name}"


def _fold(internal: str) -> str:
    """One fold. Each statement has a snapshot of its own: the lock comes before the one that picks."""
    return f"""
DECLARE
    _from xid8;
    _xmin xid8;
    _ids tid[];
    _applied record;
BEGIN
    SELECT l.version, l.floor INTO _previous, _from FROM view_lanes l
    WHERE l.internal = '{internal}' AND l.lane = _lane FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- A transaction below the xmin of the very snapshot that picks is over: all it wrote is seen here.
    SELECT pg_snapshot_xmin(pg_current_snapshot()), ARRAY(
        SELECT d.ctid FROM {deltas_table_of(internal)} d
        WHERE d.lane = _lane AND d.xid >= _from ORDER BY d.xid LIMIT _deltas_max
    ) INTO _xmin, _ids;
    _folded := cardinality(_ids);
    IF _folded = 0 THEN
        _previous := NULL;
        RETURN;
    END IF;
    _is_drained := _folded < _deltas_max;
    SELECT * INTO _applied
    FROM mv_{internal}_apply(_lane, _previous + 1, _ids, _rows_max);
    _expired := _applied._expired;
    _changed := _applied._changed;
    _newest_at := _applied._newest_at;
    _rows := _applied._rows;
    -- Raised only when nothing below it is left behind.
    UPDATE view_lanes l
    SET version = l.version + (_changed > 0)::integer,
        floor = CASE WHEN _is_drained THEN _xmin ELSE l.floor END
    WHERE l.internal = '{internal}' AND l.lane = _lane
    RETURNING l.version, l.floor::text INTO _folded_version, _floor;
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
        PERFORM mv_{internal}_apply(_lane, _version, _ids, 0);
        RETURN 0;
    EXCEPTION WHEN data_exception OR program_limit_exceeded OR not_null_violation
                OR check_violation THEN
        GET STACKED DIAGNOSTICS _code = RETURNED_SQLSTATE, _detail = MESSAGE_TEXT;
    END;
    IF _half = 0 THEN
        INSERT INTO fold_dead_letters (internal, lane, delta, code, detail)
        SELECT '{internal}', _lane, to_jsonb(d), _code, _detail
        FROM {deltas} d WHERE d.ctid = ANY (_ids);
        DELETE FROM {deltas} d WHERE d.ctid = ANY (_ids);
        RETURN 1;
    END IF;
    RETURN mv_{internal}_part(_lane, _version, _ids[:_half])
         + mv_{internal}_part(_lane, _version, _ids[_half + 1:]);
END
"""


def _quarantine(internal: str) -> str:
    return f"""
DECLARE
    _from xid8;
    _version bigint;
    _ids tid[];
BEGIN
    SELECT l.version + 1, l.floor INTO _version, _from FROM view_lanes l
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
    UPDATE view_lanes l SET version = _version
    WHERE l.internal = '{internal}' AND l.lane = _lane;
    RETURN mv_{internal}_part(_lane, _version, _ids);
END
"""
