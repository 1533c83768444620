"""What `coffee-rt up` starts, decided before anything runs: ports, addresses, each process's settings."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from pathlib import Path

from coffee_rt.embedded.proxy import Upstreams
from coffee_rt.embedded.server_process import ServerProblem
from coffee_rt.runtime.settings import LOOPBACK

PROCESSES = ("order-api", "worker", "aggregator", "fanout", "query-api")

GRACE_SECONDS = 25
"""A process drains this long; then it ends by itself, with what is undone still in the log."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What the command line asks for."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8080
    simulate_per_second: float = 0
    redis_url: str | None = None
    database_url: str | None = None
    views_dir: Path | None = None

    @property
    def is_loopback(self) -> bool:
        return self.host in LOOPBACK


@dataclass(frozen=True, slots=True)
class Ports:
    """Loopback ports of this run; kept when a process restarts."""

    public: int
    order_api: int
    worker: int
    aggregator: int
    fanout: int
    fanout_websocket: int
    query_api: int
    postgres: int
    valkey: int

    @property
    def upstreams(self) -> Upstreams:
        return Upstreams(
            order_api=self.order_api,
            query_api=self.query_api,
            fanout=self.fanout,
            fanout_websocket=self.fanout_websocket,
        )

    def http_of(self, process: str) -> int:
        return int(getattr(self, process.replace("-", "_")))


def reserve_ports(host: str, public: int) -> Ports:
    """Check the public port (0: any free one) and find one for each part.

    All are held open at once, so that no two are the same. Raises ServerProblem when the public one can't
    be had.
    """
    held = [_hold_public(host, public)]
    try:
        for _ in range(8):
            probe = socket.socket()
            held.append(probe)
            probe.bind(("127.0.0.1", 0))
        return Ports(*(int(probe.getsockname()[1]) for probe in held))
    finally:
        for probe in held:
            probe.close()


def shared_environ(options: UpOptions, redis_url: str, database_url: str) -> dict[str, str]:
    """Settings of all processes: also what an administrator's command needs to reach them."""
    return {
        "COFFEE_RT_REDIS_URL": redis_url,
        "COFFEE_RT_DATABASE_URL": database_url,
        # Open to everyone who can reach the address: only where that is this machine alone.
        "COFFEE_RT_AUTH": "off" if options.is_loopback else "required",
    }


def process_environ(options: UpOptions, ports: Ports, process: str) -> dict[str, str]:
    """Settings of one process beside the shared ones."""
    environ = {
        "COFFEE_RT_HTTP_HOST": "127.0.0.1",
        "COFFEE_RT_HTTP_PORT": str(ports.http_of(process)),
        "COFFEE_RT_LOG_FORMAT": "json",
        # The same at each start: a restarted worker finds what its predecessor held.
        "COFFEE_RT_INSTANCE": "embedded",
        "COFFEE_RT_GRACE_SECONDS": str(GRACE_SECONDS),
        # A server that crashed is back within seconds here.
        "COFFEE_RT_BREAKER_OPEN_SECONDS": "3",
    }
    if process == "order-api":
        # Our own proxy stands in front; a laptop's owner needs no limit against himself.
        environ["COFFEE_RT_ORDER_API_TRUSTED_PROXIES"] = "127.0.0.1"
        if options.is_loopback:
            environ["COFFEE_RT_ORDER_API_ANONYMOUS_PER_MINUTE"] = "0"
    if process == "query-api":
        environ["COFFEE_RT_QUERY_API_TRUSTED_PROXIES"] = "127.0.0.1"
        if options.is_loopback:
            environ["COFFEE_RT_QUERY_API_ANONYMOUS_PER_MINUTE"] = "0"
    if process == "aggregator" and options.views_dir:
        environ["COFFEE_RT_AGGREGATOR_VIEWS_DIR"] = str(options.views_dir.absolute())
    if process == "fanout":
        environ["COFFEE_RT_FANOUT_WEBSOCKET_PORT"] = str(ports.fanout_websocket)
        # A few browsers, not a crowd to send away without a stampede.
        environ["COFFEE_RT_FANOUT_DRAIN_SECONDS"] = "0.5"
    return environ


def address_of(options: UpOptions, port: int) -> str:
    """Where a browser on this machine finds it."""
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _hold_public(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except socket.gaierror:
        raise ServerProblem(f"{host!r} is not an address of this machine (--host).") from None
    probe = socket.socket(family)
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, port))
        # Two may bind with SO_REUSEADDR; only one may listen.
        probe.listen(1)
    except OSError as error:
        probe.close()
        raise ServerProblem(_explain_bind(host, port, error)) from None
    return probe


def _explain_bind(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is in use by another program. Choose another with --port "
            "(0 takes any free one)."
        )
    if error.errno == errno.EACCES:
        return f"Port {port} may only be used by root. Choose one above 1023 with --port."
    return (
        f"Can't listen on {host}:{port} ({error.strerror}). Choose others with --host and --port."
    )
