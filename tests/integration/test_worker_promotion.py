"""A standby that lacked the last commits is promoted: the worker has the log bring them back."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from coffee_rt.embedded.server_process import TEST
from coffee_rt.embedded.servers import EmbeddedPostgres
from coffee_rt.runtime.settings import DatabaseSettings
from coffee_rt.store.migrations import migrate
from tests.integration.test_worker import Bed, orders
from tests.workers import until

pytestmark = pytest.mark.integration


async def test_what_a_promoted_standby_lacked_comes_back_exactly_once(
    valkey_url: str, redis_namespace: str, tmp_path: Path
) -> None:
    primary = EmbeddedPostgres(tmp_path / "primary", durability=TEST)
    standby = EmbeddedPostgres(tmp_path / "standby", durability=TEST)
    try:
        primary.start()
        await migrate(primary.url)
        bed = Bed(valkey_url, primary.url, redis_namespace)
        await bed.open()
        had, lacked, later = orders(50), orders(70), orders(30)
        await bed.append(had)
        async with bed.worker():
            await bed.wait_stored(had)
        await bed.connection.close()
        await asyncio.to_thread(primary.stop)
        await asyncio.to_thread(_copy, primary, standby)
        primary.start()
        await bed.reconnect()
        await bed.append(lacked[:40], shard=0)
        await bed.append(lacked[40:], shard=1)
        async with bed.worker():
            await bed.wait_stored([*had, *lacked])
        await bed.connection.close()
        await asyncio.to_thread(primary.stop)

        await _promote(standby)
        bed.database = DatabaseSettings(url=standby.url)
        await bed.reconnect()
        assert len(await bed.stored()) == len(had)
        await bed.append(later)
        everything = [*had, *lacked, *later]
        async with bed.worker("w2"):
            await bed.wait_stored(everything)
        stored = await bed.connection.fetchval("SELECT sum(stored) FROM stream_entries")
        assert {stored, *await bed.count_in_views()} == {len(everything)}
        # Told once, it is known: the next start repeats nothing.
        seen_again = "SELECT sum(redeliveries) FROM stream_entries"
        before = await bed.connection.fetchval(seen_again)
        async with bed.worker("w3"):
            await bed.append(extra := orders(1))
            await bed.wait_stored([*everything, *extra])
        assert await bed.connection.fetchval(seen_again) == before
        await bed.close()
    finally:
        primary.stop()
        standby.stop()


def _copy(primary: EmbeddedPostgres, standby: EmbeddedPostgres) -> None:
    # An offline copy is a base backup; ownership matters, so not shutil.
    subprocess.run(["cp", "-a", str(primary.data_dir), str(standby.data_dir)], check=True)
    password = primary.data_dir.with_name("primary.password")
    shutil.copy(password, standby.data_dir.with_name("standby.password"))
    (standby.data_dir / "standby.signal").touch()


async def _promote(standby: EmbeddedPostgres) -> None:
    standby.launch()
    await until(partial(_is_in_recovery, standby.url), 30)
    connection = await asyncpg.connect(standby.url)
    assert await connection.fetchval("SELECT pg_promote()")
    await connection.close()


async def _is_in_recovery(url: str) -> bool:
    try:
        connection = await asyncpg.connect(url)
    except (OSError, asyncpg.PostgresError):
        return False
    try:
        return bool(await connection.fetchval("SELECT pg_is_in_recovery()"))
    finally:
        await connection.close()
