"""Aggregator processes on real servers: woken, sharing, killed, restarted."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from coffee_rt.aggregator import repair
from coffee_rt.channels.messages import (
    Beacon,
    Stored,
    StoredEntry,
    ViewChange,
    decode_beacon,
    decode_view_change,
    encode,
)
from coffee_rt.channels.redis import RedisChannels
from coffee_rt.conservation.audit import AuditRequest, Installation, read_instant, run_audit
from coffee_rt.domain.orders import Order
from coffee_rt.errors import Rejected
from coffee_rt.runtime.settings import DatabaseSettings, RedisSettings
from coffee_rt.store.orders import PostgresOrderWriter
from coffee_rt.store.pool import Pool
from coffee_rt.store.view_fold import PostgresViewFolder
from tests.store_harness import an_entry
from tests.view_writing import (
    a_pool,
    ensure_partition,
    expected_rows,
    live_view,
    some_orders,
    stored_rows,
)

pytestmark = pytest.mark.integration

VIEW = """
name: sales
bucket: hour
dimensions: [store, drink]
measures: {orders: count, revenue: {sum: revenue}, least: {min: price}}
retention_days: 36500
lanes: 8
"""


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    """Wait for a condition, looking often."""
    async with asyncio.timeout(seconds):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.02)


@dataclass
class Bed:
    """Servers, a folder of views, a writer, and what the processes publish."""

    database_url: str
    redis_url: str
    namespace: str
    folder: Path
    pool: Pool
    channels: RedisChannels
    writer: PostgresOrderWriter
    stack: AsyncExitStack
    changes: list[ViewChange] = field(default_factory=list)
    beacons: list[Beacon] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)

    async def start(self, instance: str, **settings: str) -> asyncio.subprocess.Process:
        """Start an aggregator; killed at the end of the test at the latest."""
        environ = {
            "PATH": os.environ["PATH"],
            "COFFEE_RT_DATABASE_URL": self.database_url,
            "COFFEE_RT_REDIS_URL": self.redis_url,
            "COFFEE_RT_NAMESPACE": self.namespace,
            "COFFEE_RT_INSTANCE": instance,
            "COFFEE_RT_HTTP_PORT": "0",
            "COFFEE_RT_AGGREGATOR_VIEWS_DIR": str(self.folder),
        } | settings
        command = "import sys; from coffee_rt.aggregator.main import run; sys.exit(run())"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", command, env=environ, stdout=asyncio.subprocess.DEVNULL
        )
        self.stack.push_async_callback(_end, process)
        return process

    async def commit(self, orders: list[Order], *, is_told: bool = True) -> None:
        """What a worker does: commit, then tell."""
        entry = an_entry(*orders)
        committed = await self.writer.commit(self.writer.prepare([entry]))
        self.orders += orders
        if is_told:
            told = Stored(
                committed.xid, [StoredEntry(0, "1-1", entry.batch_id)], committed.touched_lanes
            )
            await self.channels.publish("stored", encode(told))

    async def are_views_right(self) -> bool:
        view = await live_view(self.pool)
        return await stored_rows(self.pool, view) == expected_rows(view.definition, self.orders)

    async def is_filled(self) -> bool:
        states = (
            "SELECT count(*) FILTER (WHERE backfilled_to IS NULL), count(*) FROM view_catalogue"
        )
        filled, number = await self.pool.fetchrow(states)
        return bool(number and filled == number)

    async def listen(self) -> None:
        async with self.channels.subscribe("view:sales", "beacon") as subscription:
            async for message in subscription:
                if message is None:
                    continue
                topic, body = message
                if topic == "beacon":
                    self.beacons.append(decode_beacon(body))
                else:
                    self.changes.append(decode_view_change(body))


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


@asynccontextmanager
async def a_bed(
    database_url: str, valkey_url: str, namespace: str, folder: Path
) -> AsyncIterator[Bed]:
    (folder / "sales.yaml").write_text(VIEW)
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(a_pool(database_url))
        await ensure_partition(pool)
        channels = RedisChannels(valkey_url, namespace=namespace)
        stack.push_async_callback(channels.close)
        bed = Bed(
            database_url,
            valkey_url,
            namespace,
            folder,
            pool,
            channels,
            PostgresOrderWriter(pool),
            stack,
        )
        listener = asyncio.create_task(bed.listen())
        stack.callback(listener.cancel)
        yield bed


@pytest.fixture
async def bed(
    database_url: str, valkey_url: str, redis_namespace: str, tmp_path: Path
) -> AsyncIterator[Bed]:
    async with a_bed(database_url, valkey_url, redis_namespace, tmp_path) as made:
        yield made


async def test_commits_are_folded_and_published_and_the_process_drains(bed: Bed) -> None:
    process = await bed.start("one")
    await until(bed.is_filled)
    for seed in range(5):
        await bed.commit(some_orders(20, seed=seed))
    await until(bed.are_views_right)
    view = await live_view(bed.pool)

    async def are_changes_told() -> bool:
        rows = {
            (row["tenant"], row["bucket"], row["store"], row["drink"]): [
                row["orders"],
                row["revenue"],
                row["least"],
            ]
            for change in sorted(bed.changes, key=lambda change: change.version)
            for row in change.rows
        }
        return rows == expected_rows(view.definition, bed.orders)

    await until(are_changes_told)
    xid = int(await bed.pool.fetchval("SELECT pg_snapshot_xmin(pg_current_snapshot())::text"))

    async def do_floors_rise() -> bool:
        floors = [lane.floor for lane in bed.beacons[-1].lanes["sales"]] if bed.beacons else [0]
        return min(floors) >= xid

    await until(do_floors_rise)
    assert bed.beacons[-1].epochs["sales"] == view.epoch
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 10) == 0
    assert await bed.pool.fetchval("SELECT count(*) FROM heartbeats") == 0


async def test_deltas_nobody_told_of_are_folded_by_polling(bed: Bed) -> None:
    await bed.start("one")
    await until(bed.is_filled)
    await bed.commit(some_orders(20), is_told=False)
    await until(bed.are_views_right)


async def test_folding_goes_on_while_redis_is_away(bed: Bed) -> None:
    await bed.start("one", COFFEE_RT_REDIS_URL="redis://127.0.0.1:1/0")
    await until(bed.is_filled)
    for seed in range(3):
        await bed.commit(some_orders(20, seed=seed))
        await until(bed.are_views_right)


async def test_two_instances_share_and_a_killed_ones_lanes_are_taken_over(bed: Bed) -> None:
    first = await bed.start("one")
    await bed.start("two")

    async def do_both_live() -> bool:
        return bool(await bed.pool.fetchval("SELECT count(*) = 2 FROM heartbeats"))

    await until(bed.is_filled)
    await until(do_both_live)
    is_over = asyncio.Event()

    async def write() -> None:
        seed = 0
        while not is_over.is_set():
            await bed.commit(some_orders(10, seed=seed))
            seed += 1
            await asyncio.sleep(0.02)

    writing = asyncio.create_task(write())

    async def is_every_lane_told() -> bool:
        return {change.lane for change in bed.changes} == set(range(8))

    await until(is_every_lane_told)
    first.kill()
    await first.wait()
    killed_at = asyncio.get_running_loop().time()

    before = {(change.lane, change.version) for change in bed.changes}
    lanes = {lane for lane, _ in before}

    async def is_every_lane_alive() -> bool:
        fresh = {
            change.lane for change in bed.changes if (change.lane, change.version) not in before
        }
        return fresh >= lanes

    await until(is_every_lane_alive)
    taken_over_seconds = asyncio.get_running_loop().time() - killed_at
    is_over.set()
    await writing
    await until(bed.are_views_right)
    assert taken_over_seconds < 3.0
    versions = [(change.lane, change.version) for change in bed.changes]
    assert len(versions) == len(set(versions))


async def test_a_view_added_later_is_filled_while_orders_flow_and_across_a_restart(
    bed: Bed,
) -> None:
    (bed.folder / "sales.yaml").rename(bed.folder / "sales.off")
    first = await bed.start("one")
    await until(bed.is_filled)
    for seed in range(20):
        await bed.commit(some_orders(50, seed=seed, hours=120))
    first.terminate()
    assert await asyncio.wait_for(first.wait(), 10) == 0
    (bed.folder / "sales.off").rename(bed.folder / "sales.yaml")
    # A long pause after each chunk makes sure that the kill comes amid the backfill.
    second = await bed.start("two", COFFEE_RT_AGGREGATOR_BACKFILL_PAUSE_SHARE="50")

    async def is_under_way() -> bool:
        filled_to = await bed.pool.fetchval(
            "SELECT backfilled_to FROM view_catalogue WHERE name = 'sales'"
        )
        return bool(filled_to)

    await until(is_under_way)
    second.kill()
    await second.wait()
    assert not await bed.is_filled()
    await bed.start("three")
    for seed in range(20, 30):
        await bed.commit(some_orders(10, seed=seed))
    await until(bed.is_filled)
    await until(bed.are_views_right)


async def test_a_changed_definition_replaces_the_view_while_orders_flow(bed: Bed) -> None:
    first = await bed.start("one")
    await until(bed.is_filled)
    await bed.commit(some_orders(50))
    first.terminate()
    await first.wait()
    (bed.folder / "sales.yaml").write_text(VIEW.replace("[store, drink]", "[drink]"))
    await bed.start("one")
    await bed.commit(some_orders(50, seed=2))

    async def is_replaced() -> bool:
        return (await live_view(bed.pool)).definition.dimensions == ("drink",)

    await until(is_replaced)
    await bed.commit(some_orders(50, seed=3))
    await until(bed.are_views_right)


async def test_a_view_whose_file_is_gone_is_kept_until_it_is_dropped(
    bed: Bed, capsys: pytest.CaptureFixture[str]
) -> None:
    first = await bed.start("one")
    await until(bed.is_filled)
    first.terminate()
    await first.wait()
    (bed.folder / "sales.yaml").unlink()
    await bed.start("one")
    await bed.commit(some_orders(50))
    await until(bed.are_views_right)
    database = DatabaseSettings(url=bed.database_url)
    assert await repair.run_drop_view("sales", database) == 0
    assert "sales is dropped" in capsys.readouterr().out
    with pytest.raises(Rejected, match="there is no view"):
        await repair.run_drop_view("sales", database)
    # The folding of the others goes on.
    await bed.commit(some_orders(50, seed=2))

    async def is_all_folded() -> bool:
        return not await PostgresViewFolder(bed.pool).waiting_lanes()

    await until(is_all_folded)


async def test_a_bad_definition_does_not_start(bed: Bed) -> None:
    (bed.folder / "bad.yaml").write_text("name: bad\nbucket: week\nmeasures: {n: count}\n")
    process = await bed.start("one")
    assert await asyncio.wait_for(process.wait(), 20) == 2


async def audit_of(bed: Bed, *views: str, **request: int | None) -> int:
    """Exit code of `coffee-rt audit VIEW...`, with one connection; the log is not asked."""
    installation = Installation(
        RedisSettings(),
        DatabaseSettings(url=bed.database_url, pool_size_max=1),
        "coffee-rt",
        1,
    )
    asked: dict[str, Any] = {"is_log": False, "views": views, **request}
    return await run_audit(AuditRequest(**asked), installation)


async def test_rebuild_and_audit_commands(bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    database = DatabaseSettings(url=bed.database_url)
    await bed.start("one")
    await until(bed.is_filled)
    await bed.commit(some_orders(50))
    await until(bed.are_views_right)
    assert await audit_of(bed, "sales") == 0
    view = await live_view(bed.pool)
    await bed.pool.execute(f"UPDATE mv_{view.internal} SET revenue = revenue + 1")
    assert await audit_of(bed, "sales") == 1
    assert "the view has" in capsys.readouterr().out
    assert await audit_of(bed, "sales", start=read_instant("2999-01-01", "since")) == 0
    assert await audit_of(bed, "sales", views_start=read_instant("2999-01-01", "since")) == 0
    assert await audit_of(bed, "sales", views_start=0) == 1
    assert await repair.run_rebuild("sales", None, None, database) == 0
    assert await audit_of(bed, "sales") == 0
    assert await audit_of(bed, "nothing") == 2
    assert "known are" in capsys.readouterr().out
    with pytest.raises(Rejected, match="--since"):
        read_instant("yesterday", "since")
    assert read_instant("7d", "since", lambda: 700_000.5) == 700_000 - 7 * 86_400
