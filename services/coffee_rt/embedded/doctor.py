"""`coffee-rt doctor`: asks the servers, prints what is safe and what is not, and how to mend it."""

from __future__ import annotations

import time
from typing import Any

import asyncpg
import redis.asyncio
from redis.exceptions import RedisError, ResponseError
from rich.console import Console
from rich.table import Table

from coffee_rt.embedded.examine import (
    Finding,
    RedisFacts,
    Verdict,
    examine_database,
    examine_pools,
    examine_servers,
)
from coffee_rt.embedded.plan import PROCESSES
from coffee_rt.embedded.reach import ToolSettings
from coffee_rt.embedded.tables import settings_class
from coffee_rt.errors import CoffeeRtError
from coffee_rt.redis_nodes.nodes import RedisNodes
from coffee_rt.runtime.addresses import mask_credentials
from coffee_rt.runtime.environment import environment, load
from coffee_rt.runtime.redis_address import Mode
from coffee_rt.runtime.settings import RedisSettings
from coffee_rt.store.inspect import inspect_database

_CONFIG = (
    "maxmemory-policy",
    "appendonly",
    "appendfsync",
    "auto-aof-rewrite-min-size",
    "min-replicas-to-write",
)
_COLOURS = {Verdict.FINE: "green", Verdict.DOUBTFUL: "yellow", Verdict.UNSAFE: "bold red"}


async def run_doctor(settings: ToolSettings, console: Console | None = None) -> int:
    """Look at everything and print it; 1 when something is unsafe."""
    findings = [*await _look_at_redis(settings), *await _look_at_database(settings)]
    console = console or Console()
    console.print(findings_table(findings))
    unsafe = sum(finding.verdict is Verdict.UNSAFE for finding in findings)
    doubtful = sum(finding.verdict is Verdict.DOUBTFUL for finding in findings)
    if unsafe or doubtful:
        console.print(f"{unsafe} unsafe, {doubtful} doubtful: see how to mend it.")
    else:
        console.print("Everything is fine.")
    return 1 if unsafe else 0


def findings_table(findings: list[Finding]) -> Table:
    table = Table("Looked at", "Found", "", "How to mend it")
    table.columns[0].no_wrap = True
    for finding in findings:
        colour = _COLOURS[finding.verdict]
        verdict = f"[{colour}]{finding.verdict.value}[/]"
        table.add_row(finding.subject, finding.found, verdict, finding.mend)
    return table


async def ask_redis(settings: RedisSettings) -> list[RedisFacts]:
    """Facts about each server that holds data. Raises redis's errors when one is away or refuses us."""
    nodes = RedisNodes(settings)
    seconds_max = settings.connect_seconds_max
    options = {
        "decode_responses": True,
        "socket_timeout": seconds_max,
        "socket_connect_timeout": seconds_max,
    }
    places = await nodes.nodes()
    if places is None:
        return [await _ask_server(nodes.pool(None, **options), "", "single")]
    mode = settings.address.mode
    return [
        await _ask_server(nodes.pool_to(place, **options), str(place), mode) for place in places
    ]


async def _ask_server(pool: redis.asyncio.ConnectionPool, place: str, mode: Mode) -> RedisFacts:
    async with redis.asyncio.Redis.from_pool(pool) as client:
        info: dict[str, Any] = await client.info("everything")
        try:
            shown = await client.config_get(*_CONFIG)
        except ResponseError:
            shown = {}
        before = time.time()
        seconds, microseconds = await client.time()
        middle = (before + time.time()) / 2
    is_valkey = "valkey_version" in info
    version = str(info["valkey_version" if is_valkey else "redis_version"])
    failed = (info.get("aof_last_write_status"), info.get("aof_last_bgrewrite_status"))
    return RedisFacts(
        name="Valkey" if is_valkey else "Redis",
        version=tuple(int(part) for part in version.split(".") if part.isdigit()),
        config={str(name): str(value) for name, value in shown.items()},
        used_bytes=int(info["used_memory"]),
        limit_bytes=int(info.get("maxmemory", 0)),
        last_write_failed="err" in failed,
        clock_offset_seconds=int(seconds) + int(microseconds) / 1e6 - middle,
        place=place,
        mode=mode,
        is_replica=info.get("role") == "slave",
        replicas=int(info.get("connected_slaves", 0)),
        is_clustered=bool(int(info.get("cluster_enabled", 0))),
    )


async def _look_at_redis(settings: ToolSettings) -> list[Finding]:
    try:
        facts = await ask_redis(settings.redis)
    except (RedisError, OSError, TimeoutError) as error:
        return [_away("Redis", settings.redis.url, error, "COFFEE_RT_REDIS_URL")]
    return examine_servers(facts)


async def _look_at_database(settings: ToolSettings) -> list[Finding]:
    url = settings.database.url
    try:
        facts = await inspect_database(url)
    except (CoffeeRtError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return [_away("PostgreSQL", url, error, "COFFEE_RT_DATABASE_URL")]
    return [*examine_database(facts, time.time()), examine_pools(facts, _pool_sizes())]


def _pool_sizes() -> dict[str, int]:
    """Most connections of each process, as this environment configures it."""
    sizes = {}
    for process in PROCESSES:
        settings: Any = load(settings_class(process), environment())
        sizes[process] = settings.database.pool_size_max
    return sizes


def _away(server: str, url: str, error: Exception, variable: str) -> Finding:
    return Finding(
        f"{server}: connection",
        f"{mask_credentials(url)}: {error}",
        Verdict.UNSAFE,
        f"Start it, or set {variable}; beside a running `coffee-rt up` give --data-dir.",
    )
