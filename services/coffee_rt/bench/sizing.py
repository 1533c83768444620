"""What an installation needs: cores for 1 000 orders a second and for 1 000 sockets, process by process.

Orders come at a fixed rate well below capacity, one a request, so that batching is what it is in practice; then
sockets of one view are added at the same rate. What is counted is CPU time, which a busy machine stretches far less
than it does seconds.
"""

from __future__ import annotations

import asyncio

import psutil

from coffee_rt.bench.fanouts import SUBSCRIBE, open_swarm
from coffee_rt.bench.latencies import start_platform
from coffee_rt.bench.load import Job
from coffee_rt.bench.posts import JSON, PATH, Progress, bodies
from coffee_rt.bench.results import Figure
from coffee_rt.bench.stack import Child, Stack, run_load
from coffee_rt.bench.swarm import Swarm
from coffee_rt.bench.workers import prepare_store

ORDERS_PER_SECOND = 1000
SOCKETS = 1000
CONNECTIONS = 64


async def measure_sizing(say: Progress, *, seconds: float) -> list[Figure]:
    """cores_per_1000_orders and cores_per_1000_sockets."""
    with Stack() as stack:
        pool = await prepare_store(stack.postgres.url)
        await pool.close()
        platform = start_platform(
            stack, COFFEE_RT_FANOUT_SESSIONS_PER_ADDRESS_MAX=str(SOCKETS + 10)
        )
        job = Job(
            port=platform.api.port,
            path=PATH,
            connections=CONNECTIONS,
            seconds=seconds,
            rate=ORDERS_PER_SECOND,
            headers=JSON,
            bodies=bodies(),
        )
        say(f"sizing: {ORDERS_PER_SECOND} orders a second")
        alone, rate = await _cores(stack, platform.processes, job)
        say(f"sizing: the same with {SOCKETS} sockets of one view")
        [fanout] = [child for child in platform.processes if child.name == "fanout"]
        swarm = Swarm(platform.socket_port, "/ws", SOCKETS, SUBSCRIBE)
        process, memory = await open_swarm(swarm, fanout)
        watched, watched_rate = await _cores(stack, platform.processes, job)
        await asyncio.wait_for(process.communicate(b""), 60)
        sizes = {child.name: round(child.memory_bytes / 1e6) for child in platform.processes}
    orders = {name: round(cores * 1000 / rate, 3) for name, cores in alone.items()}
    sockets = watched["fanout"] - alone["fanout"]
    return [
        Figure(
            name="cores_per_1000_orders",
            what="cores for 1 000 single orders a second, all processes and servers",
            value=round(sum(orders.values()), 3),
            unit="cores",
            notes={"cores": orders, "memory_mb": sizes, "rate": round(rate)},
        ),
        Figure(
            name="cores_per_1000_sockets",
            what="cores of fanout for 1 000 sockets that see every change of one view",
            value=round(sockets * 1000 / SOCKETS, 3),
            unit="cores",
            notes={
                "orders_per_second": round(watched_rate),
                "kb_per_socket": round(memory / 1024, 1),
            },
        ),
    ]


async def _cores(stack: Stack, children: list[Child], job: Job) -> tuple[dict[str, float], float]:
    """Cores in use by each process and server during a load, and orders accepted a second."""
    before = _cpu_seconds(stack, children)
    began = asyncio.get_running_loop().time()
    outcome = await run_load(job)
    spent = asyncio.get_running_loop().time() - began
    after = _cpu_seconds(stack, children)
    return (
        {name: (after[name] - before[name]) / spent for name in before},
        outcome.requests / spent,
    )


def _cpu_seconds(stack: Stack, children: list[Child]) -> dict[str, float]:
    seconds = {child.name: child.cpu_seconds for child in children}
    for name, pid in (("valkey", stack.valkey.pid), ("postgresql", stack.postgres.pid)):
        server = psutil.Process(pid)
        times = [one.cpu_times() for one in (server, *server.children(recursive=True))]
        seconds[name] = float(sum(one.user + one.system for one in times))
    return seconds
