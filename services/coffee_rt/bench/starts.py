"""How long `coffee-rt up` takes to be ready again: with nothing stored, and with millions of orders."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from coffee_rt.bench.folds import grow, rebuild_views
from coffee_rt.bench.posts import Progress
from coffee_rt.bench.results import Figure
from coffee_rt.bench.workers import prepare_store
from coffee_rt.embedded.launch import signal_group, spawn
from coffee_rt.embedded.server_process import LAPTOP, tail
from coffee_rt.embedded.servers import EmbeddedPostgres
from coffee_rt.runtime.environment import environment

ROUNDS = 3
READY_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 90.0
LOOK_SECONDS = 0.01


async def measure_start(say: Progress, *, orders: int) -> Figure:
    """Seconds from the command to the address, which is written when every process is ready."""
    folder = _make_folder()
    try:
        say("start: the first, with nothing there")
        first = await asyncio.to_thread(_start_once, folder)
        say("start: again, with no order stored")
        empty = [await asyncio.to_thread(_start_once, folder) for _ in range(ROUNDS)]
        say(f"start: storing {orders} orders")
        await _fill(folder, orders)
        say(f"start: again, with {orders} orders stored")
        full = [await asyncio.to_thread(_start_once, folder) for _ in range(ROUNDS)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    value, ceiling = median(full), median(empty)
    return Figure(
        name="second_start",
        what=f"`up` until all is ready, {orders} orders stored",
        value=round(value, 2),
        unit="s",
        ceiling=round(ceiling, 2),
        ceiling_is="the same with no order stored",
        ratio=round(ceiling / value, 3),
        goal="< 3 s",
        notes={
            "first_start_s": round(first, 2),
            "all_s": [round(seconds, 2) for seconds in full],
            "all_empty_s": [round(seconds, 2) for seconds in empty],
        },
    )


def _make_folder() -> Path:
    """One that PostgreSQL's own user can look into."""
    folder = Path(tempfile.mkdtemp(prefix="coffee-rt-bench-"))
    folder.chmod(0o755)
    return folder


def _start_once(folder: Path) -> float:
    """Start, wait until ready, stop; how long the start took. Raises RuntimeError when it fails."""
    log, address = folder / "up.log", folder / "data" / "address"
    command = [sys.executable, "-m", "coffee_rt", "up", "--data-dir", str(folder / "data")]
    began = time.monotonic()
    up = spawn([*command, "--port", "0"], log, environ=environment())
    try:
        while not address.exists():
            if up.poll() is not None or time.monotonic() - began > READY_SECONDS_MAX:
                raise RuntimeError(f"`up` did not become ready:\n{tail(log)}")
            time.sleep(LOOK_SECONDS)
        return time.monotonic() - began
    finally:
        _stop(up)


def _stop(up: subprocess.Popen[bytes]) -> None:
    up.send_signal(signal.SIGINT)
    try:
        up.wait(STOP_SECONDS_MAX)
    finally:
        signal_group(up, signal.SIGKILL)


async def _fill(folder: Path, orders: int) -> None:
    """Stored orders and views that have them, with a checkpoint as after any hour of running."""
    server = EmbeddedPostgres(folder / "data" / "postgres", durability=LAPTOP)
    await asyncio.to_thread(server.start)
    try:
        pool = await prepare_store(server.url)
        await grow(pool, 0, orders)
        await rebuild_views(pool)
        await pool.execute("ANALYZE")
        await pool.close()
    finally:
        await asyncio.to_thread(server.stop)
