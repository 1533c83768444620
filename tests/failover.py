"""What a failover of Sentinel's loses at each level of replication, measured: `python -m tests.failover`.

A real order_api, three sentinels, a master and two replicas, all with `appendfsync always`. Keyed clients repeat each
order until it is answered; the master is killed, once in order and once a moment after its replication was cut.
Nobody stores meanwhile: what the log has lost is lost. Prints a table in Markdown; the cost of a level is measured
before the fault. Exits with 1 when a loss was not told by gaps, or when the lossy failover without replicas lost
nothing and so proves nothing.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from coffee_rt.bench.load import Job
from coffee_rt.bench.posts import CONNECTIONS, JSON, PATH, bodies
from coffee_rt.bench.stack import Stack, run_load
from coffee_rt.domain.ids import format_id
from coffee_rt.domain.wire import decode_batch
from coffee_rt.embedded.server_process import LAPTOP
from coffee_rt.errors import Retryable
from coffee_rt.runtime.settings import RedisSettings
from coffee_rt.streams.contract import STORE_GROUP
from coffee_rt.streams.redis_log import RedisLog
from tests.log_servers import ValkeySentinels, running, wait_until

NAMESPACE = "failover"
SHARDS = 4
CLIENTS = 32
LEVELS = ((0, "memory"), (1, "memory"), (1, "disk"), (2, "memory"), (2, "disk"))
HEADING = (
    "| replicas | fault | accepted | lost | told by gaps | doubled | s without orders "
    "| orders/s | p50 / p99 ms |\n|---|---|---:|---:|---:|---:|---:|---:|---:|"
)


@dataclass
class Clients:
    """What they were told: ids by key, and when."""

    url: str
    told: dict[str, str] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    is_stopping: bool = False

    async def run(self, client: int, session: aiohttp.ClientSession) -> None:
        number = 0
        while not self.is_stopping:
            number += 1
            key = f"{client}-{number}"
            order = {"store": "uptown", "drink": "latte", "price": "4.50", "customer_id": key}
            while not await self._try(session, key, order):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def _try(self, session: aiohttp.ClientSession, key: str, order: dict[str, str]) -> bool:
        try:
            headers = {"idempotency-key": key}
            async with session.post(self.url, json=order, headers=headers) as reply:
                if reply.status != 202:
                    return False
                self.told[key] = (await reply.json())["order_id"]
        except (aiohttp.ClientError, TimeoutError):
            return False
        self.times.append(time.monotonic())
        return True


def cut_replication(servers: ValkeySentinels) -> None:
    for replica in servers.servers[1:]:
        replica.ask("CONFIG SET", "masterauth", "wrong")
    servers.servers[0].ask("CLIENT KILL", "TYPE", "replica")


async def measure(replicas: int, level: str, fault: str, folder: Path) -> tuple[str, bool]:
    """A row of the table, and whether it is as it must be."""
    servers = ValkeySentinels(folder, replicas=2, durability=LAPTOP)
    with running(servers), Stack(with_postgres=False, shards=SHARDS) as stack:
        log = RedisLog(RedisSettings(url=servers.url), NAMESPACE, SHARDS)
        keeper = log.keeper()
        await keeper.ensure_group(STORE_GROUP)
        api = stack.process(
            "order-api",
            COFFEE_RT_REDIS_URL=servers.url,
            COFFEE_RT_NAMESPACE=NAMESPACE,
            COFFEE_RT_ORDER_API_REPLICAS_MIN=str(replicas),
            COFFEE_RT_ORDER_API_REPLICAS_LEVEL=level,
        )
        job = Job(
            port=api.port,
            path=f"{PATH}",
            connections=CONNECTIONS,
            seconds=1.5,
            headers=JSON,
            bodies=bodies(),
        )
        cost = await run_load(job)
        before, _ = await read_log(log)
        clients = Clients(f"http://127.0.0.1:{api.port}{PATH}")
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3)) as session:
            running_clients = [
                asyncio.create_task(clients.run(number, session)) for number in range(CLIENTS)
            ]
            await asyncio.sleep(2.0)
            if fault == "lossy":
                await asyncio.to_thread(cut_replication, servers)
                await asyncio.sleep(0.5)
            servers.servers[0].kill()
            if replicas == 2:
                # All replicas are asked for: none is taken before there are two again.
                await asyncio.to_thread(
                    wait_until, lambda: servers.master() is not servers.servers[0], "promoted"
                )
                await asyncio.to_thread(servers.servers[0].start)
            for replica in servers.servers[1:]:
                replica.ask("CONFIG SET", "masterauth", "of-all-test-servers")
            await asyncio.sleep(5.0)
            clients.is_stopping = True
            _, left = await asyncio.wait(running_clients, timeout=15)
            for task in left:
                task.cancel()
        logged, gaps = await read_log(log)
        await keeper.close()
    lost = set(clients.told.values()) - logged.keys()
    keys = [logged[order] for order in logged.keys() - before.keys()]
    doubled = len(keys) - len(set(keys))
    pauses = [b - a for a, b in zip(clients.times, clients.times[1:], strict=False)]
    row = (
        f"| {replicas} {level if replicas else ''} | {fault} | {len(clients.told)} | {len(lost)} | {gaps} "
        f"| {doubled} | {max(pauses, default=0):.1f} | {cost.rate:,.0f} | {cost.p50_ms} / {cost.p99_ms} |"
    )
    is_told = gaps >= len(lost) and (fault != "lossy" or replicas or lost)
    return row, bool(is_told) and not (replicas == 2 and lost)


async def read_log(log: RedisLog) -> tuple[dict[str, str | None], int]:
    """Every order that is in the log (id -> customer), and the records that gaps say were lost."""
    group, keeper = f"all-{time.monotonic_ns()}", log.keeper()
    async with asyncio.timeout(30):
        while True:
            try:
                await keeper.ensure_group(group)
                break
            except Retryable:
                await asyncio.sleep(0.05)
    await keeper.close()
    reader = log.reader(group, "reading")
    found: dict[str, str | None] = {}
    gaps = 0
    for shard in range(SHARDS):
        async with asyncio.timeout(30):
            while True:
                try:
                    entries = await reader.read(shard, 1000, 0)
                except Retryable:
                    await asyncio.sleep(0.05)
                    continue
                if not entries:
                    break
                for entry in entries:
                    if entry.gap is not None:
                        gaps += entry.gap[1] - entry.gap[0]
                    elif entry.data:
                        for order in decode_batch(entry.version, entry.data):
                            found[format_id(order.order_id)] = order.customer_id
    await reader.leave()
    return found, gaps


async def main() -> int:
    sys.stdout.write(HEADING + "\n")
    is_right = True
    for fault in ("killed", "lossy"):
        for replicas, level in LEVELS:
            if fault == "lossy" and replicas == 2:
                continue  # As with one: nothing is answered once the replication is cut.
            with tempfile.TemporaryDirectory(prefix="coffee-rt-failover-") as folder:
                row, is_row_right = await measure(replicas, level, fault, Path(folder))
            sys.stdout.write(f"{row}{'' if is_row_right else ' WRONG'}\n")
            sys.stdout.flush()
            is_right = is_right and is_row_right
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
