"""The set of views and the recomputation of their history, on a real PostgreSQL, while orders flow."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from coffee_rt.domain.orders import Order
from coffee_rt.domain.views import Bucket, ViewDefinition
from coffee_rt.errors import Rejected, Retryable
from coffee_rt.store.pool import Pool
from coffee_rt.store.view_catalogue import PostgresViewCatalogue
from coffee_rt.store.view_contract import LaneKey, ViewQuery
from coffee_rt.store.view_fold import PostgresViewFolder
from coffee_rt.store.view_reads import PostgresViewReader
from coffee_rt.store.view_repair import PostgresViewRepairer
from coffee_rt.store.view_tables import (
    CATALOGUE_LOCK,
    LiveView,
    decode_definition,
    encode_definition,
    load_catalogue,
    read_generation,
)
from tests.builders import NOW_MS, a_view, an_order
from tests.view_writing import (
    a_live_view,
    a_pool,
    commit_orders,
    ensure_partition,
    expected_rows,
    fold_all,
    live_view,
    some_orders,
    stored_rows,
    write_orders,
)
from tests.workers import until

pytestmark = pytest.mark.integration

LASTING = {"retention_days": 36_500}
NOW_S = NOW_MS // 1000


async def rebuild_all(repairer: PostgresViewRepairer, internal: str) -> int:
    chunks = await repairer.plan_chunks(internal, None, None)
    return sum([await repairer.rebuild_chunk(chunk) for chunk in chunks])


async def audit_all(repairer: PostgresViewRepairer, internal: str) -> list[object]:
    return [
        difference
        for chunk in await repairer.plan_chunks(internal, None, None)
        for difference in await repairer.audit_chunk(chunk)
    ]


async def test_a_definition_survives_the_catalogue(database_url: str) -> None:
    definition = a_view("odd", measures={"zz": {"max": "price"}, "a": "count"}, bucket="day")
    async with a_pool(database_url) as pool:
        catalogue = PostgresViewCatalogue(pool)
        assert await catalogue.ensure_views([definition]) == ["odd_1"]
        [state] = await catalogue.views()
        assert (state.definition, state.is_current, state.backfilled_to) == (definition, True, 0)
        assert await catalogue.ensure_views([definition]) == ["odd_1"]
        async with pool.connection() as connection:
            assert await read_generation(connection) == 1
        assert encode_definition(definition) == encode_definition(state.definition)


async def test_columns_may_be_words_of_sql(database_url: str) -> None:
    definition = a_view(
        "select",
        dimensions=["attributes.user", "attributes.floor"],
        measures={"order": "count", "group": {"sum": "revenue"}, "limit": {"min": "price"}},
        **LASTING,
    )
    async with a_pool(database_url) as pool:
        await ensure_partition(pool)
        await PostgresViewCatalogue(pool).ensure_views([definition])
        view = await live_view(pool, "select")
        orders = [an_order(attributes=b'{"user":"u","floor":"f"}'), an_order()]
        await commit_orders(pool, orders)
        await fold_all(PostgresViewFolder(pool), view)
        assert await stored_rows(pool, view) == expected_rows(definition, orders)
        repairer = PostgresViewRepairer(pool)
        assert await audit_all(repairer, view.internal) == []
        assert await rebuild_all(repairer, view.internal) == 0
        answer = await PostgresViewReader(pool).query(
            ViewQuery("select", 0, 0, NOW_S + 3600, order_by="group")
        )
        assert [row["user"] for row in answer.rows] in (["u", ""], ["", "u"])


async def _has_waiting_change(pool: Pool) -> bool:
    waiting = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    return bool(await pool.fetchval(waiting))


async def test_a_new_view_waits_for_commits_under_way_and_misses_none(database_url: str) -> None:
    """Without the barrier the held commit's orders are in neither backfill nor deltas."""
    held, later = some_orders(10, seed=1), some_orders(10, seed=2)
    async with a_pool(database_url) as pool:
        await ensure_partition(pool)
        catalogue = PostgresViewCatalogue(pool)
        async with pool.transaction() as slow:
            await slow.execute(f"SELECT pg_advisory_xact_lock_shared({CATALOGUE_LOCK})")
            known = await load_catalogue(slow)
            await write_orders(slow, known, held)
            making = asyncio.create_task(catalogue.ensure_views([a_view("sales", **LASTING)]))
            # The change has begun to wait once its lock request is seen.
            async with asyncio.timeout(10):
                while not (making.done() or await _has_waiting_change(pool)):  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            assert not making.done()
        await making
        view = await live_view(pool)
        await commit_orders(pool, later, cached=known)
        await rebuild_all(PostgresViewRepairer(pool), view.internal)
        await fold_all(PostgresViewFolder(pool), view)
        assert await stored_rows(pool, view) == expected_rows(view.definition, [*held, *later])


async def test_a_view_that_needs_newer_workers_waits_for_them(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_pool(database_url) as pool:
        await pool.execute("INSERT INTO heartbeats VALUES ('worker', 'old', 0)")
        catalogue = PostgresViewCatalogue(pool)
        with pytest.raises(Retryable, match="old"):
            await catalogue.ensure_views([a_view()])
        await pool.execute("UPDATE heartbeats SET beat_at = now() - interval '1 hour'")
        assert await catalogue.ensure_views([a_view()]) == ["sales_1"]


async def test_the_release_before_and_this_one_read_each_others_views(database_url: str) -> None:
    async with a_pool(database_url) as pool:
        catalogue = PostgresViewCatalogue(pool)
        # As the release before writes its catalogue.
        await pool.execute(
            """
            INSERT INTO view_catalogue (internal, name, definition, generation, feature_level,
                                        is_current, backfilled_to)
            VALUES ('old_1', 'old', $1, 1, 1, true, NULL)
            """,
            encode_definition(a_view("old")),
        )
        await catalogue.ensure_views([a_view(filter={"drink": "tea"})], "object:shop/sales")
        owners = {state.internal: state.owner for state in await catalogue.views()}
        assert owners == {"old_1": "file", "sales_1": "object:shop/sales"}
        # What it reads knows nothing of filters, and says that older workers must stop.
        row = await pool.fetchrow(
            "SELECT definition::text, feature_level FROM view_catalogue WHERE name = 'sales'"
        )
        assert decode_definition(row["definition"]) == a_view()
        assert row["feature_level"] == 2


async def test_a_definition_of_a_newer_release_is_refused_by_its_level(database_url: str) -> None:
    async with a_pool(database_url) as pool:
        await PostgresViewCatalogue(pool).ensure_views([a_view()])
        await pool.execute(
            """UPDATE view_catalogue SET feature_level = 99,
            definition = '{"name": "sales", "bucket": "century"}'"""
        )
        async with pool.connection() as connection:
            catalogue = await load_catalogue(connection)
        assert [view.definition.name for view in catalogue.views_too_new] == ["sales"]


async def flow(pool: Pool, orders: list[Order]) -> None:
    for start in range(0, len(orders), 5):
        await commit_orders(pool, orders[start : start + 5])


async def test_rebuilds_while_four_writers_write_and_two_folders_fold_are_exact(
    database_url: str,
) -> None:
    old, new = some_orders(200, seed=1), some_orders(800, seed=2)
    measures = {"orders": "count", "revenue": {"sum": "revenue"}, "least": {"min": "price"}}
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool, lanes=3, measures=measures)
        await flow(pool, old)
        repairer = PostgresViewRepairer(pool)
        done = asyncio.Event()

        async def fold() -> None:
            folder = PostgresViewFolder(pool)
            while not done.is_set():
                for lane in range(3):
                    await folder.fold_lane(LaneKey(view.internal, lane), 20, 100)

        async def repair() -> None:
            while not done.is_set():
                await rebuild_all(repairer, view.internal)
                assert await audit_all(repairer, view.internal) == []

        async with asyncio.TaskGroup() as group:
            for task in (fold(), fold(), repair()):
                group.create_task(task)
            async with asyncio.TaskGroup() as writers:
                for number in range(4):
                    writers.create_task(flow(pool, new[number::4]))
            done.set()
        await fold_all(PostgresViewFolder(pool), view)
        assert await stored_rows(pool, view) == expected_rows(view.definition, [*old, *new])


async def test_an_audit_finds_a_planted_difference_and_a_rebuild_mends_it(
    database_url: str,
) -> None:
    orders = some_orders(60)
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool)
        await commit_orders(pool, orders)
        await fold_all(PostgresViewFolder(pool), view)
        repairer = PostgresViewRepairer(pool)
        assert await audit_all(repairer, view.internal) == []
        table = f"mv_{view.internal}"
        await pool.execute(
            f"UPDATE {table} SET revenue = revenue + 1 WHERE ctid = (SELECT min(ctid) FROM {table})"
        )
        await pool.execute(
            f"INSERT INTO {table} SELECT lane, version, tenant, bucket, 'ghost', drink, orders,"
            f" quantity, revenue, newest_at FROM {table} LIMIT 1"
        )
        found = await audit_all(repairer, view.internal)
        assert len(found) == 2
        _, before = await PostgresViewFolder(pool).lane_versions()
        assert await rebuild_all(repairer, view.internal) == 2
        assert await audit_all(repairer, view.internal) == []
        _, after = await PostgresViewFolder(pool).lane_versions()
        assert sum(lane.version for lane in after) > sum(lane.version for lane in before)
        rows = await stored_rows(pool, view)
        ghosts = [rows.pop(group) for group in list(rows) if group[2] == "ghost"]
        assert ghosts == [[0, 0, 0]]
        assert rows == expected_rows(view.definition, orders)


async def test_a_group_that_vanished_and_came_back_has_the_right_least(database_url: str) -> None:
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool, measures={"least": {"min": "price"}})
        gone = an_order(price_minor=100)
        await commit_orders(pool, [gone])
        await fold_all(PostgresViewFolder(pool), view)
        await pool.execute("DELETE FROM orders")
        await rebuild_all(PostgresViewRepairer(pool), view.internal)
        assert list((await stored_rows(pool, view)).values()) == [[None]]
        answer = await PostgresViewReader(pool).query(ViewQuery("sales", 0, 0, NOW_S + 3600))
        assert answer.rows == []
        await commit_orders(pool, [an_order(price_minor=700)])
        await fold_all(PostgresViewFolder(pool), view)
        assert list((await stored_rows(pool, view)).values()) == [[700]]


async def test_late_orders_and_clients_ids_are_recomputed_too(database_url: str) -> None:
    day = 86_400_000_000
    orders = [
        an_order(ordered_at_us=NOW_MS * 1000 - 200 * day),
        an_order(ordered_at_us=NOW_MS * 1000 - day),
        an_order(ordered_at_us=NOW_MS * 1000 + 300_000_000),
        an_order(accepted_at_us=NOW_MS * 1000 - day, ordered_at_us=NOW_MS * 1000 - 7_200_000_000),
    ]
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool, bucket="minute")
        await commit_orders(pool, orders)
        await pool.execute(f"DELETE FROM mv_{view.internal}_deltas")
        assert await rebuild_all(PostgresViewRepairer(pool), view.internal) == 4
        assert await stored_rows(pool, view) == expected_rows(view.definition, orders)


async def test_buckets_that_retention_has_touched_are_frozen(database_url: str) -> None:
    retired_to = NOW_S - NOW_S % 86_400
    orders = [
        an_order(ordered_at_us=(retired_to + 3600) * 1_000_000),
        an_order(ordered_at_us=(retired_to + 86_400 + 3600) * 1_000_000),
    ]
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool)
        await commit_orders(pool, orders)
        await fold_all(PostgresViewFolder(pool), view)
        # As if the rest of the first bucket's orders had gone with a partition.
        await pool.execute(
            "DELETE FROM orders WHERE ordered_at < to_timestamp($1)", retired_to + 86_400
        )
        await pool.execute(
            "INSERT INTO install (name, value) VALUES ('orders_retired_to_ms', $1)",
            str(retired_to * 1000),
        )
        repairer = PostgresViewRepairer(pool)
        assert await repairer.recomputable_from(view.internal) == retired_to + 86_400
        assert await rebuild_all(repairer, view.internal) == 0
        assert await audit_all(repairer, view.internal) == []
        assert await stored_rows(pool, view) == expected_rows(view.definition, orders)


async def test_a_changed_definition_is_filled_beside_the_old_one_and_takes_its_place(
    database_url: str,
) -> None:
    orders = some_orders(50)
    async with a_pool(database_url) as pool:
        old = await a_live_view(pool)
        catalogue = PostgresViewCatalogue(pool)
        await PostgresViewRepairer(pool).mark_backfilled(old.internal, None)
        await commit_orders(pool, orders[:25])
        changed = a_view("sales", dimensions=["drink"], **LASTING)
        assert await catalogue.ensure_views([changed]) == ["sales_2"]
        assert (await live_view(pool)).definition == old.definition
        await commit_orders(pool, orders[25:])
        await rebuild_all(PostgresViewRepairer(pool), "sales_2")
        await PostgresViewRepairer(pool).mark_backfilled("sales_2", None)
        await catalogue.make_current("sales_2")
        new = await live_view(pool)
        assert (new.internal, new.definition) == ("sales_2", changed)
        assert new.epoch != old.epoch
        await fold_all(PostgresViewFolder(pool), new)
        assert await stored_rows(pool, new) == expected_rows(changed, orders)
        assert await pool.fetchval("SELECT to_regclass('mv_sales_1')") is None


async def test_a_replacement_waits_for_the_folds_of_its_lanes_before_it_takes_over(
    database_url: str,
) -> None:
    orders = some_orders(50)
    async with a_pool(database_url) as pool:
        changed = await a_replacement(pool, orders)
        async with pool.transaction() as fold:
            await fold.execute("SELECT FROM view_lanes WHERE internal = 'sales_2' FOR UPDATE")
            taking_over = asyncio.create_task(PostgresViewCatalogue(pool).make_current("sales_2"))
            waiting = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            await until(lambda: pool.fetchval(waiting))
            assert not taking_over.done()
        await taking_over
        new = await live_view(pool)
        assert new.internal == "sales_2"
        assert await stored_rows(pool, new) == expected_rows(changed, orders)


async def test_a_replacement_that_cannot_be_folded_at_once_stays_one(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = some_orders(50)
    async with a_pool(database_url) as pool:
        await a_replacement(pool, orders)
        catalogue = PostgresViewCatalogue(pool)
        with monkeypatch.context() as patched:
            patched.setattr("coffee_rt.store.view_catalogue.UNFOLDED_MAX", 1)
            patched.setattr("coffee_rt.store.view_catalogue.TRIES_MAX", 2)
            with pytest.raises(Retryable, match="wait to be folded"):
                await catalogue.make_current("sales_2")
        for _ in range(2):
            await pool.execute(
                "INSERT INTO mv_sales_2_deltas (lane, tenant, bucket, drink, orders, newest_at)"
                " VALUES (0, 0, date_trunc('hour', now()), 'huge', 9223372036854775000, now())"
            )
        with pytest.raises(Retryable, match="can't be folded"):
            await catalogue.make_current("sales_2")
        assert (await live_view(pool)).internal == "sales_1"
        assert await PostgresViewFolder(pool).quarantine(LaneKey("sales_2", 0), 1000) == 1
        await catalogue.make_current("sales_2")
        assert (await live_view(pool)).internal == "sales_2"


async def a_replacement(pool: Pool, orders: Sequence[Order]) -> ViewDefinition:
    """The definition of `sales_2`, a replacement with orders that nobody has folded."""
    await a_live_view(pool)
    changed = a_view("sales", dimensions=["drink"], measures={"orders": "count"}, **LASTING)
    await PostgresViewCatalogue(pool).ensure_views([changed])
    await commit_orders(pool, orders)
    return changed


async def test_a_change_taken_back_drops_its_replacement(database_url: str) -> None:
    async with a_pool(database_url) as pool:
        catalogue = PostgresViewCatalogue(pool)
        await catalogue.ensure_views([a_view()])
        await catalogue.ensure_views([a_view(bucket="day")])
        await catalogue.ensure_views([a_view()])
        assert [state.internal for state in await catalogue.views()] == ["sales_1"]


async def test_two_processes_make_a_view_once(database_url: str) -> None:
    async with a_pool(database_url) as pool:
        one, two = PostgresViewCatalogue(pool), PostgresViewCatalogue(pool)
        made = await asyncio.gather(one.ensure_views([a_view()]), two.ensure_views([a_view()]))
        assert list(made) == [["sales_1"], ["sales_1"]]


async def test_a_dropped_view_is_gone_with_its_tables(database_url: str) -> None:
    async with a_pool(database_url) as pool:
        view: LiveView = await a_live_view(pool)
        catalogue = PostgresViewCatalogue(pool)
        reader = PostgresViewReader(pool)
        await reader.query(ViewQuery("sales", 0, 0, 1))
        await catalogue.drop_view("sales")
        assert await pool.fetchval("SELECT to_regclass($1)", f"mv_{view.internal}") is None
        with pytest.raises(Rejected):
            await reader.query(ViewQuery("sales", 0, 0, 1))
        with pytest.raises(Rejected):
            await catalogue.drop_view("sales")


async def test_a_view_dropped_amid_its_repair_is_unknown(database_url: str) -> None:
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool)
        await commit_orders(pool, some_orders(10))
        repairer = PostgresViewRepairer(pool)
        [chunk, *_] = await repairer.plan_chunks(view.internal, None, None)

        async def definition(_: str) -> ViewDefinition:
            return view.definition

        # As if the drop came between two statements.
        repairer._definition = definition  # type: ignore[assignment,method-assign]
        await PostgresViewCatalogue(pool).drop_view("sales")
        for attempt in (
            repairer.plan_chunks(view.internal, None, None),
            repairer.rebuild_chunk(chunk),
            repairer.audit_chunk(chunk),
            repairer.expire_rows(view.internal),
        ):
            with pytest.raises(Rejected, match="there is no view"):
                await attempt


async def test_rows_past_the_views_retention_are_removed(database_url: str) -> None:
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool)
        await commit_orders(pool, some_orders(20))
        await fold_all(PostgresViewFolder(pool), view)
        assert await PostgresViewRepairer(pool).expire_rows(view.internal) == 0
        await pool.execute(
            f"UPDATE mv_{view.internal} SET bucket = bucket - interval '150 years' WHERE tenant = 1"
        )
        assert await PostgresViewRepairer(pool).expire_rows(view.internal) > 0
        assert {group[0] for group in await stored_rows(pool, view)} == {0}


async def test_chunks_cover_whole_buckets(database_url: str) -> None:
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool, bucket="day")
        await commit_orders(pool, [an_order()])
        chunks = await PostgresViewRepairer(pool).plan_chunks(view.internal, NOW_S, NOW_S + 1)
    day = Bucket.DAY.seconds
    assert all(chunk.start % day == 0 and chunk.end % day == 0 for chunk in chunks)
