"""Everything that may be hurt: servers and processes of the product, each link between them through a proxy.

A `Platform` owns a folder, a Valkey, a PostgreSQL, and one process a *part* (`order-api-1`, `worker-2`; the
servers are the parts `valkey` and `postgres`). It lives on one loop, whose thread also starts the children (they
end with it). Settings are the product's own, with the waits of a laptop's scenario: seconds where an
installation has tens of them (`QUICK`). Nothing here listens beyond loopback.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import psutil

from coffee_rt.embedded.keys import KeyRequest, add_key
from coffee_rt.embedded.launch import signal_group, spawn
from coffee_rt.embedded.server_process import Server, tail
from coffee_rt.embedded.servers import EmbeddedPostgres
from coffee_rt.runtime.environment import environment
from coffee_rt.runtime.settings import DatabaseSettings
from coffee_rt.store.migrations import migrate
from tests.chaos.part import Part, port_of
from tests.chaos.postgres import ChaosPostgres
from tests.chaos.proxy import FaultProxy, hold_port
from tests.chaos.valkey import ChaosValkey

READY_SECONDS_MAX = 60.0
START_SECONDS_MAX = 20.0
"""A process whose servers are hurt may take longer: then the scenario goes on without it."""
SERVERS = ("valkey", "postgres")
QUICK = {
    "COFFEE_RT_BREAKER_OPEN_SECONDS": "1",
    "COFFEE_RT_DATABASE_COMMAND_SECONDS_MAX": "5",
    "COFFEE_RT_DATABASE_ACQUIRE_SECONDS_MAX": "2",
    "COFFEE_RT_REDIS_CONNECT_SECONDS_MAX": "2",
    "COFFEE_RT_REDIS_COMMAND_SECONDS_MAX": "2",
    "COFFEE_RT_ORDER_API_KEYS_REFRESH_SECONDS": "1",
    "COFFEE_RT_WORKER_CLAIM_IDLE_SECONDS_MIN": "2",
    "COFFEE_RT_WORKER_CLAIM_EVERY_SECONDS": "0.5",
    "COFFEE_RT_WORKER_BACKOFF_SECONDS_MAX": "2",
    "COFFEE_RT_WORKER_CARE_SECONDS": "1",
    "COFFEE_RT_FANOUT_DRAIN_SECONDS": "0.5",
}
"""A failure is noticed and an entry taken over within seconds, so that a scenario lasts no longer."""


@dataclass(frozen=True)
class Shape:
    """What a platform consists of. Scenarios of the same shape may share one platform."""

    order_apis: int = 1
    workers: int = 2
    aggregators: int = 1
    query_apis: int = 1
    fanouts: int = 1
    shards: int = 2
    settings: tuple[tuple[str, str], ...] = ()
    """Of every process, over QUICK: (variable, value)."""
    is_quick: bool = True
    """Whether QUICK holds; else every wait is an installation's own."""
    valkey: tuple[tuple[str, str], ...] = ()
    """Valkey's own configuration over the embedded one's, e.g. ("appendfsync", "everysec")."""
    postgres: tuple[tuple[str, str], ...] = ()
    """Likewise PostgreSQL's."""

    @property
    def parts(self) -> tuple[str, ...]:
        counts = {
            "order-api": self.order_apis,
            "worker": self.workers,
            "aggregator": self.aggregators,
            "query-api": self.query_apis,
            "fanout": self.fanouts,
        }
        return tuple(f"{name}-{i}" for name, count in counts.items() for i in range(1, count + 1))


def process_of(part: str) -> str:
    """`worker-2` -> `worker`: the command that runs the part."""
    name, _, number = part.rpartition("-")
    return name if number.isdigit() else part


def _is_tracer(process: psutil.Process) -> bool:
    try:
        return bool(process.name() == "strace")
    except psutil.NoSuchProcess:
        return False


class Platform:
    """See the module. `await start()`, hurt it, `await close()`."""

    def __init__(self, folder: Path, shape: Shape, template: Path) -> None:
        self.folder = folder
        self.shape = shape
        self.api_key = ""
        self.frozen: set[str] = set()
        self._template = template
        folder.mkdir(parents=True, exist_ok=True)
        self._held = {server: hold_port() for server in SERVERS}
        ports = {name: port_of(held) for name, held in self._held.items()}
        self.valkey = ChaosValkey(
            folder / "valkey",
            port=ports["valkey"],
            settings=dict(shape.valkey),
        )
        self.postgres = ChaosPostgres(
            folder / "postgres", port=ports["postgres"], settings=dict(shape.postgres)
        )
        self.parts: dict[str, Part] = {}
        self.links: dict[tuple[str, str], FaultProxy] = {}

    # What it is

    @property
    def servers(self) -> dict[str, Server]:
        return {"valkey": self.valkey, "postgres": self.postgres}

    @property
    def names(self) -> tuple[str, ...]:
        """Every part that may be hurt."""
        return (*self.parts, *SERVERS)

    def link(self, part: str, server: str) -> FaultProxy:
        """The proxy between a part and a server; `link("clients", "order-api-1")` and `link("browser",
        "fanout-1")` are those in front."""
        return self.links[part, server]

    def links_of(self, name: str) -> list[FaultProxy]:
        """All links that begin or end at a part."""
        return [proxy for ends, proxy in self.links.items() if name in ends]

    @property
    def addresses(self) -> list[str]:
        """Where clients post orders: one a process of order_api, each behind its proxy."""
        return [f"http://127.0.0.1:{port}" for port in self._fronts("clients")]

    @property
    def live_addresses(self) -> list[str]:
        """Where a browser watches: one a fanout, each behind its proxy."""
        return [f"ws://127.0.0.1:{port}/ws" for port in self._fronts("browser")]

    def _fronts(self, who: str) -> list[int]:
        return [proxy.port for (client, _), proxy in self.links.items() if client == who]

    @property
    def database(self) -> DatabaseSettings:
        """Past the proxies: for checks from outside."""
        return DatabaseSettings(url=self.postgres.url)

    def logs(self) -> list[Path]:
        return sorted(self.folder.glob("*.log"))

    # From start to end

    async def start(self) -> None:
        """Servers, schema, an API key, proxies, processes; returns when all are ready."""
        await self._use_template()
        for server in self.servers.values():
            server.launch()
        for server in self.servers.values():
            await asyncio.to_thread(server.wait_ready)
        await migrate(self.postgres.url)
        request = KeyRequest("recorder", frozenset({"ingest", "read"}), 0, 10_000_000)
        self.api_key = await add_key(self.database, request)
        for part in self.shape.parts:
            await self._prepare(part)
        for part in self.parts:
            self.launch(part)
        await self.wait_ready()

    async def close(self) -> None:
        """Ends everything at once; data and logs stay in the folder."""
        for name in list(self.frozen):
            self.thaw(name)
        for part in self.parts.values():
            part.is_wanted = False
            if part.process is not None:
                signal_group(part.process, signal.SIGKILL)
                await asyncio.to_thread(part.process.wait)
            part.held.close()
            part.held_live.close()
        for proxy in self.links.values():
            await proxy.close()
        for name in SERVERS:
            await self.kill(name)
            self._held[name].close()

    async def _use_template(self) -> None:
        """A migrated PostgreSQL is made once a run; every platform begins with a copy of its folder."""
        made = self._template / "postgres"
        if not made.exists():
            self._template.mkdir(parents=True, exist_ok=True)
            first = EmbeddedPostgres(made)
            first.launch()
            await asyncio.to_thread(first.wait_ready)
            await migrate(first.url)
            await asyncio.to_thread(first.stop)
        # cp, because it keeps owners: as root, PostgreSQL runs as somebody else.
        for name in ("postgres", "postgres.password"):
            command = ["cp", "-a", str(self._template / name), str(self.folder / name)]
            await asyncio.to_thread(subprocess.run, command, check=True)

    async def _prepare(self, part: str) -> None:
        process = process_of(part)
        held, held_live = hold_port(), hold_port()
        urls = {}
        for server in SERVERS:
            proxy = FaultProxy(f"{part}>{server}", self._address_of(server))
            await proxy.start()
            self.links[part, server] = proxy
            url = urlsplit(self.servers[server].url)  # type: ignore[attr-defined]
            credentials = url.netloc.rpartition("@")[0]
            urls[server] = urlunsplit(url._replace(netloc=f"{credentials}@127.0.0.1:{proxy.port}"))
        own = {
            "COFFEE_RT_REDIS_URL": urls["valkey"],
            "COFFEE_RT_DATABASE_URL": urls["postgres"],
            "COFFEE_RT_SHARDS": str(self.shape.shards),
            "COFFEE_RT_INSTANCE": part,
            "COFFEE_RT_HTTP_PORT": str(port_of(held)),
            "COFFEE_RT_LOG_FORMAT": "json",
            "COFFEE_RT_FANOUT_WEBSOCKET_PORT": str(port_of(held_live)),
        }
        ours = {k: v for k, v in environment().items() if not k.startswith("COFFEE_RT_")}
        self.parts[part] = Part(
            part,
            held,
            held_live,
            self.folder / f"{part}.log",
            ours | (QUICK if self.shape.is_quick else {}) | own | dict(self.shape.settings),
            [sys.executable, "-m", "coffee_rt", process],
        )
        if process == "order-api":
            await self._put_in_front("clients", part, port_of(held))
        if process == "fanout":
            await self._put_in_front("browser", part, port_of(held_live))

    async def _put_in_front(self, who: str, part: str, port: int) -> None:
        front = FaultProxy(f"{who}>{part}", lambda: ("127.0.0.1", port))
        await front.start()
        self.links[who, part] = front

    def _address_of(self, server: str) -> Callable[[], tuple[str, int]]:
        return lambda: ("127.0.0.1", self.servers[server].port)

    # Processes and servers, by name

    def pid(self, name: str) -> int:
        process = self.servers[name].process if name in SERVERS else self.parts[name].process
        assert process is not None
        return process.pid

    def launch(self, name: str, extra: Mapping[str, str] | None = None) -> None:
        """Start a part and return at once; `extra` settings hold for this run. No-op while it runs."""
        if name in SERVERS:
            self.servers[name].launch()
            return
        part = self.parts[name]
        if part.is_running:
            return
        self.note_ends()
        part.process = spawn(part.command, part.log, environ=part.environ | dict(extra or {}))
        part.starts += 1
        part.is_wanted = True

    async def start_part(self, name: str, extra: Mapping[str, str] | None = None) -> None:
        """Start a part; returns when it is ready, its dependencies allowing (a server: when it answers)."""
        self.launch(name, extra)
        if name in SERVERS:
            await asyncio.to_thread(self.servers[name].wait_ready)
            for proxy in self.links_of(name):
                await proxy.listen()
        elif all(server.is_running for server in self.servers.values()):
            await self._not_ready({name}, START_SECONDS_MAX)

    async def kill(self, name: str) -> None:
        """kill -9, of a server with all its children. Connections to it are refused from now on."""
        self.frozen.discard(name)
        if name in SERVERS:
            for proxy in self._links_to(name):
                proxy.refuse()
            server = self.servers[name]
            if server.is_running:
                self._signal(name, signal.SIGKILL)
            await asyncio.to_thread(server.stop)
            return
        part = self.parts[name]
        part.is_wanted = False
        if part.process is not None:
            signal_group(part.process, signal.SIGKILL)
            await asyncio.to_thread(part.process.wait)

    async def terminate(self, name: str, seconds_max: float = 70.0) -> tuple[int, float]:
        """SIGTERM to a process; its exit code and how long it took. Raises subprocess.TimeoutExpired."""
        part = self.parts[name]
        assert part.process is not None
        part.is_wanted = False
        began = time.monotonic()
        part.process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(part.process.wait, seconds_max)
        return code, time.monotonic() - began

    async def stop_server(self, name: str, number: signal.Signals | None = None) -> None:
        """End a server by a signal of its own (PostgreSQL: SIGINT fast, SIGQUIT immediate)."""
        server = self.servers[name]
        for proxy in self._links_to(name):
            proxy.refuse()
        server.process.send_signal(number or server.stop_signal)
        await asyncio.to_thread(server.process.wait, 60)
        await asyncio.to_thread(server.stop)

    def freeze(self, name: str) -> None:
        """SIGSTOP, of a server with all its children: it holds its connections and says nothing."""
        self.frozen.add(name)
        self._signal(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        self.frozen.discard(name)
        self._signal(name, signal.SIGCONT)

    def _signal(self, name: str, number: signal.Signals) -> None:
        # PostgreSQL's children are of other sessions, so not the group but the tree. A tracer last: killed before
        # whom it holds up, it lets go of them, and they answer clients before their own end.
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.pid(name))
            tree = [root, *root.children(recursive=True)]
            for process in sorted(tree, key=_is_tracer):
                with suppress(psutil.NoSuchProcess):
                    os.kill(process.pid, number)

    def _links_to(self, server: str) -> Iterator[FaultProxy]:
        return (proxy for (_, to), proxy in self.links.items() if to == server)

    # Healing

    async def heal(self) -> None:
        """Undo every fault: links, frozen parts, ended servers and processes. Returns when all are ready."""
        for name in list(self.frozen):
            self.thaw(name)
        self.note_ends()
        for server in SERVERS:
            await self.start_part(server)
        for proxy in self.links.values():
            await proxy.heal()
        for name in self.parts:
            self.launch(name)
        await self.wait_ready()

    async def wait_ready(self, seconds_max: float = READY_SECONDS_MAX) -> None:
        """Until /readyz of every process says yes. Raises RuntimeError with the end of a log. One that ended
        by itself is started again, as a supervisor would, and remembered (`unasked_ends`)."""
        waiting = await self._not_ready(set(self.parts), seconds_max)
        if waiting:
            log = self.parts[min(waiting)].log
            raise RuntimeError(f"{min(waiting)} did not become ready ({log}):\n{tail(log)}")

    async def _not_ready(self, waiting: set[str], seconds_max: float) -> set[str]:
        """Those of the processes that are not ready after so long."""
        deadline = time.monotonic() + seconds_max
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while waiting and time.monotonic() < deadline:
                for name in list(waiting):
                    if await self._is_ready(session, name):
                        waiting.discard(name)
                    elif not self.parts[name].is_running:
                        self.note_ends()
                        self.launch(name)
                await asyncio.sleep(0.05)
        return waiting

    async def _is_ready(self, session: aiohttp.ClientSession, name: str) -> bool:
        part = self.parts[name]
        try:
            async with session.get(f"http://127.0.0.1:{part.port}/readyz") as response:
                return response.status == 200 and part.is_running
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    def note_ends(self) -> None:
        """Write down processes that ended though nobody asked them to, and how much memory each has."""
        for part in self.parts.values():
            if part.is_running:
                assert part.process is not None
                with suppress(psutil.NoSuchProcess):
                    used = psutil.Process(part.process.pid).memory_info().rss
                    part.peak_memory_bytes = max(part.peak_memory_bytes, used)
            elif part.is_wanted and part.process is not None:
                part.is_wanted = False
                part.unasked_ends.append(part.process.returncode)
