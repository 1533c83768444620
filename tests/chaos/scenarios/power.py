"""Power cuts of Valkey: each fdatasync is held up, and what was not synced is gone (see tests/chaos/valkey.py).

Workers are down meanwhile: what they had stored would not be lost, whatever becomes of the log.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from tests.chaos.notes import Load
from tests.chaos.platform import Shape
from tests.chaos.scenario import World, scenario
from tests.chaos.valkey import synced_bytes

SLOW = Load(rate=60, timeout_seconds=10)


async def cut_power(
    world: World, delay_seconds: float, load_seconds: float, *, is_sure: bool
) -> int:
    """Run Valkey with slow syncs under load, cut its power, bring it back; bytes that were not on disk."""
    valkey = world.platform.valkey
    await world.platform.kill("valkey")
    size = valkey.append_file.stat().st_size
    valkey.trace.unlink(missing_ok=True)
    valkey.is_traced, valkey.sync_delay_seconds = True, delay_seconds
    await world.platform.start_part("valkey")
    await world.accepted(20)
    await world.sleep(load_seconds)
    await world.platform.kill("valkey")
    # strace writes its last lines on its way out, killed with the rest: what it kept is short, never long.
    durable = synced_bytes(await _text(valkey.trace), size, is_sure=is_sure)
    cut = valkey.append_file.stat().st_size - durable
    world.say(f"power cut: {cut} of {cut + durable - size} bytes were not on disk")
    os.truncate(valkey.append_file, durable)
    valkey.is_traced, valkey.sync_delay_seconds = False, 0.0
    await world.platform.start_part("valkey")
    return cut


async def _text(path: Path) -> str:
    return await asyncio.to_thread(path.read_text, errors="replace")


async def stop_workers(world: World) -> None:
    for name in ("worker-1", "worker-2"):
        await world.platform.kill(name)


@scenario(
    "power-cut",
    fault="fdatasync held up 0.3 s, then a power cut of Valkey, twice (appendfsync always)",
    load=SLOW,
    alone=True,
    smoke=True,
)
async def power_cut(world: World) -> None:
    async with world.fault():
        await stop_workers(world)
        cut = 0
        for _ in range(2):
            cut += await cut_power(world, 0.3, world.chance.uniform(2, 3), is_sure=True)
    world.figure("bytes_cut", cut)


@scenario(
    "power-cut-everysec",
    fault="the same with appendfsync everysec, fdatasync held up 6 s",
    shape=Shape(valkey=(("appendfsync", "everysec"),)),
    load=SLOW,
    alone=True,
    negative_control=True,
    smoke=True,
)
async def power_cut_everysec(world: World) -> None:
    world.expected.is_loss_allowed = True
    async with world.fault():
        await stop_workers(world)
        cut = await cut_power(world, 6, 8, is_sure=False)
    world.figure("bytes_cut", cut)
