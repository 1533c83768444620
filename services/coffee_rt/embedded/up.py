"""`coffee-rt up`: servers, all processes and one address, started, kept running, and stopped in order.

Start: servers and the warm interpreter side by side, migrations, processes side by side, proxy. Stop: who
takes orders and serves pages first, then who moves them on, the proxy, the servers last, so that nothing
that was accepted waits for a server that is already gone. The data stays in the directory.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable, Iterator

from coffee_rt.embedded.directory import DataDirectory
from coffee_rt.embedded.examine import Verdict, examine_servers
from coffee_rt.embedded.forks import Warm
from coffee_rt.embedded.plan import (
    GRACE_SECONDS,
    PROCESSES,
    UpOptions,
    address_of,
    process_environ,
    reserve_ports,
    shared_environ,
)
from coffee_rt.embedded.proxy import DRAIN_SECONDS, caddy_command, plan_configuration
from coffee_rt.embedded.server_process import Server, ServerProblem
from coffee_rt.embedded.servers import EmbeddedPostgres, EmbeddedValkey
from coffee_rt.embedded.supervisor import Handle, Part, Say, Supervisor
from coffee_rt.errors import Bug, Retryable

PROCESS_STOP_SECONDS = GRACE_SECONDS + 3.0

BOUND_LOGS_SECONDS = 30.0


def run_up(options: UpOptions, say: Say, warm: Warm) -> int:
    """Run until a signal; the exit code. `warm` has begun: the processes are forks of it.

    Raises ServerProblem when it can't start.
    """
    directory = DataDirectory(options.data_dir)
    directory.open()
    try:
        return asyncio.run(_run(House(options, directory, say, warm), say))
    finally:
        directory.close()


async def _run(house: House, say: Say) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    start = asyncio.create_task(house.start())
    waiting = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({start, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if start.done():
            # Raises what went wrong.
            await start
            await waiting
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        say("\nStopping: what was accepted is stored first.")
    finally:
        is_clean = await house.stop()
    say("Stopped." if is_clean else "Stopped, not in time: see above. Nothing accepted is lost.")
    return 0 if is_clean else 1


class House:
    """Everything one `up` runs. Owned by its event loop."""

    def __init__(self, options: UpOptions, directory: DataDirectory, say: Say, warm: Warm) -> None:
        self._options = options
        self._directory = directory
        self._say = say
        self._supervisor = Supervisor(say, directory.path / "pids")
        self._ports = reserve_ports(options.host, options.port)
        self._warm = warm
        self._base: dict[str, str] = {}
        self._servers = [self._server_part(server) for server in self._embedded_servers()]
        self._processes = {name: self._process_part(name) for name in PROCESSES}
        self._proxy = self._proxy_part()
        self._simulation = self._fork_part("simulate", self._simulate_arguments(), {}, _always)
        self._chores: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when everything is ready. Raises ServerProblem."""
        self._say(f"coffee-rt is starting; its data is in {self._directory.path}")
        for part in self._servers:
            await self._supervisor.launch(part)
        await _all(self._supervisor.bring_up(part) for part in self._servers)
        if self._options.redis_url:
            await self._check_redis(self._options.redis_url)
        self._base = _inherited_environ() | self._shared_environ()
        self._directory.write_environment(self._shared_environ())
        await self._migrate(self._base["COFFEE_RT_DATABASE_URL"])
        parts = [*self._processes.values(), self._proxy]
        await _all(self._supervisor.bring_up(part) for part in parts)
        address = address_of(self._options, self._ports.public)
        self._directory.write_address(address)
        if self._options.simulate_per_second:
            await self._supervisor.bring_up(self._simulation)
        self._chores = asyncio.create_task(self._bound_logs())
        self._say(f"\nDashboard: {address}/    (Ctrl-C stops everything; the data stays)")
        if not self._options.is_loopback:
            self._say("API keys are required here; make one with: coffee-rt keys add NAME")

    async def stop(self) -> bool:
        """Stop whatever was started; whether all of it ended in time."""
        if self._chores:
            self._chores.cancel()
        processes = self._processes
        phases: list[list[Part]] = [
            [self._simulation],
            [processes["order-api"], processes["fanout"]],
            [processes["worker"]],
            [processes["aggregator"], processes["query-api"]],
            [self._proxy],
            self._servers,
        ]
        ended = [await self._supervisor.stop(phase) for phase in phases]
        return all(ended)

    def _embedded_servers(self) -> list[Server]:
        options, directory = self._options, self._directory
        servers: list[Server] = []
        if options.redis_url is None:
            self._valkey = EmbeddedValkey(
                directory.valkey, port=self._ports.valkey, log=directory.log("valkey")
            )
            servers.append(self._valkey)
        if options.database_url is None:
            self._postgres = EmbeddedPostgres(
                directory.postgres, port=self._ports.postgres, log=directory.log("postgres")
            )
            servers.append(self._postgres)
        return servers

    def _shared_environ(self) -> dict[str, str]:
        redis_url = self._options.redis_url or self._valkey.url
        database_url = self._options.database_url or self._postgres.url
        return shared_environ(self._options, redis_url, database_url)

    def _server_part(self, server: Server) -> Part:
        async def launch() -> Handle:
            server.launch()
            return server.process

        async def probe() -> bool:
            return server.is_ready()

        return Part(
            name=server.name,
            launch=launch,
            probe=probe,
            log=server.log,
            stop_signal=server.stop_signal,
            force_signal=server.force_signal,
            stop_seconds=60.0,
        )

    def _process_part(self, name: str) -> Part:
        port = self._ports.http_of(name)
        environ = process_environ(self._options, self._ports, name)
        return self._fork_part(name, [name], environ, lambda: is_ready(port))

    def _fork_part(
        self,
        name: str,
        arguments: list[str],
        environ: dict[str, str],
        probe: Callable[[], Awaitable[bool]],
    ) -> Part:
        log = self._directory.log(name)

        async def launch() -> Handle:
            return await asyncio.to_thread(self._warm.fork, arguments, self._base | environ, log)

        return Part(name, launch, probe, log, stop_seconds=PROCESS_STOP_SECONDS)

    def _proxy_part(self) -> Part:
        from coffee_rt.embedded.launch import spawn

        home = self._directory.path / "caddy"
        log = self._directory.log("proxy")
        configuration = home / "caddy.json"

        async def launch() -> Handle:
            home.mkdir(exist_ok=True)
            plan = plan_configuration(self._options.host, self._ports.public, self._ports.upstreams)
            configuration.write_text(json.dumps(plan, indent=1))
            environ = {"HOME": str(home), "XDG_DATA_HOME": str(home), "XDG_CONFIG_HOME": str(home)}
            return spawn(caddy_command(configuration), log, environ=environ)

        async def probe() -> bool:
            return await is_ready(self._ports.public, "/livez")

        return Part("proxy", launch, probe, log, stop_seconds=DRAIN_SECONDS + 5)

    def _simulate_arguments(self) -> list[str]:
        address = address_of(self._options, self._ports.public)
        return ["simulate", address, "--rate", str(self._options.simulate_per_second)]

    async def _migrate(self, database_url: str) -> None:
        """In this process: the helper is still busy with its imports."""
        import asyncpg

        from coffee_rt.store.migrations import migrate

        try:
            await migrate(database_url)
        except (Bug, Retryable, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise ServerProblem(f"The database can't be brought up to date: {error}") from None

    async def _check_redis(self, url: str) -> None:
        """A server of one's own is asked first: no process would say more plainly what is wrong."""
        import redis.exceptions

        from coffee_rt.embedded.doctor import ask_redis
        from coffee_rt.embedded.reach import ToolSettings
        from coffee_rt.runtime.environment import load
        from coffee_rt.runtime.settings import SettingsError

        try:
            settings = load(ToolSettings, _inherited_environ() | {"COFFEE_RT_REDIS_URL": url})
            servers = await ask_redis(settings.redis)
        except (redis.exceptions.RedisError, OSError, ValueError, SettingsError) as error:
            raise ServerProblem(f"Redis can't be used ({error}). See --redis-url.") from None
        for finding in examine_servers(servers):
            if finding.verdict is Verdict.UNSAFE:
                self._say(f"  UNSAFE  {finding.subject}: {finding.found}. {finding.mend}")

    async def _bound_logs(self) -> None:
        while True:
            await asyncio.sleep(BOUND_LOGS_SECONDS)
            await asyncio.to_thread(self._directory.bound_logs)


async def is_ready(port: int, path: str = "/readyz") -> bool:
    """Whether a process on loopback answers 200. Anything else, silence included, is no."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(
                    f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
                )
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


async def _always() -> bool:
    return True


async def _all(work: Iterator[Awaitable[None]]) -> None:
    """Wait for all; the first failure cancels the others and is raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _inherited_environ() -> dict[str, str]:
    """Our own environment, with what the person set for single processes (COFFEE_RT_WORKER_...)."""
    # Here, not above: this import costs 0.3 s, which the servers' start hides.
    from coffee_rt.runtime.environment import environment

    return environment()
