"""What may happen inside PostgreSQL: read-only, out of connections, locked, killed in COPY, a day missing,
another server promoted."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg

from coffee_rt.embedded.launch import spawn
from coffee_rt.embedded.servers import EmbeddedPostgres, _postgres_bin
from tests.chaos.postgres import ChaosPostgres
from tests.chaos.proxy import Direction
from tests.chaos.scenario import World, scenario

FAULT_SECONDS = 10.0


@asynccontextmanager
async def session_of(world: World) -> AsyncIterator[Any]:
    """A session past the proxies, as the database's administrator."""
    connection = await asyncpg.connect(world.platform.postgres.url)
    try:
        yield connection
    finally:
        await connection.close(timeout=5)


@scenario("postgres-read-only", fault="PostgreSQL takes no writes")
async def postgres_read_only(world: World) -> None:
    async with session_of(world) as admin:
        await admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await admin.execute("SELECT pg_reload_conf()")
        await asyncio.sleep(FAULT_SECONDS)
        await admin.execute("SET default_transaction_read_only = off")
        await admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await admin.execute("SELECT pg_reload_conf()")


@scenario(
    "postgres-connections-exhausted", fault="every connection but ours closed, all slots taken"
)
async def postgres_connections_exhausted(world: World) -> None:
    taken: list[Any] = []
    deadline = asyncio.get_running_loop().time() + FAULT_SECONDS
    async with session_of(world) as admin:
        try:
            while asyncio.get_running_loop().time() < deadline:
                await admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name LIKE 'coffee-rt%'"
                )
                with suppress(asyncpg.TooManyConnectionsError):
                    while True:
                        taken.append(await asyncpg.connect(world.platform.postgres.url))
                await asyncio.sleep(0.2)
        finally:
            await asyncio.gather(*(each.close(timeout=5) for each in taken))


async def hold_lock(world: World, tables: str, mode: str, seconds: float) -> None:
    async with session_of(world) as forgotten, forgotten.transaction():
        await forgotten.execute(f"LOCK TABLE {tables} IN {mode} MODE")
        await asyncio.sleep(seconds)


@scenario("orders-locked", fault="a forgotten transaction holds ACCESS EXCLUSIVE on orders")
async def orders_locked(world: World) -> None:
    await hold_lock(world, "orders", "ACCESS EXCLUSIVE", FAULT_SECONDS)


@scenario(
    "lanes-locked", fault="a forgotten transaction holds ACCESS EXCLUSIVE on the views' lanes"
)
async def lanes_locked(world: World) -> None:
    await hold_lock(world, "view_lanes, view_catalogue", "ACCESS EXCLUSIVE", FAULT_SECONDS)


@scenario(
    "forgotten-reader",
    fault="a forgotten transaction holds ACCESS SHARE on all tables while partitions are made and dropped",
)
async def forgotten_reader(world: World) -> None:
    """A reader that never ends holds up what wants the table for itself; nobody may queue behind that."""
    async with session_of(world) as forgotten, session_of(world) as care:
        transaction = forgotten.transaction(isolation="repeatable_read")
        await transaction.start()
        await forgotten.execute("SELECT count(*) FROM orders")
        await forgotten.execute(
            "LOCK TABLE orders, stream_entries, view_lanes IN ACCESS SHARE MODE"
        )
        deadline = asyncio.get_running_loop().time() + FAULT_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            with suppress(asyncpg.LockNotAvailableError):
                await care.execute(
                    "BEGIN; SET LOCAL lock_timeout = '100ms'; LOCK TABLE orders; COMMIT"
                )
            with suppress(asyncpg.InFailedSQLTransactionError):
                await care.execute("ROLLBACK")
            await asyncio.sleep(0.5)
        await transaction.rollback()


@scenario(
    "backends-killed-mid-copy", fault="workers' backends terminated while they copy", smoke=True
)
async def backends_killed_mid_copy(world: World) -> None:
    for part, server in list(world.platform.links):
        if part.startswith("worker-") and server == "postgres":
            # So late that a COPY is waiting for its rows when we look.
            world.platform.link(part, server).latency(0.3, direction=Direction.TO_SERVER)
    killed = 0
    deadline = asyncio.get_running_loop().time() + FAULT_SECONDS
    async with session_of(world) as admin:
        while asyncio.get_running_loop().time() < deadline:
            killed += await admin.fetchval(
                "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE application_name LIKE 'coffee-rt%' AND query LIKE '%COPY%' AND pid <> pg_backend_pid()"
            )
            await asyncio.sleep(0.1)
    world.expect(killed > 0, "no COPY was met, so nothing was shown")
    world.figure("backends_killed", killed)


@scenario(
    "partition-missing",
    fault="today's partition taken away under load, given back later",
    alone=True,
)
async def partition_missing(world: World) -> None:
    async with session_of(world) as admin:
        today = await admin.fetchval(
            'SELECT to_char(now() AT TIME ZONE \'UTC\', \'"orders_y"YYYY"m"MM"d"DD\')'
        )
        async with admin.transaction():
            await admin.execute(f"ALTER TABLE orders DETACH PARTITION {today}")
            await admin.execute(f"ALTER TABLE {today} RENAME TO taken_away")
        await asyncio.sleep(FAULT_SECONDS)
        names = [
            row[0]
            for row in await admin.fetch(
                "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'orders'::regclass"
            )
        ]
        assert today in names, "the workers did not make the partition again"
        async with admin.transaction():
            await admin.execute("INSERT INTO orders SELECT * FROM taken_away")
            await admin.execute("DROP TABLE taken_away")


async def make_standby(world: World) -> ChaosPostgres:
    """A standby that follows the primary, on a port of its own."""
    primary = world.platform.postgres
    standby = ChaosPostgres(world.platform.folder / "standby", settings={})
    owner = primary.data_dir.stat()
    standby.data_dir.mkdir(mode=0o700)
    os.chown(standby.data_dir, owner.st_uid, owner.st_gid)
    command: list[str | Path] = [_postgres_bin() / "pg_basebackup", "-R", "-X", "stream"]
    command += ["-c", "fast", "-D", standby.data_dir, "-d", primary.url]
    backup = spawn(command, standby.log, user=(owner.st_uid, owner.st_gid))
    assert await asyncio.to_thread(backup.wait, 60) == 0, standby.log.read_text()
    shutil.copy(
        primary.data_dir.with_name("postgres.password"),
        standby.data_dir.with_name("standby.password"),
    )
    standby.launch()
    return standby


async def ask(server: EmbeddedPostgres, query: str) -> Any:
    connection = await asyncpg.connect(server.url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


@scenario(
    "standby-promoted",
    fault="PostgreSQL dies; a standby that lacks its last two seconds of commits is promoted",
    alone=True,
)
async def standby_promoted(world: World) -> None:
    """What was acknowledged to the log and lost with the primary comes back from the log."""
    platform = world.platform
    primary, standby = platform.postgres, await make_standby(world)
    async with session_of(world) as admin:
        async with asyncio.timeout(60):
            while not await admin.fetchval(  # noqa: ASYNC110
                "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
            ):
                await asyncio.sleep(0.1)
    await asyncio.sleep(2)
    # From here on the standby hears nothing more.
    await ask(standby, "ALTER SYSTEM SET primary_conninfo = ''")
    await ask(standby, "SELECT pg_reload_conf()")
    await asyncio.sleep(2)
    stored = await ask(primary, "SELECT count(*) FROM orders")
    await platform.kill("postgres")
    had = await ask(standby, "SELECT count(*) FROM orders")
    assert had < stored, "the standby lacked nothing, so nothing was shown"
    await asyncio.sleep(1)
    assert await ask(standby, "SELECT pg_promote()")
    platform.postgres = standby
