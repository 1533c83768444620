"""redis-py connections that know which server they are for, and TLS for all of them.

A `FoundConnection` looks its server up each time it connects, so a pool of them follows a failover, and
tells the finder what a refusal says about where things are now. Nothing is retried or resent here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from ssl import SSLContext
from typing import Any, NamedTuple, Protocol, cast

from redis.asyncio.connection import AbstractConnection, Connection, RedisSSLContext
from redis.exceptions import (
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)

from coffee_rt.runtime.settings import RedisSettings

ASK_SECONDS_MAX = 1.0
"""Longest wait for a sentinel or a node that is asked where things are: there are others to ask."""

AWAY = (RedisError, OSError, TimeoutError)
"""What a server that is away or not itself raises."""


class Node(NamedTuple):
    """A server of the installation."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Finder(Protocol):
    """Knows where keys live. Shared by all connections of a process to one installation."""

    async def find(self, key: bytes | None) -> Node:
        """The server that holds a key; None: any one that takes messages. Raises redis's ConnectionError."""

    async def verify(self, connection: AbstractConnection) -> None:
        """Raises redis's ConnectionError where a server just connected to isn't the one to use."""

    @property
    def moves(self) -> int:
        """How often another server was found to have taken over from one that may still answer: what was opened at
        another count is to be opened anew."""

    def moved(self, slot: int, node: Node) -> None:
        """A slot is elsewhere now."""

    def doubt(self) -> None:
        """What is known may be out of date: look again before the next use."""

    def suspect(self, node: Node) -> None:
        """A server could not be reached."""

    async def one_a_node(self, keys: Sequence[bytes]) -> list[bytes]:
        """Of these keys one for each server that holds some of them."""

    async def nodes(self) -> list[Node]:
        """Every server that holds data, replicas included."""


def tls_context(settings: RedisSettings, given: Mapping[str, Any]) -> SSLContext:
    """Servers are always checked, by name too. `given`: redis-py's ssl_* options from the address."""
    files = {
        "ca_certs": settings.ca_file,
        "certfile": settings.certificate_file,
        "keyfile": settings.key_file,
    }
    options: dict[str, Any] = {"cert_reqs": "required", "check_hostname": True}
    options |= {name: str(path) for name, path in files.items() if path is not None}
    options |= {name.removeprefix("ssl_"): value for name, value in given.items()}
    context: SSLContext = RedisSSLContext(**options).get()
    return context


class NodeConnection(Connection):
    """To one server. The TLS context is shared: making one reads the system's certificates (20 ms)."""

    def __init__(self, *, tls: SSLContext | None = None, **options: Any) -> None:
        self._tls = tls
        super().__init__(**options)

    def _connection_arguments(self) -> Mapping[str, Any]:
        arguments: dict[str, Any] = dict(super()._connection_arguments())
        if self._tls is not None:
            arguments["ssl"] = self._tls
        return arguments

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        """As redis-py's, where uvloop raises RuntimeError for a connection that was reset while idle, and
        asyncio an OSError: to callers both are a server that is away."""
        writer = self._writer
        try:
            await super().send_packed_command(*args, **options)
        except RuntimeError as error:
            if writer is None or not writer.transport.is_closing():
                raise
            raise RedisConnectionError(f"the connection was lost: {error}") from error


class FoundConnection(NodeConnection):
    """To the server that holds `key` when it connects (None: any)."""

    def __init__(self, *, finder: Finder, key: bytes | None, **options: Any) -> None:
        self._finder = finder
        self._moves = 0
        """The finder's count when the server was found."""
        self._key = key
        super().__init__(**options)

    async def _connect(self) -> None:
        node = await self._find()
        try:
            await super()._connect()  # type: ignore[no-untyped-call]
        except (OSError, TimeoutError):
            self._give_up()
            if await self._find() == node:
                raise
            # It was out of date: another server has taken its place since.
            await super()._connect()  # type: ignore[no-untyped-call]

    async def _find(self) -> Node:
        node = self.host, self.port = await self._finder.find(self._key)
        self._moves = self._finder.moves
        return Node(*node)

    @property
    def has_moved(self) -> bool:
        """Whether another server has taken over since."""
        return self._finder.moves != self._moves

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        try:
            await super().on_connect_check_health(check_health)
            await self._finder.verify(self)
        except AWAY:
            self._give_up()
            raise

    def _give_up(self) -> None:
        self._finder.suspect(Node(self.host, self.port))
        self._finder.doubt()

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """A server that refuses because it is the wrong one is left: the next use finds the right one."""
        try:
            return await super().read_response(*args, **options)
        except (MovedError, ReadOnlyError, ClusterDownError) as error:
            if isinstance(error, MovedError):
                self._finder.moved(error.slot_id, Node(error.host or self.host, error.port))
            self._finder.doubt()
            await self.disconnect()
            raise


async def ask(connection: AbstractConnection, *command: str) -> Any:
    """One command on a connection of its own. Raises one of AWAY, in ASK_SECONDS_MAX at the latest."""
    try:
        async with asyncio.timeout(ASK_SECONDS_MAX):
            await cast(Any, connection).connect()
            await connection.send_command(*command)
            return await connection.read_response()
    finally:
        await connection.disconnect(nowait=True)
