"""Folding on a real PostgreSQL: what it must be whatever commits and folds beside it."""

from __future__ import annotations

import asyncio

import pytest

from coffee_rt.domain.orders import Order
from coffee_rt.domain.views import lane_of
from coffee_rt.errors import Retryable
from coffee_rt.store.contract import BadData
from coffee_rt.store.view_catalogue import PostgresViewCatalogue
from coffee_rt.store.view_contract import LaneKey, ViewQuery
from coffee_rt.store.view_fold import PostgresViewFolder
from coffee_rt.store.view_reads import PostgresViewReader
from coffee_rt.store.view_tables import load_catalogue
from tests.builders import NOW_MS, an_order
from tests.view_writing import (
    a_live_view,
    a_pool,
    commit_orders,
    expected_rows,
    fold_all,
    some_orders,
    stored_rows,
    write_deltas,
    write_orders,
)

pytestmark = pytest.mark.integration

EXTREMES = {"orders": "count", "least": {"min": "price"}, "most": {"max": "revenue"}}


async def test_folded_rows_equal_a_recomputation(database_url: str) -> None:
    orders = some_orders(500)
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool, measures=EXTREMES)
        for start in range(0, 500, 50):
            await commit_orders(pool, orders[start : start + 50])
            await fold_all(PostgresViewFolder(pool), view)
        assert await stored_rows(pool, view) == expected_rows(view.definition, orders)


async def test_sql_puts_a_group_in_the_lane_python_does(database_url: str) -> None:
    async with a_pool(database_url) as pool:
        for tenant, bucket, *dimensions in (
            (0, NOW_MS // 1000, "uptown", "latte"),
            (7, 60, "Łódź ☕", ""),
            (2**31 - 1, 0, "", ""),
        ):
            group = (tenant, bucket, *dimensions)
            lane = await pool.fetchval(
                "SELECT view_lane(concat_ws(chr(31), $1::int, $2::bigint, $3::text, $4::text), 8)",
                *group,
            )
            assert lane == lane_of(group, 8)


async def test_a_fold_tells_absolute_rows_and_the_next_version(database_url: str) -> None:
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool, lanes=1)
        folder = PostgresViewFolder(pool)
        key = LaneKey(view.internal, 0)
        assert await folder.fold_lane(key, 100, 100) is None
        await commit_orders(pool, [an_order(price_minor=450, quantity=2)])
        first = await folder.fold_lane(key, 100, 100)
        await commit_orders(pool, [an_order(price_minor=100), an_order(store="harbour")])
        second = await folder.fold_lane(key, 100, 100)
    assert first is not None
    assert second is not None
    assert (first.view, first.epoch, first.previous, first.version) == ("sales", view.epoch, 0, 1)
    assert (second.previous, second.version, second.folded_deltas) == (1, 2, 2)
    bucket = NOW_MS // 1000 // 3600 * 3600
    assert first.rows == [
        {
            "tenant": 0,
            "bucket": bucket,
            "store": "uptown",
            "drink": "latte",
            "orders": 1,
            "quantity": 2,
            "revenue": 900,
            "lane": 0,
            "version": 1,
            "newest_at_ms": NOW_MS,
        }
    ]
    assert sorted((row["store"], row["revenue"], row["version"]) for row in second.rows) == [
        ("harbour", 450, 2),
        ("uptown", 1000, 2),
    ]


async def test_a_fold_is_on_disk_before_it_is_told(database_url: str) -> None:
    """Also where the server's default is not to wait: what browsers were shown must not be forgotten."""
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool)
        await commit_orders(pool, some_orders(20))
        await pool.execute(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off',"
            " current_database()); END $$"
        )
    async with a_pool(database_url) as pool:
        assert await pool.fetchval("SHOW synchronous_commit") == "off"
        folder = PostgresViewFolder(pool)
        lanes = [work.key.lane for work in await folder.waiting_lanes()]
        before = await pool.fetchval("SELECT pg_current_wal_insert_lsn()")
        assert await folder.fold_lanes(view.internal, lanes, 1000, 1000)
        assert await pool.fetchval("SELECT pg_current_wal_flush_lsn() > $1", before)


async def test_a_fold_of_too_many_rows_says_reload(database_url: str) -> None:
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool, lanes=1)
        await commit_orders(pool, [an_order(store=f"s{number}") for number in range(5)])
        fold = await PostgresViewFolder(pool).fold_lane(LaneKey(view.internal, 0), 100, 4)
    assert fold is not None
    assert fold.is_reload
    assert fold.rows == []


async def test_folds_take_no_more_deltas_than_asked(database_url: str) -> None:
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool, lanes=1)
        orders = some_orders(60)
        for order in orders:
            await commit_orders(pool, [order])
        folder = PostgresViewFolder(pool)
        first = await folder.fold_lane(LaneKey(view.internal, 0), 25, 100)
        assert first is not None
        assert (first.folded_deltas, first.is_drained, first.floor) == (25, False, 0)
        await fold_all(folder, view, deltas_max=25)
        assert await stored_rows(pool, view) == expected_rows(view.definition, orders)


async def test_a_commit_older_than_many_folds_is_never_skipped(database_url: str) -> None:
    """The trap of `id > last`: a transaction that began first and commits last."""
    early, late = some_orders(20, seed=2), some_orders(20, seed=3)
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool)
        folder = PostgresViewFolder(pool)
        async with pool.transaction() as slow:
            await write_orders(slow, await load_catalogue(slow), early)
            for order in late:
                await commit_orders(pool, [order])
                await fold_all(folder, view)
            assert await stored_rows(pool, view) == expected_rows(view.definition, late)
            slow_xid = int(await slow.fetchval("SELECT pg_current_xact_id()::text"))
            _, lanes = await folder.lane_versions()
            assert all(lane.floor <= slow_xid for lane in lanes)
        await fold_all(folder, view)
        assert await stored_rows(pool, view) == expected_rows(view.definition, [*early, *late])
        _, lanes = await folder.lane_versions()
        assert all(lane.floor > slow_xid for lane in lanes)


async def test_deltas_of_a_subtransaction_are_never_below_a_floor(database_url: str) -> None:
    """A savepoint's rows carry the id of its transaction, which stays in the snapshot until that ends."""
    early, late = some_orders(20, seed=2), some_orders(20, seed=3)
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool)
        folder = PostgresViewFolder(pool)
        async with pool.transaction() as slow:
            await slow.execute("SAVEPOINT one")
            await write_orders(slow, await load_catalogue(slow), early)
            await slow.execute("RELEASE SAVEPOINT one")
            await commit_orders(pool, late)
            await fold_all(folder, view)
        await fold_all(folder, view)
        assert await stored_rows(pool, view) == expected_rows(view.definition, [*early, *late])


async def test_two_folders_and_four_writers_lose_and_double_nothing(database_url: str) -> None:
    orders = some_orders(1200, seed=4)
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool, lanes=3)
        written = asyncio.Event()
        versions: list[tuple[int, int]] = []

        async def write(part: list[Order]) -> None:
            for start in range(0, len(part), 10):
                await commit_orders(pool, part[start : start + 10])

        async def fold() -> None:
            folder = PostgresViewFolder(pool)
            is_last = False
            while True:
                for lane in range(3):
                    fold = await folder.fold_lane(LaneKey(view.internal, lane), 7, 100)
                    if fold is not None:
                        versions.append((lane, fold.version))
                if is_last and not await folder.waiting_lanes():
                    return
                is_last = written.is_set()

        async with asyncio.TaskGroup() as group:
            group.create_task(fold())
            group.create_task(fold())
            async with asyncio.TaskGroup() as writers:
                for number in range(4):
                    writers.create_task(write(orders[number::4]))
            written.set()
        assert await stored_rows(pool, view) == expected_rows(view.definition, orders)
        assert len(versions) == len(set(versions))
        for lane in range(3):
            told = [version for number, version in versions if number == lane]
            assert sorted(told) == list(range(1, len(told) + 1))


async def test_a_lane_that_another_holds_is_left_alone(database_url: str) -> None:
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool, lanes=1)
        await commit_orders(pool, some_orders(5))
        folder = PostgresViewFolder(pool)
        async with pool.transaction() as other:
            await other.execute("SELECT FROM view_lanes FOR UPDATE")
            assert await folder.fold_lane(LaneKey(view.internal, 0), 100, 100) is None
        assert await folder.fold_lane(LaneKey(view.internal, 0), 100, 100) is not None


async def test_waiting_lanes_are_those_with_unfolded_deltas(database_url: str) -> None:
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool)
        folder = PostgresViewFolder(pool)
        orders = some_orders(30)
        await commit_orders(pool, orders)
        groups = expected_rows(view.definition, orders)
        expected: dict[int, int] = {}
        for group in groups:
            lane = lane_of(group, view.definition.lanes)
            expected[lane] = expected.get(lane, 0) + 1
        waiting = await folder.waiting_lanes()
        assert {work.key.lane: work.waiting_rows for work in waiting} == expected
        await fold_all(folder, view)
        assert await folder.waiting_lanes() == []


async def test_an_overflowing_delta_is_put_away_and_the_rest_is_folded(database_url: str) -> None:
    orders = some_orders(20, seed=5)
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool, lanes=1, measures={"orders": "count"})
        folder = PostgresViewFolder(pool)
        await commit_orders(pool, orders)
        for _ in range(2):
            await pool.execute(
                f"INSERT INTO mv_{view.internal}_deltas"
                " (lane, tenant, bucket, store, drink, orders, newest_at)"
                " VALUES (0, 0, date_trunc('hour', now()), 'huge', 'latte', 9223372036854775000, now())"
            )
        key = LaneKey(view.internal, 0)
        with pytest.raises(BadData):
            await folder.fold_lane(key, 1000, 1000)
        assert await folder.quarantine(key, 1000) == 1
        rows = await stored_rows(pool, view)
        huge = [measures for group, measures in rows.items() if group[2] == "huge"]
        assert huge == [[9223372036854775000]]
        rest = {group: measures for group, measures in rows.items() if group[2] != "huge"}
        assert rest == expected_rows(view.definition, orders)
        [letter] = await pool.fetch("SELECT delta->>'store' AS store, code FROM fold_dead_letters")
        assert (letter["store"], letter["code"]) == ("huge", "22003")
        assert await folder.waiting_lanes() == []


async def test_a_delta_past_the_views_retention_is_dropped_and_counted(database_url: str) -> None:
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool, lanes=1, retention_days=2)
        old = an_order(ordered_at_us=NOW_MS * 1000 - 400 * 86400 * 1_000_000)
        await write_deltas(pool, view, [old])
        fold = await PostgresViewFolder(pool).fold_lane(LaneKey(view.internal, 0), 100, 100)
        assert fold is not None
        assert (fold.expired_deltas, fold.version, fold.previous) == (1, 0, 0)
        assert await stored_rows(pool, view) == {}


async def test_a_dropped_view_is_retryable_for_a_folder_that_knew_it(database_url: str) -> None:
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool, lanes=1)
        folder = PostgresViewFolder(pool)
        await folder.fold_lane(LaneKey(view.internal, 0), 100, 100)
        await PostgresViewCatalogue(pool).drop_view("sales")
        with pytest.raises(Retryable):
            await folder.fold_lane(LaneKey(view.internal, 0), 100, 100)
        assert await folder.fold_lane(LaneKey(view.internal, 0), 100, 100) is None


async def test_instances_share_by_what_they_announce(database_url: str) -> None:
    async with a_pool(database_url) as pool:
        folder = PostgresViewFolder(pool)
        assert await folder.announce("a", 2.0) == ["a"]
        assert await folder.announce("b", 2.0) == ["a", "b"]
        await folder.withdraw("a")
        assert await folder.announce("b", 2.0) == ["b"]
        await pool.execute("UPDATE heartbeats SET beat_at = now() - interval '3 seconds'")
        assert await folder.announce("c", 2.0) == ["c"]


async def test_sums_beyond_a_bigint_stay_exact(database_url: str) -> None:
    price, number = 10**12, 1200
    orders = [an_order(price_minor=price, quantity=10_000) for _ in range(number)]
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool, lanes=1)
        await commit_orders(pool, orders)
        fold = await PostgresViewFolder(pool).fold_lane(LaneKey(view.internal, 0), 10, 10)
    assert fold is not None
    assert fold.rows[0]["revenue"] == price * 10_000 * number > 2**63


async def test_deltas_are_encoded_as_their_tables_read_them(database_url: str) -> None:
    view_measures = {"n": "count", "total": {"sum": "revenue"}, "low": {"min": "price"}}
    async with a_pool(database_url) as pool:
        view = await a_live_view(
            pool, measures=view_measures, dimensions=["store", "customer_id", "attributes.channel"]
        )
        orders = [
            an_order(store="Łódź ☕", customer_id="c1", attributes=b'{"channel":"web"}'),
            an_order(attributes=b'{"channel":7}', price_minor=10_000, quantity=10_000),
        ]
        await write_deltas(pool, view, orders)
        rows = await pool.fetch(f"SELECT * FROM mv_{view.internal}_deltas ORDER BY n, total")
    assert [(row["store"], row["customer_id"], row["channel"]) for row in rows] == [
        ("Łódź ☕", "c1", "web"),
        ("uptown", "", ""),
    ]
    assert [(row["n"], int(row["total"]), row["low"]) for row in rows] == [
        (1, 450, 450),
        (1, 100_000_000, 10_000),
    ]


async def test_a_read_beside_folds_never_misses_or_doubles(database_url: str) -> None:
    """Folded and unfolded in one statement: what a fold moves is always on exactly one side."""
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool, lanes=2)
        folder = PostgresViewFolder(pool)
        orders = [an_order(store=f"s{number % 7}") for number in range(300)]
        for start in range(0, 300, 3):
            await commit_orders(pool, orders[start : start + 3])
        query = ViewQuery("sales", 0, 0, NOW_MS // 1000 + 3600, group_by=(), is_total=True)
        reader = PostgresViewReader(pool)
        folding = asyncio.create_task(fold_all(folder, view, deltas_max=2))
        reads = 0
        while not folding.done():
            [total] = (await reader.query(query)).rows
            assert total["orders"] == 300
            reads += 1
        assert await folding > 50
        assert reads > 5
        [total] = (await reader.query(query)).rows
        assert total["orders"] == 300


async def test_several_lanes_fold_in_one_call_and_held_ones_are_left_out(
    database_url: str,
) -> None:
    orders = some_orders(40)
    async with a_pool(database_url) as pool:
        view = await a_live_view(pool, lanes=3)
        await commit_orders(pool, orders)
        folder = PostgresViewFolder(pool)
        async with pool.transaction() as other:
            await other.execute("SELECT FROM view_lanes WHERE lane = 1 FOR UPDATE")
            folds = await folder.fold_lanes(view.internal, [2, 1, 0], 100, 100)
            assert [fold.lane for fold in folds] == [0, 2]
        assert [fold.lane for fold in await folder.fold_lanes(view.internal, [0, 1], 100, 9)] == [1]
        assert await stored_rows(pool, view) == expected_rows(view.definition, orders)
