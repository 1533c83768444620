"""Power cuts of PostgreSQL: what of its write-ahead log was not synced is gone (see tests/chaos/postgres.py).

An entry is acknowledged to the log only after a COMMIT that was on disk; what a power cut takes is stored again from there.
"""

from __future__ import annotations

import asyncio

from tests.chaos.platform import Shape
from tests.chaos.scenario import World, scenario

FORGETFUL = (
    ("fsync", "off"),
    # Else pages of what is forgotten may be on disk, and the server finds its data damaged.
    ("bgwriter_lru_maxpages", "0"),
)


async def cut_power(world: World, load_seconds: float, *faults: str) -> int:
    """Run PostgreSQL with bad syncs under load, cut its power, bring it back; bytes of log that were not on disk."""
    platform, postgres = world.platform, world.platform.postgres
    await platform.stop_server("postgres")
    before = await asyncio.to_thread(postgres.read_segments)
    postgres.faults = faults
    await platform.start_part("postgres")
    await world.accepted(20)
    await world.sleep(load_seconds)
    await platform.kill("postgres")
    cut = await asyncio.to_thread(postgres.cut_back, before)
    world.say(f"power cut: {cut} bytes of the write-ahead log were not on disk")
    postgres.faults = None
    await platform.start_part("postgres")
    return cut


@scenario(
    "power-cut-postgres",
    fault="fdatasync of the write-ahead log held up 0.3 s, then a power cut of PostgreSQL, twice",
    alone=True,
)
async def power_cut_postgres(world: World) -> None:
    async with world.fault():
        cut = 0
        for _ in range(2):
            cut += await cut_power(
                world, world.chance.uniform(3, 5), "fdatasync:delay_enter=300000"
            )
    world.figure("bytes_cut", cut)
    world.expect(cut > 0, "nothing was cut off, so nothing was shown")


@scenario(
    "power-cut-postgres-asynchronous",
    fault="the same with synchronous_commit = off on the server: what must not be lost says so itself",
    shape=Shape(postgres=(("synchronous_commit", "off"),)),
    alone=True,
)
async def power_cut_postgres_asynchronous(world: World) -> None:
    await power_cut_postgres(world)


@scenario(
    "postgres-sync-fails",
    fault="every fifth fdatasync of a session fails (EIO): PostgreSQL panics, again and again; then a power cut",
    alone=True,
)
async def postgres_sync_fails(world: World) -> None:
    async with world.fault():
        world.figure("bytes_cut", await cut_power(world, 8, "fdatasync:error=EIO:when=5+5"))
    panics = world.platform.postgres.log.read_text().count("PANIC:")
    world.figure("panics", panics)
    world.expect(panics > 0, "no sync failed, so nothing was shown")


@scenario(
    "power-cut-postgres-unsynced",
    fault="a power cut of a PostgreSQL with fsync = off",
    shape=Shape(postgres=FORGETFUL),
    alone=True,
    negative_control=True,
)
async def power_cut_postgres_unsynced(world: World) -> None:
    world.expected.is_loss_allowed = world.expected.is_history_lost = True
    async with world.fault():
        cut = await cut_power(world, 5)
    world.figure("bytes_cut", cut)
