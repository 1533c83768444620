"""Mechanisms of views: the barrier around changes of their set, folds, recomputation."""

from __future__ import annotations

from tests.mechanics.mechanism import Edit, Mechanism

_FOLDS = "integration/test_view_folds.py"
_REPAIRS = "integration/test_view_repairs.py"

VIEWS = (
    Mechanism(
        "barrier-before-a-new-view",
        "a change of the set of views takes the exclusive side of the lock that commits share",
        "orders of a commit under way are in neither the history nor the deltas: wrong for ever",
        (
            Edit(
                "store/view_catalogue.py",
                'await connection.execute(f"SELECT pg_advisory_xact_lock({CATALOGUE_LOCK})")',
                "assert CATALOGUE_LOCK",
            ),
        ),
        (f"{_REPAIRS}::test_a_new_view_waits_for_commits_under_way_and_misses_none",),
    ),
    Mechanism(
        "recomputation-in-one-statement",
        "one statement drops a span's deltas, adds its orders up and replaces its rows",
        "a commit between two statements is counted twice, or not at all",
        (
            Edit(
                "store/view_repair.py",
                "            changed: int = await connection.fetchval(\n",
                "            await connection.execute(\n"
                '                f"""DELETE FROM mv_{chunk.view}_deltas d USING view_lanes l\n'
                "                WHERE l.internal = '{chunk.view}' AND d.lane = l.lane\n"
                '                AND d.xid >= l.floor AND d.bucket >= $1 AND d.bucket < $2""",\n'
                "                *_span(chunk)[:2],\n"
                "            )\n"
                "            changed: int = await connection.fetchval(\n",
            ),
            Edit(
                "store/view_repair_sql.py",
                "            DELETE FROM {deltas_table_of(internal)} d USING view_lanes l\n"
                "            WHERE l.internal = '{internal}' AND d.lane = l.lane AND d.xid >= l.floor\n"
                "              AND d.bucket >= $1 AND d.bucket < $2\n",
                "            SELECT pg_sleep(0.01)\n",
            ),
        ),
        (f"{_REPAIRS}::test_rebuilds_while_four_writers_write_and_two_folders_fold_are_exact",),
    ),
    Mechanism(
        "recomputation-keeps-folds-out",
        "a recomputation holds the view's lanes",
        "a fold beside it adds what the recomputation has counted already",
        (
            Edit(
                "store/view_repair.py",
                '"SELECT FROM view_lanes WHERE internal = $1 ORDER BY lane FOR UPDATE", chunk.view',
                '"SELECT $1::text", chunk.view',
            ),
        ),
        (f"{_REPAIRS}::test_rebuilds_while_four_writers_write_and_two_folders_fold_are_exact",),
    ),
    Mechanism(
        "folds-lock-before-they-look",
        "a fold takes its lanes in one statement and picks their deltas in a later one",
        "it picks with a snapshot older than its lock: deltas the last folder took hide those that"
        " are left, and the floor rises above them",
        (
            Edit(
                "store/view_schema.py",
                "    SELECT array_agg(l.lane), array_agg(l.floor) INTO _held, _floors FROM (\n"
                "        SELECT lane, floor FROM view_lanes\n"
                "        WHERE internal = '{internal}' AND lane = ANY (_lanes) FOR UPDATE SKIP LOCKED\n"
                "    ) l;\n",
                "    WITH held AS (\n"
                "        SELECT lane, floor FROM view_lanes\n"
                "        WHERE internal = '{internal}' AND lane = ANY (_lanes)\n"
                "        AND pg_sleep(0.3) IS NOT NULL FOR UPDATE SKIP LOCKED\n"
                "    )\n"
                "    SELECT (SELECT array_agg(lane) FROM held), pg_snapshot_xmin(pg_current_snapshot()), ARRAY(\n"
                "        SELECT d.ctid FROM held l CROSS JOIN LATERAL (\n"
                "            SELECT d.ctid FROM {deltas_table_of(internal)} d\n"
                "            WHERE d.lane = l.lane AND d.xid >= l.floor ORDER BY d.xid LIMIT _deltas_max\n"
                "        ) d\n"
                "    ) INTO _held, _xmin, _ids;\n",
            ),
            Edit(
                "store/view_schema.py",
                "    SELECT pg_snapshot_xmin(pg_current_snapshot()), ARRAY(\n"
                "        SELECT d.ctid FROM unnest(_held, _floors) AS l (lane, floor) CROSS JOIN LATERAL (\n"
                "            SELECT d.ctid FROM {deltas_table_of(internal)} d\n"
                "            WHERE d.lane = l.lane AND d.xid >= l.floor ORDER BY d.xid LIMIT _deltas_max\n"
                "        ) d\n"
                "    ) INTO _xmin, _ids;\n",
                "",
            ),
        ),
        (
            "mechanics/test_views.py"
            "::test_a_fold_that_begins_before_the_last_one_ends_leaves_nothing_behind",
        ),
    ),
    Mechanism(
        "one-folder-a-lane",
        "a fold leaves a lane alone that another fold holds",
        "two folds work on the same deltas, one waits for the other, and lanes that nobody holds wait too",
        (
            Edit(
                "store/view_schema.py",
                "WHERE internal = '{internal}' AND lane = ANY (_lanes) FOR UPDATE SKIP LOCKED\n    ) l;",
                "WHERE internal = '{internal}' AND lane = ANY (_lanes)\n    ) l;",
            ),
        ),
        (f"{_FOLDS}::test_a_lane_that_another_holds_is_left_alone",),
    ),
    Mechanism(
        "versions-have-no-holes",
        "a fold's version is the next one of the row it has locked",
        "numbers from elsewhere (a sequence, the transaction's) have holes, and whoever watches takes"
        " each for a lost message",
        (
            Edit(
                "store/view_schema.py",
                "    SET version = l.version + (a._changed > 0)::integer,\n",
                "    SET version = greatest(l.version + 1, pg_current_xact_id()::text::bigint),\n",
            ),
        ),
        (
            f"{_FOLDS}::test_a_fold_tells_absolute_rows_and_the_next_version",
            f"{_FOLDS}::test_two_folders_and_four_writers_lose_and_double_nothing",
        ),
    ),
    Mechanism(
        "floors-wait-for-late-commits",
        "a floor rises only to the oldest transaction still under way",
        "an order whose commit came after younger ones is never counted",
        (
            Edit(
                "store/view_schema.py",
                "SELECT pg_snapshot_xmin(pg_current_snapshot()), ARRAY(",
                "SELECT pg_current_xact_id(), ARRAY(",
            ),
        ),
        (f"{_FOLDS}::test_a_commit_older_than_many_folds_is_never_skipped",),
    ),
    Mechanism(
        "folds-read-from-the-floor",
        "a fold's search begins at the lane's floor",
        "beside one old snapshot every fold walks over all deltas folded before: slower each time",
        (
            Edit(
                "store/view_schema.py",
                "WHERE d.lane = l.lane AND d.xid >= l.floor ORDER BY d.xid LIMIT _deltas_max",
                "WHERE d.lane = l.lane ORDER BY d.xid LIMIT _deltas_max",
            ),
        ),
        ("mechanics/test_views.py::test_folds_beside_an_old_snapshot_read_no_more_each_time",),
    ),
    Mechanism(
        "floors-rise-when-drained",
        "a floor stays where it is while deltas are left behind",
        "what one fold could not take is never taken",
        (
            Edit(
                "store/view_schema.py",
                "floor = CASE WHEN a._folded < _deltas_max THEN _xmin ELSE l.floor END",
                "floor = _xmin",
            ),
        ),
        (f"{_FOLDS}::test_folds_take_no_more_deltas_than_asked",),
    ),
)
