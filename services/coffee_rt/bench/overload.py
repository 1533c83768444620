"""What is left of capacity when far more orders arrive than can be taken, and how soon all is well again.

Capacity is found by a closed loop; then arrivals that do not wait for answers come at half of it, at a multiple, and at
half of it again; then by the closed loop once more. What was accepted is held against the mean of the two loops beside
it, because a machine's pace moves within a minute. Order_api and Valkey only: nobody stores, so that the door is measured.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import psutil

from coffee_rt.bench.arrivals import WINDOW_SECONDS, Account, Arrivals, Phase, Window
from coffee_rt.bench.load import Job
from coffee_rt.bench.posts import CONNECTIONS, JSON, PATH, Progress, bodies
from coffee_rt.bench.results import Figure, percentile, with_ratio
from coffee_rt.bench.stack import Child, Stack, run_load
from coffee_rt.runtime.environment import environment

MULTIPLES = (2, 5, 10)
BATCH_RECORDS = 100
CALM_SECONDS = 2.0
CONNECTIONS_MAX = 3000
PATIENCE_SECONDS = 1.0


async def measure_overload(say: Progress, *, seconds: float) -> list[Figure]:
    """overload_single_<n>x and overload_batch_<n>x: orders accepted a second while n times capacity arrives."""
    figures = []
    kinds: dict[str, tuple[int, dict[str, Any]]] = {
        "single": (1, {"path": PATH, "headers": JSON, "bodies": bodies()}),
        "batch": (
            BATCH_RECORDS,
            {
                "path": f"{PATH}/batch",
                "headers": {"Content-Type": "application/x-ndjson"},
                "bodies": ["\n".join(bodies(BATCH_RECORDS))],
            },
        ),
    }
    for kind, (records, request) in kinds.items():
        with Stack(with_postgres=False) as stack:
            api = stack.process("order-api")
            closed = Job(port=api.port, connections=CONNECTIONS, seconds=seconds, **request)
            before = (await run_load(closed)).rate
            for multiple in MULTIPLES:
                say(f"overload: {multiple} times {before:.0f} requests a second ({kind})")
                figure = await _measure(stack, api, before, multiple, seconds, request)
                after = (await run_load(closed)).rate
                figure.name = f"overload_{kind}_{multiple}x"
                figure.what = f"{records} order(s) a request, {multiple} times capacity arriving"
                figure.ceiling = round((before + after) / 2)
                figure.notes["closed_loops"] = [round(before), round(after)]
                figures.append(with_ratio(figure))
                before = after
    return figures


async def _measure(
    stack: Stack,
    api: Child,
    capacity: float,
    multiple: int,
    seconds: float,
    request: dict[str, Any],
) -> Figure:
    calm = Phase(capacity / 2, CALM_SECONDS)
    arrivals = Arrivals(
        port=api.port,
        phases=[calm, Phase(capacity * multiple, seconds), calm],
        connections=256,
        connections_max=CONNECTIONS_MAX,
        patience_seconds=PATIENCE_SECONDS,
        **request,
    )
    log = psutil.Process(stack.valkey.pid)
    before, log_before = api.memory_bytes, log.memory_info().rss
    sizes = [before]
    running = asyncio.create_task(_run_arrivals(arrivals))
    while not running.done():
        await asyncio.wait({running}, timeout=0.5)
        sizes.append(api.memory_bytes)
    account = running.result()
    begins, ends = (round(at / WINDOW_SECONDS) for at in (CALM_SECONDS, CALM_SECONDS + seconds))
    worst = account.windows[begins:ends]
    totals = {
        name: round(sum(getattr(window, name) for window in worst) / seconds)
        for name in ("offered", "refused", "other", "given_up", "unsent", "broken")
    }
    took = sorted(ms for window in worst for ms in window.accepted_ms)
    refused = sorted(ms for window in worst for ms in window.refused_ms)
    return Figure(
        name="",
        what="",
        value=round(sum(window.accepted for window in worst) / seconds),
        unit="requests/s",
        ceiling_is="closed loops just before and after, their mean",
        p50_ms=round(percentile(took, 0.5), 1),
        p99_ms=round(percentile(took, 0.99), 1),
        goal=">= 0.9; the rest 429 or 503",
        notes={
            "a_second": totals,
            "refused_p99_ms": round(percentile(refused, 0.99), 1),
            "normal_after_seconds": _normal_after(account.windows[ends:]),
            "connections": account.connections,
            "generator_cpu": account.cpu_share,
            "order_api_mb": [round(size / 1e6) for size in (before, max(sizes), sizes[-1])],
            "valkey_mb": [round(size / 1e6) for size in (log_before, log.memory_info().rss)],
        },
    )


def _normal_after(windows: list[Window]) -> float | None:
    """Seconds until every order offered is accepted again, and stays so; None when that was not seen."""
    good = 0
    for window in reversed(windows):
        if window.accepted < window.offered:
            break
        good += 1
    return round((len(windows) - good) * WINDOW_SECONDS, 1) if good else None


async def _run_arrivals(job: Arrivals) -> Account:
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "account.json"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "coffee_rt.bench.arrivals",
            told,
            stdin=asyncio.subprocess.PIPE,
            env=environment(),
        )
        await process.communicate(msgspec.json.encode(job))
        if process.returncode:
            raise RuntimeError(f"the arrivals' process ended with {process.returncode}")
        return msgspec.json.decode(told.read_bytes(), type=Account)
