"""What a failover of the log loses at each level of replication, measured: `python -m tests.failover [WORD ...]`.

A real order_api on three sentinels, a master and two replicas, or on a cluster of three primaries with a replica each,
all with `appendfsync always`. Keyed clients repeat each order until it is answered; meanwhile the (first) master is

- killed: at once;
- lossy: killed a moment after its replication was cut;
- frozen: stopped, and let go a second after another took over;
- parted: cut off from replicas and sentinels but not from order_api, until a second after another took over.

Nobody stores meanwhile: what the log has lost is lost. Prints a table in Markdown, of the rows that all words are in
(`cluster`, `parted`, `disk`, ...); the cost of a level is measured before the fault. Exits with 1 when a loss was not
told by gaps, when a lossy failover without any protection lost nothing and so proves nothing, or when something was
lost though every replica had been waited for.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from coffee_rt.bench.load import Job
from coffee_rt.bench.posts import CONNECTIONS, JSON, PATH, bodies
from coffee_rt.bench.stack import Stack, run_load
from coffee_rt.domain.ids import format_id
from coffee_rt.domain.wire import decode_batch
from coffee_rt.errors import Retryable
from coffee_rt.runtime.settings import RedisSettings
from coffee_rt.streams.contract import STORE_GROUP
from coffee_rt.streams.redis_log import RedisLog
from tests.failover_bed import Bed, Row

NAMESPACE = "failover"
SHARDS = 4
CLIENTS = 32
ASKED = ((0, "memory"), (1, "memory"), (1, "disk"), (2, "memory"), (2, "disk"))
ROWS = (
    *(Row("sentinel", "killed", *asked) for asked in ASKED),
    # With two asked for, nothing is answered once the replication is cut.
    *(Row("sentinel", "lossy", *asked) for asked in ASKED[:3]),
    *(Row("sentinel", fault, *asked) for fault in ("frozen", "parted") for asked in ASKED[:2]),
    *(
        Row("sentinel", fault, *asked, 1)
        for fault in ("killed", "lossy", "frozen", "parted")
        for asked in ASKED[:2]
    ),
    *(
        Row("cluster", fault, *asked)
        for fault in ("killed", "lossy", "frozen")
        for asked in ASKED[:2]
    ),
    *(Row("cluster", fault, 1, "memory", 1) for fault in ("killed", "frozen")),
)
HEADING = (
    "| servers | to write | replicas | fault | accepted | lost | told by gaps | doubled | s without orders "
    "| orders/s | p50 / p99 ms |\n|---|---:|---|---|---:|---:|---:|---:|---:|---:|---:|"
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


async def measure(row: Row, folder: Path) -> tuple[str, bool]:
    """A row of the table, and whether it is as it must be."""
    bed = Bed(row, folder)
    try:
        await bed.start()
        with Stack(with_postgres=False, shards=SHARDS) as stack:
            return await _measure(row, bed, stack)
    finally:
        await bed.stop()


async def _measure(row: Row, bed: Bed, stack: Stack) -> tuple[str, bool]:
    log = RedisLog(RedisSettings(url=bed.url), NAMESPACE, SHARDS)
    keeper = log.keeper()
    await keeper.ensure_group(STORE_GROUP)
    api = await asyncio.to_thread(
        stack.process,
        "order-api",
        COFFEE_RT_REDIS_URL=bed.url,
        COFFEE_RT_NAMESPACE=NAMESPACE,
        COFFEE_RT_ORDER_API_REPLICAS_MIN=str(row.replicas),
        COFFEE_RT_ORDER_API_REPLICAS_LEVEL=row.level,
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
        tasks = [asyncio.create_task(clients.run(number, session)) for number in range(CLIENTS)]
        await asyncio.sleep(2.0)
        await bed.hurt(api.process.pid)
        await bed.heal()
        await asyncio.sleep(5.0)
        clients.is_stopping = True
        _, left = await asyncio.wait(tasks, timeout=15)
        for task in left:
            task.cancel()
    logged, gaps = await read_log(log)
    await keeper.close()
    lost = len(clients.told.values() - logged.keys())
    keys = [logged[order] for order in logged.keys() - before.keys()]
    doubled = len(keys) - len(set(keys))
    pauses = [b - a for a, b in zip(clients.times, clients.times[1:], strict=False)]
    asked = f"{row.replicas} {row.level}" if row.replicas else "0"
    cells = (
        *(row.kind, row.to_write, asked, row.fault, len(clients.told), lost, gaps, doubled),
        *(f"{max(pauses, default=0):.1f}", f"{cost.rate:,.0f}", f"{cost.p50_ms} / {cost.p99_ms}"),
    )
    is_right = gaps >= lost and not (row.must_lose and not lost) and not (lost and not row.may_lose)
    return f"| {' | '.join(map(str, cells))} |", is_right


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


async def main(words: Sequence[str]) -> int:
    sys.stdout.write(HEADING + "\n")
    is_right = True
    for row in ROWS:
        if not set(words) <= set(row.name.split()):
            continue
        with tempfile.TemporaryDirectory(prefix="coffee-rt-failover-") as folder:
            line, is_row_right = await measure(row, Path(folder))
        sys.stdout.write(f"{line}{'' if is_row_right else ' WRONG'}\n")
        sys.stdout.flush()
        is_right = is_right and is_row_right
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
