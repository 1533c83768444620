"""The whole promise at once: a client that is never killed writes down what it was told, everything else is
killed at random, and in the end the database and the views say the same as the client's notes."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from coffee_rt.embedded.server_process import Server, free_port
from coffee_rt.embedded.servers import EmbeddedPostgres, EmbeddedValkey
from coffee_rt.runtime.settings import DatabaseSettings, RedisSettings
from coffee_rt.store.keeper import PostgresKeeper
from coffee_rt.store.pool import create_pool
from coffee_rt.streams.redis_log import RedisLog
from tests.workers import until

pytestmark = pytest.mark.integration

SHARDS = 2
CLIENTS = 6
KILLS = 12
SETTLE_SECONDS_MAX = 90.0
PARTS = ("order-api", "worker-1", "worker-2", "aggregator", "query-api", "fanout")
VICTIMS = (*PARTS[:4], *PARTS, "valkey", "postgres")


@dataclass
class Platform:
    """Servers and processes, each of which may be killed and started again at any time."""

    folder: Path
    valkey: EmbeddedValkey
    postgres: EmbeddedPostgres
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environ(self, part: str) -> dict[str, str]:
        port = str(self.port) if part == "order-api" else "0"
        return {
            "PATH": os.environ["PATH"],
            "COFFEE_RT_REDIS_URL": self.valkey.url,
            "COFFEE_RT_DATABASE_URL": self.postgres.url,
            "COFFEE_RT_SHARDS": str(SHARDS),
            "COFFEE_RT_INSTANCE": part,
            "COFFEE_RT_HTTP_PORT": port,
            "COFFEE_RT_LOG_FORMAT": "json",
            "COFFEE_RT_FANOUT_WEBSOCKET_PORT": "0",
            "COFFEE_RT_BREAKER_OPEN_SECONDS": "1",
            "COFFEE_RT_WORKER_CLAIM_IDLE_SECONDS_MIN": "1",
            "COFFEE_RT_WORKER_CLAIM_EVERY_SECONDS": "0.5",
            "COFFEE_RT_ORDER_API_KEYS_REFRESH_SECONDS": "0.5",
        }

    def command(self, *arguments: str) -> str:
        """Run a command of the product to its end; what it printed."""
        return subprocess.run(
            [sys.executable, "-m", "coffee_rt", *arguments],
            env=self.environ("command"),
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout.strip()

    def start(self, part: str) -> None:
        name = part.removesuffix("-1").removesuffix("-2")
        with (self.folder / f"{part}.log").open("ab") as log:
            self.processes[part] = subprocess.Popen(
                [sys.executable, "-m", "coffee_rt", name],
                env=self.environ(part),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    async def kill(self, victim: str) -> None:
        """kill -9, then start it again."""
        if victim in PARTS:
            process = self.processes[victim]
            process.kill()
            await asyncio.to_thread(process.wait)
            self.start(victim)
        else:
            server: Server = self.valkey if victim == "valkey" else self.postgres
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            await asyncio.to_thread(server.stop)
            server.launch()
            await asyncio.to_thread(server.wait_ready)

    async def drain(self) -> dict[str, int | None]:
        """SIGTERM to every process; the exit codes of those that end within the longest grace period."""
        for process in self.processes.values():
            process.terminate()
        with suppress(AssertionError):
            await until(lambda: all(p.poll() is not None for p in self.processes.values()), 65)
        return {part: process.poll() for part, process in self.processes.items()}

    def logs(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob("*.log"))


@dataclass
class Recorder:
    """What clients sent and were told. Every order carries a name of its own in its note."""

    address: str
    api_key: str
    accepted: dict[str, tuple[str, Decimal, int]] = field(default_factory=dict)
    """Name -> (order id, price, quantity)."""
    refused: set[str] = field(default_factory=set)
    unknown: int = 0
    repeated: list[tuple[str, str]] = field(default_factory=list)
    """(order, the id its repetition was told)."""
    is_over: bool = False

    async def play(self, client: int) -> None:
        """Post one order after the other; one that came to nothing known is repeated until it does."""
        chance = random.Random(client)
        headers = {"Authorization": f"Bearer {self.api_key}"}
        timeout = aiohttp.ClientTimeout(total=2)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            number = 0
            while not self.is_over:
                number += 1
                name = f"{client}/{number}"
                price = Decimal(chance.randrange(1, 10_000)) / 100
                quantity = chance.randrange(1, 5)
                body = {
                    "store": chance.choice(("uptown", "harbour")),
                    "drink": chance.choice(("latte", "tea")),
                    "price": "free" if chance.random() < 0.05 else str(price),
                    "quantity": quantity,
                    "note": name,
                }
                answer = await self._resolve(session, name, body)
                if answer is None:
                    continue
                self.accepted[name] = (answer, price, quantity)
                if chance.random() < 0.1:
                    again = await self._resolve(session, name, body)
                    if again is not None:
                        self.repeated.append((name, again))

    async def _resolve(
        self, session: aiohttp.ClientSession, name: str, body: dict[str, Any]
    ) -> str | None:
        """The order's id once it is accepted, None once it is refused."""
        headers = {"Idempotency-Key": name}
        while True:
            try:
                async with session.post(
                    f"{self.address}/api/v1/orders", json=body, headers=headers
                ) as response:
                    if response.status == 202:
                        return str((await response.json())["order_id"])
                    if response.status in (400, 409, 422):
                        self.refused.add(name)
                        return None
            except (aiohttp.ClientError, TimeoutError, ConnectionError):
                pass
            self.unknown += 1
            await asyncio.sleep(0.05)


@asynccontextmanager
async def a_platform(folder: Path) -> AsyncIterator[Platform]:
    platform = Platform(
        folder, EmbeddedValkey(folder / "valkey"), EmbeddedPostgres(folder / "postgres")
    )
    try:
        platform.valkey.start()
        platform.postgres.start()
        await asyncio.to_thread(platform.command, "migrate")
        for part in PARTS:
            platform.start(part)
        yield platform
    finally:
        for process in platform.processes.values():
            process.kill()
            process.wait()
        platform.valkey.stop()
        platform.postgres.stop()


async def stored_orders(platform: Platform) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(platform.postgres.url)
    try:
        return list(
            await connection.fetch("SELECT order_id, note, price_minor, quantity FROM orders")
        )
    finally:
        await connection.close()


async def aliases(platform: Platform) -> dict[str, str]:
    connection = await asyncpg.connect(platform.postgres.url)
    try:
        rows = await connection.fetch("SELECT order_id, target FROM order_aliases")
        return {str(row["order_id"]): str(row["target"]) for row in rows}
    finally:
        await connection.close()


async def until_settled(platform: Platform) -> None:
    """Wait until everything in the log is acknowledged, the intake is empty, and every delta is folded."""
    async with asyncio.timeout(SETTLE_SECONDS_MAX):
        log = RedisLog(RedisSettings(url=platform.valkey.url), "coffee-rt", SHARDS)
        keeper = log.keeper()
        connection = await asyncpg.connect(platform.postgres.url)
        try:
            while True:
                backlog = sum(shard.records for shard in await keeper.backlog("workers"))
                backlog += await connection.fetchval("SELECT count(*) FROM intake")
                tables = await connection.fetch(
                    "SELECT 'mv_' || internal || '_deltas' AS name FROM view_catalogue"
                )
                deltas = [
                    await connection.fetchval(f"SELECT count(*) FROM {each['name']}")
                    for each in tables
                ]
                if not backlog and len(deltas) == 2 and not any(deltas):
                    return
                await asyncio.sleep(0.1)
        finally:
            await connection.close()
            await keeper.close()


async def view_sums(platform: Platform) -> dict[str, tuple[int, int]]:
    """(orders, revenue) of each view."""
    connection = await asyncpg.connect(platform.postgres.url)
    try:
        views = await connection.fetch("SELECT name, internal FROM view_catalogue")
        sums = {}
        for view in views:
            [row] = await connection.fetch(
                f"SELECT sum(orders) AS orders, sum(revenue) AS revenue FROM mv_{view['internal']}"
            )
            sums[view["name"]] = (int(row["orders"]), int(row["revenue"]))
        return sums
    finally:
        await connection.close()


async def imbalances(platform: Platform) -> list[int]:
    """Per shard: accepted by the log minus accounted for by the ledger."""
    log = RedisLog(RedisSettings(url=platform.valkey.url), "coffee-rt", SHARDS)
    keeper = log.keeper()
    pool = await create_pool(DatabaseSettings(url=platform.postgres.url))
    try:
        found = []
        for shard in range(SHARDS):
            horizon = await keeper.horizon(shard)
            sums = await PostgresKeeper(pool).ledger_sums(shard, None)
            done = sums["stored"] + sums["duplicates"] + sums["dead"] + sums["lost"]
            found.append(horizon.counter - done)
        return found
    finally:
        await pool.close()
        await keeper.close()


async def test_what_clients_were_told_is_true_whatever_is_killed(tmp_path: Path) -> None:
    seed = int(os.environ.get("COFFEE_RT_TEST_SEED", "7"))
    chance = random.Random(seed)
    async with a_platform(tmp_path) as platform:
        api_key = await asyncio.to_thread(platform.command, "keys", "add", "recorder")
        api_key = next(word for word in api_key.split() if word.startswith("crt_"))
        recorder = Recorder(platform.address, api_key)
        clients = [asyncio.create_task(recorder.play(number)) for number in range(CLIENTS)]
        await until(lambda: len(recorder.accepted) >= 50, 60)
        for _ in range(KILLS):
            wanted = len(recorder.accepted) + 30
            await platform.kill(chance.choice(VICTIMS))
            await until(lambda wanted=wanted: len(recorder.accepted) >= wanted, 60)  # type: ignore[misc]
        recorder.is_over = True
        await asyncio.gather(*clients)
        await until_settled(platform)

        rows = await stored_orders(platform)
        by_name = {row["note"]: row for row in rows}
        # Each accepted order is stored, under the id its client was told, once; nothing refused is.
        assert recorder.unknown > 0, f"seed {seed}: nothing went wrong, so nothing was shown"
        # The log and the intake may each have told an id of their own for a key: both lead to the one order.
        leads_to = await aliases(platform)
        stored = {name: str(row["order_id"]) for name, row in by_name.items()}
        assert stored == {
            name: leads_to.get(told[0], told[0]) for name, told in recorder.accepted.items()
        }
        assert recorder.repeated
        for name, told in recorder.repeated:
            assert leads_to.get(told, told) == stored[name]
        assert len(rows) == len(by_name)
        assert not recorder.refused & set(by_name)
        assert recorder.refused
        # Money: what was accepted is what is stored is what every view adds up to.
        accepted = sum(
            int(price * 100) * quantity for _, price, quantity in recorder.accepted.values()
        )
        assert sum(row["price_minor"] * row["quantity"] for row in rows) == accepted
        expected = (len(recorder.accepted), accepted)
        assert await view_sums(platform) == {"hourly": expected, "minutely": expected}
        assert await imbalances(platform) == [0] * SHARDS
        for view in ("hourly", "minutely"):
            await asyncio.to_thread(platform.command, "audit", view)
        # Every process ends in order, and none has written a secret down.
        assert await platform.drain() == dict.fromkeys(PARTS, 0)
        logs = platform.logs()
        for secret in (api_key.rpartition("_")[2], _password(platform.postgres.url)):
            assert len(secret) > 10
            assert secret not in logs


def _password(url: str) -> str:
    return url.partition("://")[2].partition("@")[0].partition(":")[2]
