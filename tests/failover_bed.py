"""Replicated logs whose first master can be killed, frozen, or parted from all but one process: see tests.failover."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from coffee_rt.embedded.server_process import LAPTOP
from tests.chaos.proxy import FaultProxy
from tests.log_servers import PASSWORD, ValkeyCluster, ValkeyNode, ValkeySentinels, wait_until

REFUSED_AFTER_SECONDS = 0.5
CUT_SECONDS = 0.5
"""How long replication is cut before the master dies."""
BEYOND_SECONDS = 1.0
"""How long a frozen or parted master stays away once another is there."""


@dataclass(frozen=True)
class Row:
    """One line of the table: what is set up, and what is done to it."""

    kind: str
    """`sentinel`: a master and two replicas. `cluster`: three primaries with a replica each."""
    fault: str
    replicas: int
    """What an answer waits for."""
    level: str = "memory"
    to_write: int = 0
    """The servers' own `min-replicas-to-write`."""

    @property
    def name(self) -> str:
        asked = f"{self.replicas} {self.level}" if self.replicas else "0"
        return f"{self.kind} {self.fault} {asked} to-write {self.to_write}"

    @property
    def must_lose(self) -> bool:
        """Else the row proves nothing."""
        return self.fault in ("lossy", "parted") and not (self.replicas or self.to_write)

    @property
    def may_lose(self) -> bool:
        """An answer that waited for all replicas there are outlives the master, whatever befalls it."""
        return self.replicas < (2 if self.kind == "sentinel" else 1)


class PartedProxy(FaultProxy):
    """In front of a server; while it is parted only one process gets through, and all others are refused."""

    def __init__(self, name: str) -> None:
        super().__init__(name, lambda: ("127.0.0.1", self.server_port))
        self.server_port = 0
        self._friend: int | None = None
        self._refusing: set[asyncio.Task[None]] = set()

    def part_from_all_but(self, pid: int) -> None:
        self._friend = pid
        for connection in list(self.connections):
            if not has_port(pid, port_of(connection.client)):
                connection.reset()

    def rejoin(self) -> None:
        self._friend = None

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        friend = self._friend
        # Looking takes tens of milliseconds, and those that are refused come back at once.
        if friend is None or await asyncio.to_thread(has_port, friend, port_of(writer)):
            await super()._take(reader, writer)
            return
        task = asyncio.current_task()
        assert task is not None
        self._refusing.add(task)
        try:
            await asyncio.sleep(REFUSED_AFTER_SECONDS)
        finally:
            self._refusing.discard(task)
            writer.transport.abort()

    async def close(self) -> None:
        # All that were refused are gone by then.
        while self._refusing:  # noqa: ASYNC110
            await asyncio.sleep(REFUSED_AFTER_SECONDS / 5)
        await super().close()


def port_of(client: asyncio.StreamWriter) -> int:
    return int(client.get_extra_info("peername")[1])


def has_port(pid: int, port: int) -> bool:
    """Whether a connection from a port of loopback is a process's."""
    ours = f" 0100007F:{port:04X} "
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()
    sockets = {f"socket:[{line.split()[9]}]" for line in lines if ours in line[:20]}
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            if str(descriptor.readlink()) in sockets:
                return True
    return False


class Bed:
    """The servers of one row. Its methods block, except `hurt` and `heal`."""

    def __init__(self, row: Row, folder: Path) -> None:
        self.row = row
        self.proxy: PartedProxy | None = None
        self._folder = folder
        self._servers: ValkeySentinels | ValkeyCluster

    async def start(self) -> None:
        settings = {"min-replicas-to-write": str(self.row.to_write)}
        if self.row.kind == "cluster":
            self._servers = ValkeyCluster(
                self._folder, replicas=1, settings=settings, durability=LAPTOP
            )
        else:
            # Who is in front is known before the servers are.
            proxy = self.proxy = PartedProxy("all>master")
            await proxy.start()
            self._servers = ValkeySentinels(
                self._folder,
                replicas=2,
                settings=settings,
                durability=LAPTOP,
                front_port=proxy.port,
            )
            proxy.server_port = self.first.port
        await asyncio.to_thread(self._servers.start)

    async def stop(self) -> None:
        await asyncio.to_thread(self._servers.stop)
        if self.proxy is not None:
            await self.proxy.close()

    @property
    def url(self) -> str:
        return self._servers.url

    @property
    def first(self) -> ValkeyNode:
        """The one that is hurt."""
        if isinstance(self._servers, ValkeyCluster):
            return self._servers.nodes[0]
        return self._servers.servers[0]

    @property
    def replicas(self) -> list[ValkeyNode]:
        """Of the one that is hurt."""
        if isinstance(self._servers, ValkeyCluster):
            return [self._servers.nodes[self._servers.primaries]]
        return self._servers.servers[1:]

    async def hurt(self, friend: int) -> None:
        """Do the row's harm; returns when another master is there."""
        if self.row.fault == "lossy":
            await asyncio.to_thread(self._cut_replication)
            await asyncio.sleep(CUT_SECONDS)
        if self.row.fault == "frozen":
            self.first.freeze()
        elif self.row.fault == "parted":
            assert self.proxy is not None, "only a master behind Sentinel can be parted here"
            self.proxy.part_from_all_but(friend)
        else:
            self.first.kill()
        await asyncio.to_thread(wait_until, self._is_replaced, "another master is there")

    async def heal(self) -> None:
        """The old master comes back, where it went away for a while or is needed as a replica."""
        await asyncio.sleep(BEYOND_SECONDS)
        if self.row.fault == "frozen":
            self.first.thaw()
        elif self.proxy is not None and self.row.fault == "parted":
            self.proxy.rejoin()
        elif max(self.row.replicas, self.row.to_write) > len(self.replicas) - 1:
            await asyncio.to_thread(self.first.start)
        for replica in self.replicas:
            await asyncio.to_thread(replica.ask, "CONFIG SET", "masterauth", PASSWORD)

    def _cut_replication(self) -> None:
        for replica in self.replicas:
            replica.ask("CONFIG SET", "masterauth", "wrong")
        self.first.ask("CLIENT KILL", "TYPE", "replica")

    def _is_replaced(self) -> bool:
        if isinstance(self._servers, ValkeySentinels):
            return self._servers.master() is not self.first
        return "role:master" in self.replicas[0].text("INFO replication")
