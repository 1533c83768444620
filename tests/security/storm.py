"""Storms of sockets against one real fanout: `python -m tests.security.storm [SOCKETS [STORMS]]`, run by hand.

Prints the process's memory and open files before, with all sockets open, and after they went, and whether somebody
else was served all the while. Ends with 1 when somebody was not, when sockets' files stayed open, or when memory
after the last storm is above what it was after the first by more than a tenth of what the first one took: memory
kept by the allocator is used again by the next storm, memory that leaked is not.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from websockets.asyncio.client import connect

from coffee_rt.embedded.server_process import TEST
from coffee_rt.embedded.servers import EmbeddedPostgres, EmbeddedValkey
from coffee_rt.store.migrations import migrate
from tests.security.leaks import Started, started, until_answered

SOCKETS = 5000
SUBSCRIBE = '{"type":"subscribe","id":1,"channel":"view:hourly"}'
STORMS = 3
SETTLE_SECONDS_MAX = 60.0
FILES_BESIDE_MAX = 20
GROWTH_RATIO_MAX = 0.1


async def storm(fanout: Started, sockets: int) -> dict[str, Any]:
    """What was measured."""
    process = psutil.Process(fanout.process.pid)
    measured = {"before": _taken_by(process)}
    swarm = _swarm()
    assert swarm.stdin is not None
    assert swarm.stdout is not None
    order = {"port": fanout.socket_port, "path": "/ws", "sockets": sockets, "message": SUBSCRIBE}
    swarm.stdin.write(json.dumps(order).encode() + b"\n")
    swarm.stdin.flush()
    opened = asyncio.create_task(asyncio.to_thread(swarm.stdout.readline))
    waits = []
    while not opened.done():
        waits.append(await _welcomed_after(fanout))
        await asyncio.sleep(0.1)
    measured["open"] = _taken_by(process)
    assert measured["open"]["files"] > sockets, "the sockets did not stay open"
    waits += [await _welcomed_after(fanout) for _ in range(20)]
    swarm.kill()
    swarm.wait()
    give_up_at = time.monotonic() + SETTLE_SECONDS_MAX
    before = measured["before"]["files"]
    while process.num_fds() > before + FILES_BESIDE_MAX and time.monotonic() < give_up_at:  # noqa: ASYNC110
        await asyncio.sleep(0.2)
    waits.append(await _welcomed_after(fanout))
    measured["after"] = _taken_by(process)
    return {"sockets": sockets, **measured, "others_waited_ms_max": round(max(waits) * 1000)}


def _swarm() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "coffee_rt.bench.swarm"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _taken_by(process: psutil.Process) -> dict[str, int]:
    return {"memory_mb": process.memory_info().rss >> 20, "files": process.num_fds()}


async def _welcomed_after(fanout: Started) -> float:
    """Seconds until somebody else's new session was welcomed; raises when it never is."""
    began = time.perf_counter()
    async with asyncio.timeout(SETTLE_SECONDS_MAX):
        async with connect(f"ws://127.0.0.1:{fanout.socket_port}/ws") as connection:
            assert "welcome" in str(await connection.recv())
    return time.perf_counter() - began


async def run(folder: Path, sockets: int, storms: int) -> int:
    valkey = EmbeddedValkey(folder / "valkey", durability=TEST)
    postgres = EmbeddedPostgres(folder / "postgres", durability=TEST)
    valkey.start()
    postgres.start()
    try:
        await migrate(postgres.url)
        environ = {
            "COFFEE_RT_REDIS_URL": valkey.url,
            "COFFEE_RT_DATABASE_URL": postgres.url,
            "COFFEE_RT_AUTH": "off",
            "COFFEE_RT_FANOUT_SESSIONS_PER_ADDRESS_MAX": str(sockets + 100),
            "COFFEE_RT_FANOUT_CONNECTS_PER_MINUTE": "0",
        }
        async with (
            aiohttp.ClientSession() as client,
            started(folder / "logs", environ, ("aggregator", "fanout")) as running,
        ):
            fanout = running["fanout"]
            await until_answered(client, f"{fanout.address}/readyz", 200)
            measured = []
            for _ in range(storms):
                measured.append(await storm(fanout, sockets))
                sys.stdout.write(json.dumps(measured[-1]) + "\n")
                sys.stdout.flush()
    finally:
        valkey.stop()
        postgres.stop()
    first, last = measured[0], measured[-1]
    taken = first["open"]["memory_mb"] - first["before"]["memory_mb"]
    grown = last["after"]["memory_mb"] - first["after"]["memory_mb"]
    is_kept = last["after"]["files"] > first["before"]["files"] + FILES_BESIDE_MAX
    return int(is_kept or grown > taken * GROWTH_RATIO_MAX)


if __name__ == "__main__":
    asked = [int(text) for text in sys.argv[1:]]
    with tempfile.TemporaryDirectory(prefix="coffee-rt-storm-") as name:
        Path(name).chmod(0o755)  # PostgreSQL runs as another user where we are root.
        sys.exit(asyncio.run(run(Path(name), *(asked + [SOCKETS, STORMS][len(asked) :]))))
