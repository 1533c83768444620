"""Real Sentinels and Clusters on loopback, from the embedded Valkey's program. All servers share a password.

A cluster is put together as `valkey-cli --cluster create` does it (the wheel brings no client): slots, epochs,
acquaintance, replicas. Time-outs are those of a test: a dead primary is replaced within two or three seconds.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from redis.exceptions import RedisError

from coffee_rt.embedded.launch import spawn
from coffee_rt.embedded.server_process import TEST, Durability
from coffee_rt.embedded.servers import EmbeddedValkey, _valkey_server

PASSWORD = "of-all-test-servers"
WAIT_SECONDS_MAX = 30.0
SLOTS = 16384
NODE_TIMEOUT_MS = 1000
MASTER = "coffee"


class ValkeyNode(EmbeddedValkey):
    """A Valkey with further settings, e.g. as a node of a cluster. `is_sentinel`: no data, no password."""

    def __init__(
        self,
        folder: Path,
        settings: dict[str, str] | None = None,
        *,
        port: int,
        durability: Durability = TEST,
        is_sentinel: bool = False,
    ) -> None:
        super().__init__(folder, port=port, durability=durability)
        self.further = dict(settings or {})
        self._is_sentinel = is_sentinel

    @property
    def client_password(self) -> str:
        return PASSWORD

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def client(self) -> Any:
        """A plain client of this server."""
        return redis.Redis(
            port=self.port,
            password=None if self._is_sentinel else PASSWORD,
            decode_responses=True,
            socket_timeout=5,
        )

    def ask(self, *command: str | int) -> Any:
        """One command to this server; the answer as redis-py gives it."""
        with self.client as client:
            return client.execute_command(*command)

    def text(self, command: str) -> str:
        """An answer as the server wrote it."""
        with self.client as client:
            connection = client.connection_pool.get_connection()
            try:
                connection.send_command(*command.split())
                return str(connection.read_response())
            finally:
                client.connection_pool.release(connection)

    def kill(self) -> None:
        assert self.pid is not None
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait()

    def freeze(self) -> None:
        assert self.pid is not None
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.pid is not None
        os.kill(self.pid, signal.SIGCONT)

    def spawn(self) -> subprocess.Popen[bytes]:
        if not self._is_sentinel:
            return super().spawn()
        conf = self.data_dir / "sentinel.conf"
        lines = [f"{name} {value}\n" for name, value in self._settings().items()]
        conf.write_text("".join(lines))
        return spawn([_valkey_server(), conf, "--sentinel"], self.log)

    def is_ready(self) -> bool:
        with suppress(RedisError):
            return bool(self.ask("PING"))
        return False

    def _password(self) -> str:
        return PASSWORD

    def _settings(self) -> dict[str, str]:
        if self._is_sentinel:
            own = {"bind": "127.0.0.1", "port": str(self.port), "dir": f'"{self.data_dir}"'}
        else:
            own = super()._settings() | {
                "masterauth": PASSWORD,
                # A replica's first copy begins at once; no server waits for its replicas when it ends.
                "repl-diskless-sync-delay": "0",
                "shutdown-timeout": "0",
            }
        return own | self.further


class ValkeyCluster:
    """Some primaries with as many replicas each; `nodes` are the primaries, then the replicas."""

    def __init__(
        self,
        folder: Path,
        primaries: int = 3,
        replicas: int = 0,
        *,
        settings: dict[str, str] | None = None,
        durability: Durability = TEST,
    ) -> None:
        self.primaries = primaries
        count = primaries * (1 + replicas)
        ports = free_ports(2 * count)
        self.nodes = [
            ValkeyNode(
                folder / f"node-{number}",
                _cluster_settings(bus) | (settings or {}),
                port=port,
                durability=durability,
            )
            for number, (port, bus) in enumerate(zip(ports[:count], ports[count:], strict=True))
        ]

    @property
    def url(self) -> str:
        places = ",".join(node.place for node in self.nodes[:2])
        return f"redis+cluster://:{PASSWORD}@{places}"

    def start(self) -> None:
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.wait_ready()
        share = SLOTS // self.primaries
        for number, node in enumerate(self.nodes[: self.primaries]):
            last = SLOTS - 1 if number == self.primaries - 1 else (number + 1) * share - 1
            node.ask("CLUSTER ADDSLOTSRANGE", number * share, last)
            node.ask("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            self.nodes[0].ask(
                "CLUSTER MEET", "127.0.0.1", node.port, int(node.further["cluster-port"])
            )
        wait_until(lambda: all(map(self._knows_all, self.nodes)), "the nodes know each other")
        for number, node in enumerate(self.nodes[self.primaries :]):
            primary = self.nodes[number % self.primaries]
            node.ask("CLUSTER REPLICATE", primary.ask("CLUSTER MYID"))
        wait_until(lambda: all(map(self._is_whole, self.nodes)), "the cluster is whole")

    def stop(self) -> None:
        for node in self.nodes:
            node.stop(seconds=1)

    def primary_of(self, key: bytes) -> ValkeyNode:
        """The node that serves a key now, as most of those that run say it."""
        for node in self.nodes:
            if not node.is_running:
                continue
            with suppress(RedisError):
                slot = node.ask("CLUSTER KEYSLOT", key.decode())
                for first, last, (_host, port, *_), *_rest in node.client.execute_command(
                    "CLUSTER SLOTS"
                ):
                    if first <= slot <= last:
                        return self.node_at(port)
        raise AssertionError("no node serves the key")

    def node_at(self, port: int) -> ValkeyNode:
        return next(node for node in self.nodes if node.port == port)

    def _knows_all(self, node: ValkeyNode) -> bool:
        known = [line for line in node.text("CLUSTER NODES").split("\n") if line]
        return len(known) == len(self.nodes) and not any("handshake" in line for line in known)

    def _is_whole(self, node: ValkeyNode) -> bool:
        info = node.text("CLUSTER INFO")
        if "cluster_state:ok" not in info or "cluster_slots_ok:16384" not in info:
            return False
        replication = node.text("INFO replication")
        return "role:slave" not in replication or "master_link_status:up" in replication


class ValkeySentinels:
    """A master, replicas and sentinels that watch them. `servers` begin with the first master.

    `front_port`: where all others, clients too, find that first master, if not at its own port.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sentinels: int = 3,
        replicas: int = 1,
        settings: dict[str, str] | None = None,
        durability: Durability = TEST,
        front_port: int = 0,
    ) -> None:
        ports = free_ports(1 + replicas + sentinels)
        self.servers = [
            ValkeyNode(folder / f"server-{port}", settings, port=port, durability=durability)
            for port in ports[: 1 + replicas]
        ]
        self.front_port = front_port or self.servers[0].port
        self.servers[0].further |= {
            "replica-announce-ip": "127.0.0.1",
            "replica-announce-port": str(self.front_port),
        }
        self.sentinels = [
            ValkeyNode(folder / f"sentinel-{port}", port=port, is_sentinel=True)
            for port in ports[1 + replicas :]
        ]

    @property
    def url(self) -> str:
        places = ",".join(sentinel.place for sentinel in self.sentinels)
        return f"redis+sentinel://:{PASSWORD}@{places}/{MASTER}/0"

    def start(self) -> None:
        for node in [*self.servers, *self.sentinels]:
            node.launch()
        for node in [*self.servers, *self.sentinels]:
            node.wait_ready()
        for replica in self.servers[1:]:
            replica.ask("REPLICAOF", "127.0.0.1", self.front_port)
        for replica in self.servers[1:]:
            wait_until(lambda node=replica: self._is_in_step(node), "the replica is in step")  # type: ignore[misc]
        quorum = len(self.sentinels) // 2 + 1
        for number, sentinel in enumerate(self.sentinels):
            # From the third on they only vote: three that stand for election may split the votes again
            # and again, seconds each time.
            down_after_ms = 600 if number < 2 else 60_000
            sentinel.ask("SENTINEL MONITOR", MASTER, "127.0.0.1", self.front_port, quorum)
            sentinel.ask("SENTINEL SET", MASTER, "auth-pass", PASSWORD)
            sentinel.ask("SENTINEL SET", MASTER, "down-after-milliseconds", down_after_ms)
            sentinel.ask("SENTINEL SET", MASTER, "failover-timeout", 1000)
            periods = ["info-period", "ping-period", "publish-period", "ask-period"]
            periods.append("min-link-reconnect-period")
            sentinel.ask("SENTINEL DEBUG", *(word for name in periods for word in (name, "100")))
            sentinel.ask("SENTINEL DEBUG", "election-timeout", "1000")
        wait_until(lambda: all(map(self._is_watching, self.sentinels)), "the sentinels watch")

    def stop(self) -> None:
        for node in [*self.sentinels, *self.servers]:
            node.stop(seconds=1)

    def master(self) -> ValkeyNode:
        """Who the first sentinel that answers names."""
        _host, port = self.sentinels[0].ask("SENTINEL GET-MASTER-ADDR-BY-NAME", MASTER)
        if int(port) == self.front_port:
            return self.servers[0]
        return next(server for server in self.servers if server.port == int(port))

    def _is_in_step(self, node: ValkeyNode) -> bool:
        return "master_link_status:up" in node.text("INFO replication")

    def _is_watching(self, sentinel: ValkeyNode) -> bool:
        found = sentinel.ask("SENTINEL MASTER", MASTER)
        facts = (
            found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))
        )
        return (
            int(facts["num-other-sentinels"]) == len(self.sentinels) - 1
            and int(facts["num-slaves"]) == len(self.servers) - 1
        )


@contextmanager
def running(servers: ValkeyCluster | ValkeySentinels) -> Iterator[None]:
    try:
        servers.start()
        yield
    finally:
        servers.stop()


def wait_until(is_true: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS_MAX) -> None:
    """Return once it holds; fail when it doesn't in time."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """Ports that are free now, no two the same."""
    held = [socket.socket() for _ in range(count)]
    try:
        for probe in held:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in held]
    finally:
        for probe in held:
            probe.close()


def _cluster_settings(bus_port: int) -> dict[str, str]:
    return {
        "cluster-enabled": "yes",
        "cluster-port": str(bus_port),
        "cluster-node-timeout": str(NODE_TIMEOUT_MS),
        "cluster-replica-validity-factor": "0",
    }
