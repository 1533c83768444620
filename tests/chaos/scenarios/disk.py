"""What may happen to a disk: full, slow, failing, its last write torn, a bit flipped.

Full disks are small tmpfs mounts made for the scenario (root only), never the machine's own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg

from coffee_rt.embedded.server_process import Server, ServerProblem
from tests.chaos.scenario import World, scenario

MEGABYTE = 1 << 20
FAULT_SECONDS = 8.0
SLOW_SYNC_SECONDS = 0.15

_OUR_SESSIONS = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'coffee-rt%'"


async def run(*command: str | Path) -> None:
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)


@asynccontextmanager
async def small_disk(world: World, server: str, megabytes: int) -> AsyncIterator[Path]:
    """Put a server's data on a small disk of its own, and back in the end. The server is stopped for both."""
    folder = world.platform.servers[server].data_dir
    kept = folder.with_name(folder.name + ".kept")
    await world.platform.stop_server(server)
    folder.rename(kept)
    owner = kept.stat()
    folder.mkdir(mode=0o700)
    await run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", folder)
    try:
        os.chown(folder, owner.st_uid, owner.st_gid)
        await run("cp", "-a", f"{kept}/.", folder)
        await world.platform.start_part(server)
        yield folder
        (folder / "filler").unlink(missing_ok=True)
        if world.platform.servers[server].is_running:
            await world.platform.stop_server(server)
        await run("rm", "-rf", kept)
        kept.mkdir(mode=0o700)
        os.chown(kept, owner.st_uid, owner.st_gid)
        await run("cp", "-a", f"{folder}/.", kept)
    finally:
        await world.platform.kill(server)
        await run("umount", folder)
        folder.rmdir()
        kept.rename(folder)
        await world.platform.start_part(server)


def fill(folder: Path, but_bytes: int) -> None:
    """Leave so many bytes of the disk."""
    free = os.statvfs(folder)
    size = free.f_bavail * free.f_frsize - but_bytes
    descriptor = os.open(folder / "filler", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


async def start_until_it_stays(world: World, name: str, seconds: float) -> int:
    """What a supervisor does: start a server again each time it ends. How often it ended."""
    server: Server = world.platform.servers[name]
    ends = 0
    deadline = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < deadline:
        if not server.is_running:
            ends += 1
            with suppress(ServerProblem):
                await asyncio.to_thread(server.stop)
                server.launch()
        await asyncio.sleep(0.5)
    return ends


@scenario(
    "redis-disk-full",
    fault="Redis's disk is full; with fsync always it ends itself rather than lie",
    alone=True,
)
async def redis_disk_full(world: World) -> None:
    async with small_disk(world, "valkey", 64) as folder:
        await asyncio.sleep(2)
        fill(folder, 16 * 1024)
        ends = await start_until_it_stays(world, "valkey", FAULT_SECONDS)
        assert ends > 0, "Redis did not notice that its disk is full"
        (folder / "filler").unlink()
        await start_until_it_stays(world, "valkey", 3)


@scenario(
    "postgres-disk-full",
    fault="PostgreSQL's disk is full: no more write-ahead log, no more rows",
    alone=True,
)
async def postgres_disk_full(world: World) -> None:
    async with small_disk(world, "postgres", 256) as folder:
        await asyncio.sleep(2)
        fill(folder, 64 * 1024)
        await start_until_it_stays(world, "postgres", FAULT_SECONDS)
        (folder / "filler").unlink()
        await start_until_it_stays(world, "postgres", 3)


@scenario(
    "slow-disks",
    fault=f"every fdatasync of both servers takes {SLOW_SYNC_SECONDS} s more",
    alone=True,
)
async def slow_disks(world: World) -> None:
    platform = world.platform

    async def restart(delay_seconds: float) -> None:
        # strace stands before the server: asked to end it would leave it to itself.
        await platform.kill("valkey")
        await platform.stop_server("postgres")
        platform.valkey.is_traced = bool(delay_seconds)
        platform.valkey.sync_delay_seconds = delay_seconds
        slow = f"fdatasync:delay_enter={int(delay_seconds * 1_000_000)}"
        platform.postgres.faults = (slow,) if delay_seconds else None
        for name in ("postgres", "valkey"):
            await platform.start_part(name)

    async with world.fault():
        await restart(SLOW_SYNC_SECONDS)
        await world.accepted(100)
        await world.sleep(FAULT_SECONDS)
        await restart(0.0)


@asynccontextmanager
async def failing_disk(world: World) -> AsyncIterator[None]:
    """Every other write of our sessions to a file of the database fails. Not to its log: that is a crash, and another
    scenario."""
    postgres = world.platform.postgres
    connection = await asyncpg.connect(postgres.url)
    sessions = await connection.fetch(_OUR_SESSIONS)
    await connection.close()
    strace = shutil.which("strace")
    if strace is None:
        raise RuntimeError("strace is missing. On Debian: apt-get install strace")
    calls = "pwrite64,pwritev,fallocate"
    options = ["-qq", "-o", "/dev/null", "-e", f"trace={calls}"]
    options += ["-e", f"inject={calls}:error=EIO:when=1+2"]
    for file in (postgres.data_dir / "base").rglob("*"):
        options += ["-P", str(file)]
    for session in sessions:
        options += ["-p", str(session["pid"])]
    tracer = await asyncio.create_subprocess_exec(strace, *options)
    try:
        yield
    finally:
        tracer.terminate()
        await tracer.wait()


@scenario(
    "postgres-disk-errors",
    fault="every other write of our sessions to a file of PostgreSQL's fails (EIO)",
    alone=True,
)
async def postgres_disk_errors(world: World) -> None:
    async with world.fault(), failing_disk(world):
        await world.sleep(FAULT_SECONDS)
    errors = world.platform.postgres.log.read_text().count("Input/output error")
    world.figure("disk_errors", errors)
    world.expect(errors > 0, "nothing was to be written, so nothing was shown")


@scenario(
    "append-only-file-torn",
    fault="Redis dies in the middle of writing its last entry",
    alone=True,
)
async def append_only_file_torn(world: World) -> None:
    """The torn entry was never answered; the server cuts it off and goes on."""
    platform = world.platform
    await platform.kill("valkey")
    with platform.valkey.append_file.open("ab") as file:
        file.write(b"*14\r\n$4\r\nXADD\r\n$26\r\ncoffee-rt:orders:{0}:str")
    await asyncio.sleep(1)
    await platform.start_part("valkey")
    told = platform.valkey.log.read_text().lower()
    world.expect("truncat" in told, "the server said nothing of the torn entry")


@scenario(
    "append-only-file-flipped",
    fault="one bit of the append-only file's structure is flipped",
    alone=True,
)
async def append_only_file_flipped(world: World) -> None:
    """The server refuses to start rather than to go on with less; with the bit mended all is there."""
    platform = world.platform
    # Stored by then or not: the file holds both.
    await platform.kill("valkey")
    place, good = _flip_a_length(platform.valkey.append_file)
    refusal = ""
    try:
        await asyncio.to_thread(platform.valkey.start)
    except ServerProblem as problem:
        refusal = str(problem)
    world.expect("Bad file format" in refusal, "the server took a damaged file for a whole one")
    await asyncio.to_thread(platform.valkey.stop)
    with platform.valkey.append_file.open("r+b") as file:
        file.seek(place)
        file.write(good)
    await platform.start_part("valkey")


def _flip_a_length(file: Path) -> tuple[int, bytes]:
    """Flip a bit of the mark of a length in the middle of the file; where, and what was there."""
    data = file.read_bytes()
    place = data.index(b"\r\n$", len(data) // 2) + 2
    with file.open("r+b") as stream:
        stream.seek(place)
        stream.write(bytes([data[place] ^ 1]))
    return place, data[place : place + 1]
