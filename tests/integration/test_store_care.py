"""Migrations, pool, partitions and query plans on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from coffee_rt.errors import Bug, Busy, Retryable
from coffee_rt.runtime.settings import DatabaseSettings
from coffee_rt.store.contract import BadData
from coffee_rt.store.keeper import PostgresKeeper
from coffee_rt.store.migrations import known_migrations, migrate, pending_migrations
from coffee_rt.store.order_rows import id_range
from coffee_rt.store.pool import Pool, create_pool
from coffee_rt.store.queries import FIND, recent_query
from tests.builders import NOW_MS, an_order
from tests.store_harness import WriteStore, a_write_store, an_entry, order_at

pytestmark = pytest.mark.integration
DAY_MS = 86_400_000

COMPACT_BEFORE_NUMBERS = """
WITH oldest AS (
    SELECT batch_id FROM stream_entries
    WHERE shard = $1 AND (entry_ms, entry_seq) < ($2::int8, $3::int8)
    ORDER BY entry_ms, entry_seq LIMIT $4
), moved AS (
    DELETE FROM stream_entries WHERE batch_id IN (SELECT batch_id FROM oldest)
    RETURNING batch_id, entry_ms, records, counter
), found AS (
    UPDATE gaps AS g SET records_found = g.records_found + f.records
    FROM (
        SELECT gap.batch_id, sum(m.records) AS records
        FROM gaps AS gap JOIN moved AS m ON m.counter > gap.counter_from
            AND m.counter <= gap.counter_to AND m.batch_id <> gap.batch_id
        WHERE gap.shard = $1 GROUP BY gap.batch_id
    ) AS f WHERE g.batch_id = f.batch_id
), marked AS (
    INSERT INTO shard_sums AS s (shard, through_ms)
    SELECT $1, max(entry_ms) FROM moved HAVING count(*) > 0
    ON CONFLICT (shard) DO UPDATE SET through_ms = greatest(s.through_ms, excluded.through_ms)
)
SELECT count(*) FROM moved
"""
"""How the release before migration 0007 compacts."""

RECORD_GAPS_BEFORE_NUMBERS = """
INSERT INTO gaps (batch_id, shard, entry_ms, entry_seq, counter_from, counter_to)
SELECT * FROM unnest($1::uuid[], $2::int2[], $3::int8[], $4::int8[], $5::int8[], $6::int8[])
ON CONFLICT DO NOTHING
"""


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[WriteStore]:
    async with a_write_store(database_url) as made:
        yield made


def the_pool(store: WriteStore) -> Pool:
    assert store.pool is not None
    return store.pool


async def test_migrations_at_the_same_time_apply_each_once(empty_database_url: str) -> None:
    applied = await asyncio.gather(*(migrate(empty_database_url) for _ in range(4)))
    assert sorted(name for names in applied for name in names) == [
        each.name for each in known_migrations()
    ]
    connection = await asyncpg.connect(empty_database_url)
    assert await pending_migrations(connection) == []
    await connection.close()
    assert await migrate(empty_database_url) == []


async def test_migration_changed_after_it_was_applied_is_refused(
    empty_database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "0001_first.sql"
    file.write_text("CREATE TABLE a (b int)")
    assert await migrate(empty_database_url, tmp_path) == ["0001_first"]
    file.write_text("CREATE TABLE a (b bigint)")
    with pytest.raises(Bug, match="0001_first was changed"):
        await migrate(empty_database_url, tmp_path)


async def test_what_was_compacted_before_numbers_were_kept_is_taken_for_whole(
    empty_database_url: str, tmp_path: Path
) -> None:
    *before, numbers = known_migrations()[:7]
    for migration in before:
        (tmp_path / f"{migration.name}.sql").write_text(migration.sql, "utf-8")
    await migrate(empty_database_url, tmp_path)
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute(
        """INSERT INTO shard_sums (shard, entries, records, stored, through_ms)
           VALUES (0, 2, 5, 5, 7), (1, 1, 4, 4, 7), (2, 1, 1, 1, 0), (-1, 1, 9, 9, 7);
           INSERT INTO stream_entries
               (batch_id, shard, entry_ms, entry_seq, counter, records, stored, duplicates, dead)
           VALUES (gen_random_uuid(), 0, 8, 0, 8, 3, 3, 0, 0)"""
    )
    await connection.close()
    (tmp_path / f"{numbers.name}.sql").write_text(numbers.sql, "utf-8")
    assert await migrate(empty_database_url, tmp_path) == ["0007_numbers"]
    pool = await create_pool(DatabaseSettings(url=empty_database_url))
    keeper = PostgresKeeper(pool)
    counted = [await keeper.uncounted_records(shard, (9, 0), 8) for shard in range(3)]
    await pool.close()
    assert counted == [0, 4, 8]


async def test_what_the_release_before_compacts_and_records_keeps_its_numbers(
    store: WriteStore,
) -> None:
    """Its statements, word for word: it runs beside this release, and after a way back."""
    pool = the_pool(store)
    entries = [
        an_entry(an_order(), an_order(), counter=2, ms=NOW_MS),
        an_entry(an_order(), counter=3, ms=NOW_MS + 1),
        an_entry(an_order(), counter=4, ms=NOW_MS + 2),
        an_entry(an_order(), counter=5, ms=NOW_MS + 3),
    ]
    await store.commit(*entries)
    assert await pool.fetchval(COMPACT_BEFORE_NUMBERS, 0, *entries[2].entry, 20_000) == 2
    end = NOW_MS + 4, 0
    assert await store.keeper.uncounted_records(0, end, 5) == 0

    # What somebody deletes by hand stays missing.
    await pool.execute("DELETE FROM stream_entries WHERE counter = 5")
    assert await store.keeper.uncounted_records(0, end, 5) == 1

    assert await pool.fetchval(COMPACT_BEFORE_NUMBERS, 0, *end, 20_000) == 1
    assert await store.keeper.uncounted_records(0, end, 3) == -1
    gap = an_entry(counter=9, gap=(0, 9))
    columns = [[value] for value in (gap.batch_id.hex(), 0, *gap.entry, *(gap.gap or ()))]
    await pool.execute(RECORD_GAPS_BEFORE_NUMBERS, *columns)
    assert await pool.fetchval("SELECT records_found FROM gaps") == 4


async def test_failed_migration_leaves_nothing_of_itself(
    empty_database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE a (b int); SELECT 1 / 0")
    with pytest.raises(BadData):
        await migrate(empty_database_url, tmp_path)
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE a (b int)")
    assert await migrate(empty_database_url, tmp_path) == ["0001_first"]


async def test_pool_opens_while_the_database_is_away() -> None:
    pool = await create_pool(
        DatabaseSettings(url="postgresql://127.0.0.1:1/none", acquire_seconds_max=1)
    )
    with pytest.raises(Retryable):
        await pool.fetchval("SELECT 1")
    await pool.close()


async def test_a_server_that_says_nothing_is_away_and_not_busy_with_us() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/none"
        pool = await create_pool(
            DatabaseSettings(url=url, pool_size_max=1, acquire_seconds_max=0.2)
        )
        with pytest.raises(Retryable) as caught:
            await pool.fetchval("SELECT 1")
        assert not isinstance(caught.value, Busy)
        await pool.close()


async def test_wait_for_a_connection_is_bounded(database_url: str) -> None:
    pool = await create_pool(
        DatabaseSettings(url=database_url, pool_size_max=1, acquire_seconds_max=0.2)
    )
    async with pool.connection():
        with pytest.raises(Busy, match="free in time"):
            await pool.fetchval("SELECT 1")
    await pool.close()


async def test_old_connection_is_replaced(database_url: str) -> None:
    pool = await create_pool(
        DatabaseSettings(url=database_url, pool_size_max=1, connection_lifetime_seconds_max=1e-6)
    )
    pids = [await pool.fetchval("SELECT pg_backend_pid()") for _ in range(2)]
    assert pids[0] != pids[1]
    await pool.close()


async def test_everything_works_without_named_statements(database_url: str) -> None:
    async with a_write_store(database_url, statement_cache_size=0) as store:
        order = order_at(NOW_MS)
        await store.commit(an_entry(order))
        await store.commit(an_entry(order, order_at(NOW_MS)))
        assert await store.reader.find_order(0, order.order_id) is not None
        await store.keeper.ensure_partitions(NOW_MS + 5 * DAY_MS, 0)
        assert await store.keeper.apply_retention(NOW_MS + 5 * DAY_MS, 4)
        assert (await store.keeper.ledger_sums(0, None))["stored"] == 2


async def test_partitions_made_at_the_same_time_are_made_once(store: WriteStore) -> None:
    made = await asyncio.gather(*(store.keeper.ensure_partitions(NOW_MS, 3) for _ in range(3)))
    assert len([name for names in made for name in names]) == 5


async def test_writers_go_on_while_partitions_are_made_and_retired(store: WriteStore) -> None:
    days = [NOW_MS + day * DAY_MS for day in range(6)]

    async def write() -> None:
        for _ in range(10):
            await store.commit(an_entry(order_at(days[-1])))

    async def care() -> None:
        for now_ms in days:
            await store.keeper.ensure_partitions(now_ms, 2)
            await store.keeper.apply_retention(now_ms, 3)

    await asyncio.gather(write(), care())
    assert await the_pool(store).fetchval("SELECT count(*) FROM orders") == 10


async def test_retention_by_two_processes_at_once_is_done_by_one(store: WriteStore) -> None:
    await store.keeper.ensure_partitions(NOW_MS, 0)
    later = NOW_MS + 9 * DAY_MS
    done = await asyncio.gather(*(store.keeper.apply_retention(later, 3) for _ in range(2)))
    assert sorted(each for one in done for each in one) == [
        "detached orders_y2025m11d12",
        "detached orders_y2025m11d13",
    ]


async def test_retention_held_up_by_a_reader_is_finished_later(database_url: str) -> None:
    async with a_write_store(database_url, command_seconds_max=1) as store:
        await store.keeper.ensure_partitions(NOW_MS, 0)
        reader = await asyncpg.connect(database_url)
        await reader.execute("BEGIN; SELECT count(*) FROM orders")
        later = NOW_MS + 9 * DAY_MS
        with pytest.raises(Retryable):
            await store.keeper.apply_retention(later, 3)
        await reader.execute("COMMIT")
        await reader.close()
        done = await store.keeper.apply_retention(later, 3)
        assert sorted(done) == ["detached orders_y2025m11d12", "detached orders_y2025m11d13"]
        assert await store.keeper.partitions() == []


async def plan_of(store: WriteStore, query: str, *arguments: Any) -> tuple[set[str], set[str]]:
    """(tables, indexes) that a statement's plan reads."""
    source = await the_pool(store).fetchval(f"EXPLAIN (FORMAT JSON) {query}", *arguments)
    tables: set[str] = set()
    indexes: set[str] = set()

    def visit(node: dict[str, Any]) -> None:
        tables.update([node["Relation Name"]] if "Relation Name" in node else [])
        indexes.update([node["Index Name"]] if "Index Name" in node else [])
        for child in node.get("Plans", []):
            visit(child)

    visit(json.loads(source)[0]["Plan"])
    return tables, indexes


@pytest.fixture
async def filled(store: WriteStore) -> WriteStore:
    """Five days of orders, one in fifty of them late."""
    for day in range(5):
        at_ms = NOW_MS // DAY_MS * DAY_MS + day * DAY_MS
        orders = [
            order_at(
                at_ms + n * 40_000,
                ordered_at_us=(at_ms - 30 * DAY_MS) * 1000 if n % 50 == 0 else None,
            )
            for n in range(1000)
        ]
        await store.commit(an_entry(*orders))
    await the_pool(store).execute("ANALYZE orders")
    return store


async def test_order_by_id_reads_one_partition_by_its_key(filled: WriteStore) -> None:
    order_id = order_at(NOW_MS + DAY_MS).order_id
    # More often than a generic plan would need to take over.
    for _ in range(8):
        await filled.reader.find_order(0, order_id)
    tables, indexes = await plan_of(filled, FIND, order_id.hex(), 0)
    assert (tables, indexes) == ({"orders_y2025m11d14"}, {"orders_y2025m11d14_pkey"})


async def test_look_up_by_id_locks_one_partition_only(filled: WriteStore) -> None:
    order_id = order_at(NOW_MS + DAY_MS).order_id
    async with the_pool(filled).transaction() as connection:
        for _ in range(8):
            await connection.fetchrow(FIND, order_id.hex(), 0)
        locked = await connection.fetch(
            """SELECT DISTINCT relation::regclass::text AS name FROM pg_locks
            WHERE pid = pg_backend_pid() AND relation::regclass::text LIKE 'orders_y%d__'"""
        )
    assert [row["name"] for row in locked] == ["orders_y2025m11d14"]


async def test_on_time_orders_of_an_hour_are_read_by_id_range(filled: WriteStore) -> None:
    start = (NOW_MS + 2 * DAY_MS) // 3_600_000 * 3600
    low, high = id_range(start, start + 3600)
    tables, indexes = await plan_of(
        filled,
        "SELECT sum(price_minor) FROM orders WHERE order_id >= $1 AND order_id < $2 AND NOT is_late",
        low.hex(),
        high.hex(),
    )
    assert (tables, indexes) == ({"orders_y2025m11d15"}, {"orders_y2025m11d15_pkey"})


async def test_late_orders_of_an_hour_are_read_by_their_index(filled: WriteStore) -> None:
    _, indexes = await plan_of(
        filled,
        """SELECT sum(price_minor) FROM orders
        WHERE is_late AND ordered_at >= to_timestamp(1) AND ordered_at < to_timestamp(3601)""",
    )
    assert indexes == {f"orders_y2025m11d{day}_ordered_at_idx" for day in range(13, 18)}


async def test_recent_orders_are_read_backwards_along_the_key(filled: WriteStore) -> None:
    query, arguments = recent_query(0, 20, None, None)
    _, indexes = await plan_of(filled, query, *arguments)
    assert indexes
    assert all(name.endswith("_pkey") for name in indexes)


async def test_partition_has_at_most_three_indexes(filled: WriteStore) -> None:
    counts = await the_pool(filled).fetch(
        """SELECT count(x.indexrelid) AS indexes FROM pg_inherits AS i
        JOIN pg_index AS x ON x.indrelid = i.inhrelid
        WHERE i.inhparent = 'orders'::regclass GROUP BY i.inhrelid"""
    )
    assert counts
    assert all(row["indexes"] <= 3 for row in counts)
