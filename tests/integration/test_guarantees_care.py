"""Promises of slow machinery: what the ledger may forget, whose clock counts, what a promotion changes."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from coffee_rt.domain.ids import id_time_ms, parse_id
from coffee_rt.embedded.server_process import TEST
from coffee_rt.embedded.servers import EmbeddedPostgres
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import SystemClock
from coffee_rt.runtime.lifecycle import Lifecycle
from coffee_rt.runtime.logs import get_log
from coffee_rt.runtime.settings import DatabaseSettings
from coffee_rt.store.contract import Committed
from coffee_rt.store.keeper import PostgresKeeper
from coffee_rt.store.migrations import migrate
from coffee_rt.store.orders import PostgresOrderWriter
from coffee_rt.store.pool import create_pool
from coffee_rt.streams.contract import ENTRY_ID_ZERO
from coffee_rt.worker.care import CareLimits, Caretaker
from coffee_rt.worker.decoding import EntryDecoder
from tests.integration import order_api_process
from tests.integration.order_api_process import ORDER, ORDERS, running_order_api
from tests.streams_bed import RedisBed, WrongClock, an_append
from tests.workers import until

pytestmark = pytest.mark.integration

EPOCH = "SELECT generation || view_epoch_suffix() FROM view_generation"


async def test_the_ledger_forgets_only_what_has_left_the_log(
    valkey_url: str, redis_namespace: str, database_url: str
) -> None:
    """An acknowledged entry that the log still holds comes again when its group is lost and made again:
    then its ledger row must still be there."""
    bed = RedisBed(valkey_url, redis_namespace)
    pool = await create_pool(DatabaseSettings(url=database_url))
    writer, keeper, reader = PostgresOrderWriter(pool), bed.keeper(), bed.reader()
    clock = SystemClock()

    def breaker(name: str) -> CircuitBreaker:
        return CircuitBreaker(name, clock=clock)

    care = Caretaker(
        log_keeper=keeper,
        store_keeper=PostgresKeeper(pool),
        log_breaker=breaker("redis"),
        store_breaker=breaker("postgresql"),
        clock=clock,
        log=get_log("test"),
        limits=CareLimits(compact_margin_seconds=0),
    )

    async def store_next() -> Committed:
        [delivery] = await reader.read(0, 1, 1.0)
        entry = EntryDecoder(400).decode(delivery, int(time.time() * 1000))
        committed = await writer.commit(writer.prepare([entry]))
        await reader.acknowledge(0, [delivery])
        return committed

    async def ledger_rows() -> int:
        return int(await pool.fetchval("SELECT count(*) FROM stream_entries"))

    try:
        await keeper.ensure_group("workers")
        producer = bed.producer()
        await producer.start()
        for _ in range(2):
            await producer.append(0, an_append(producer))
            assert not (await store_next()).outcomes[0].seen_before
            await asyncio.sleep(0.005)  # The next entry is of a later millisecond.
        await care.compact()
        assert await ledger_rows() == 2
        await bed.destroy_group(0, "workers")
        assert await reader.read(0, 1, 0.01) == []  # Finds the group lost and makes it again.
        assert (await store_next()).outcomes[0].seen_before
        assert (await store_next()).outcomes[0].seen_before

        async def is_trimmed() -> bool:
            await keeper.trim(0, 0)
            return (await keeper.horizon(0)).first_entry is None

        await until(is_trimmed)
        await care.compact()
        assert await ledger_rows() == 1
        sums = await PostgresKeeper(pool).ledger_sums(0, None)
        assert (sums["entries"], sums["stored"]) == (2, 2)
    finally:
        await bed.close()
        await pool.close()


async def test_a_group_set_back_brings_back_what_postgresql_lost(
    valkey_url: str, redis_namespace: str, database_url: str
) -> None:
    """What an administrator does after a restore: acknowledged entries come again, and only the missing
    ones are stored."""
    bed = RedisBed(valkey_url, redis_namespace)
    pool = await create_pool(DatabaseSettings(url=database_url))
    writer, keeper, reader = PostgresOrderWriter(pool), bed.keeper(), bed.reader()

    async def store_all() -> list[bool]:
        """Whether each entry that is read was seen before."""
        deliveries = await reader.read(0, 10, 0.5)
        now_ms = int(time.time() * 1000)
        entries = [EntryDecoder(400).decode(delivery, now_ms) for delivery in deliveries]
        committed = await writer.commit(writer.prepare(entries))
        await reader.acknowledge(0, deliveries)
        return [outcome.seen_before for outcome in committed.outcomes]

    try:
        await keeper.ensure_group("workers")
        producer = bed.producer()
        await producer.start()
        appends = [an_append(producer) for _ in range(3)]
        for append in appends:
            await producer.append(0, append)
        assert await store_all() == [False, False, False]
        # The newest commit is gone, as with a standby that had not received it.
        lost = appends[2].order_id.hex()
        batch = await pool.fetchval("SELECT batch_id FROM orders WHERE order_id = $1", lost)
        await pool.execute("DELETE FROM orders WHERE order_id = $1", lost)
        await pool.execute("DELETE FROM stream_entries WHERE batch_id = $1", batch)
        await bed.set_group_back(0, "workers", ENTRY_ID_ZERO)
        assert await store_all() == [True, True, False]
        assert await pool.fetchval("SELECT count(*) FROM orders") == 3
    finally:
        await bed.close()
        await pool.close()


async def test_a_process_off_rediss_clock_is_not_ready_and_mints_ids_by_rediss(
    valkey_url: str, redis_namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = partial(Lifecycle, clock=WrongClock(6.0))
    monkeypatch.setattr(order_api_process, "Lifecycle", wrong)
    async with running_order_api(valkey_url, redis_namespace, is_awaited=False) as api:

        async def is_told() -> bool:
            components = (await api.request("GET", "/readyz")).json["components"]
            return "clock" in components and not components["clock"]["ready"]

        await until(is_told)
        ready = await api.request("GET", "/readyz")
        assert ready.status == 503
        assert ready.json["components"]["log"]["ready"]
        reply = await api.post(ORDERS, ORDER)
        minted_ms = id_time_ms(parse_id(reply.json["order_id"]))
        assert abs(minted_ms - time.time() * 1000) < 1000


async def test_a_promoted_standby_begins_another_epoch(tmp_path: Path) -> None:
    """Versions of the old primary mean nothing on the new one, so every browser must start again."""
    primary = EmbeddedPostgres(tmp_path / "primary", durability=TEST)
    standby = EmbeddedPostgres(tmp_path / "standby", durability=TEST)
    try:
        primary.start()
        await migrate(primary.url)
        before = await _query(primary.url, EPOCH)
        await asyncio.to_thread(primary.stop)
        # An offline copy is a base backup; ownership matters, so not shutil.
        copy = ["cp", "-a", str(primary.data_dir), str(standby.data_dir)]
        await asyncio.to_thread(subprocess.run, copy, check=True)
        shutil.copy(tmp_path / "primary.password", tmp_path / "standby.password")
        (standby.data_dir / "standby.signal").touch()
        standby.launch()
        await until(partial(_is_recovering, standby.url), 30)
        assert await _query(standby.url, EPOCH) == before
        assert await _query(standby.url, "SELECT pg_promote()")
        after = await _query(standby.url, EPOCH)
        assert after != before
        assert after.split(".")[:2] == before.split(".")[:2]
    finally:
        primary.stop()
        standby.stop()


async def _query(url: str, query: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        return str(await connection.fetchval(query))
    finally:
        await connection.close()


async def _is_recovering(url: str) -> bool:
    try:
        return await _query(url, "SELECT pg_is_in_recovery()") == "True"
    except (OSError, asyncpg.PostgresError):
        return False
