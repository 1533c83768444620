"""Connections to Redis or Valkey.

redis-py opens a connection (TLS, unix sockets, users and passwords, database) with its retries off; a
`Link` then takes the socket over and speaks RESP2 with hiredis on it. That way many commands can be on
their way at once, a command costs one future, and nothing is ever resent behind our back. Which server a
connection goes to (one, a Sentinel's master, the Cluster node of a key) is decided each time one is opened.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol, cast

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from coffee_rt.errors import NotExecuted, Retryable
from coffee_rt.redis_nodes.nodes import RedisNodes, has_moved, node_of
from coffee_rt.runtime.settings import RedisSettings
from coffee_rt.streams import metrics
from coffee_rt.streams.scripts import Script

Argument = bytes | str | int

_NOT_ENOUGH_DATA = object()


class ReplyError(Retryable):
    """An error reply. `code` is its first word (OOM, NOSCRIPT, NOGROUP, ...)."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.partition(" ")[0]


class LinkLost(Retryable):
    """The connection broke, timed out or was dropped: what was under way has an unknown outcome."""


def pack(*arguments: Argument) -> bytes:
    """A command as RESP."""
    return cast(bytes, hiredis.pack_command(cast(Any, arguments)))


class Link(asyncio.Protocol):
    """One connection. Replies come in the order of the commands, to any number of waiting tasks.

    Owned by whoever opened it. Each reply belongs to the future of its own command, so a cancelled caller
    harms nobody: its reply is dropped when it comes. A reply that does not come in time closes the link.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        on_error: Callable[[ReplyError | LinkLost], None] | None = None,
        has_moved: Callable[[], bool] = lambda: False,
    ) -> None:
        """`on_error` is told of each error reply, or reply out of time, that somebody waited for. `has_moved` says
        whether another server has taken over from this one, which may still answer."""
        self._connection = connection
        self._on_error = on_error
        self._has_moved = has_moved
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._reader = hiredis.Reader(
            replyError=ReplyError, notEnoughData=_NOT_ENOUGH_DATA, protocolError=ValueError
        )
        self._loop = asyncio.get_running_loop()
        # redis-py has no public way to hand its socket over; the writer stays referenced by the
        # connection, because its finalizer would close the transport.
        writer = cast(asyncio.StreamWriter, connection._writer)
        self._transport = cast(asyncio.Transport, writer.transport)
        self._transport.set_protocol(self)
        self.host: str = getattr(connection, "host", "")
        """Of the server; empty for a unix socket."""
        self._is_closed = False
        reader = connection._reader
        if (
            reader is None
            or reader.at_eof()
            or reader.exception() is not None
            or self._transport.is_closing()
        ):
            # The end came between the greeting and here: nobody will be told of it again.
            self.close("closed by the server")

    @property
    def is_closed(self) -> bool:
        """Whether it must not be used any more; what is under way may still be answered."""
        return self._is_closed or self._has_moved()

    def send(self, command: bytes) -> asyncio.Future[Any]:
        """Send packed bytes of one command; the future gets its reply (error replies as values).

        Raises NotExecuted when the link is closed already: then nothing was sent.
        """
        if self.is_closed:
            raise NotExecuted("the connection to the log is closed")
        future = self._loop.create_future()
        self._waiting.append(future)
        self._transport.write(command)
        return future

    async def wait(self, future: asyncio.Future[Any], seconds_max: float) -> Any:
        """The reply of a command sent; raises ReplyError, or LinkLost with the link closed."""
        try:
            async with asyncio.timeout(seconds_max):
                reply = await future
        except TimeoutError:
            self.close("no answer in time")
            lost = LinkLost(f"the log did not answer within {seconds_max:g} s")
            if self._on_error is not None:
                self._on_error(lost)
            raise lost from None
        if isinstance(reply, ReplyError):
            if self._on_error is not None:
                self._on_error(reply)
            raise reply
        return reply

    async def call(self, *arguments: Argument, seconds_max: float) -> Any:
        """One command and its reply."""
        return await self.wait(self.send(pack(*arguments)), seconds_max)

    async def run(
        self,
        script: Script,
        keys: Sequence[Argument],
        arguments: Sequence[Argument],
        seconds_max: float,
    ) -> Any:
        """A script by its hash; by its text where the server does not know it yet."""
        try:
            return await self.call(
                "EVALSHA", script.sha, len(keys), *keys, *arguments, seconds_max=seconds_max
            )
        except ReplyError as error:
            if error.code != "NOSCRIPT":
                raise
        return await self.call(
            "EVAL", script.text, len(keys), *keys, *arguments, seconds_max=seconds_max
        )

    def close(self, reason: str = "closed") -> None:
        """Drop the connection; waiting callers get LinkLost. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._transport.abort()
        self._connection._reader = None
        self._connection._writer = None
        waiting, self._waiting = self._waiting, deque()
        for future in waiting:
            if not future.done():
                future.set_exception(LinkLost(f"the connection to the log broke: {reason}"))
                future.exception()  # Seen: nobody may be waiting any more.

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not _NOT_ENOUGH_DATA:
                future = self._waiting.popleft()
                if not future.done():
                    future.set_result(reply)
        except (ValueError, IndexError):
            # Not RESP, or a reply nobody asked for: what follows can't be matched to commands.
            self.close("an answer could not be read")

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(str(exc) if exc else "closed by the server")


class KeptLink:
    """The one link to the server that holds a key now, opened when it is wanted. One that broke is opened anew, and so
    is one that works to a server that another has replaced: that is closed first, whoever still uses it gets
    LinkLost. Shared by tasks, of which one opens; `open_` raises what its callers are to see."""

    def __init__(self, open_: Callable[[], Awaitable[Link]]) -> None:
        self._open = open_
        self._opening = asyncio.Lock()
        self._link: Link | None = None

    @property
    def is_open(self) -> bool:
        """Whether the next `get` opens nothing."""
        return self._link is not None and not self._link.is_closed

    async def get(self) -> Link:
        if self._link is not None and not self._link.is_closed:
            return self._link
        async with self._opening:
            if self._link is None or self._link.is_closed:
                self.close()
                self._link = await self._open()
            return self._link

    def close(self) -> None:
        if self._link is not None:
            self._link.close()


class Connector(Protocol):
    """Opens links. Shared by everything in a process that speaks to the log."""

    @property
    def fails_over(self) -> bool:
        """Whether another server takes the place of one that died, within seconds."""

    @property
    def is_spread(self) -> bool:
        """Whether the log's keys live on several servers, each with a clock and a memory of its own."""

    async def open(self, key: bytes, role: str) -> Link:
        """A link to the server that holds `key` now. Raises NotExecuted."""

    async def open_asked(self, answered_by: Link, error: ReplyError, role: str) -> Link:
        """A link to the server that an ASK reply names. Raises NotExecuted."""

    async def one_a_server(self, keys: Sequence[bytes]) -> list[bytes]:
        """Of these keys one for each server that holds some of them. Raises NotExecuted."""


class RedisConnector:
    """The server, Sentinel or Cluster of the settings (or of an address alone). A Connector."""

    def __init__(self, settings: RedisSettings | str) -> None:
        if isinstance(settings, str):
            settings = RedisSettings(url=settings)
        self._nodes = RedisNodes(settings)
        self._connect_seconds_max = settings.connect_seconds_max

    @property
    def fails_over(self) -> bool:
        return self._nodes.fails_over

    @property
    def is_spread(self) -> bool:
        return self._nodes.is_spread

    async def open(self, key: bytes, role: str) -> Link:
        return await self._open(self._nodes.connection(key, **self._options(role)), role)

    async def open_asked(self, answered_by: Link, error: ReplyError, role: str) -> Link:
        node = node_of(str(error).split(" ")[2], answered_by.host)
        return await self._open(self._nodes.connection_to(node, **self._options(role)), role)

    async def one_a_server(self, keys: Sequence[bytes]) -> list[bytes]:
        try:
            return await self._nodes.one_a_node(keys)
        except (RedisError, OSError) as error:
            raise NotExecuted(f"the log is not reachable: {error}") from None

    async def greet(self, connection: AbstractConnection) -> None:
        """Connect, authenticate, choose the database."""
        await cast(Any, connection).connect()

    def _options(self, role: str) -> dict[str, Any]:
        return {
            "protocol": 2,
            "retry": None,
            "socket_timeout": self._connect_seconds_max,
            "socket_connect_timeout": self._connect_seconds_max,
            "client_name": f"coffee-rt-{role}",
        }

    async def _open(self, connection: AbstractConnection, role: str) -> Link:
        try:
            await self.greet(connection)
        except (RedisError, OSError) as error:
            raise NotExecuted(f"the log is not reachable: {error}") from None

        def learn(error: ReplyError | LinkLost) -> None:
            if isinstance(error, LinkLost):
                self._nodes.doubt()
            else:
                self._nodes.learn(error.code, str(error), link.host)

        link = Link(connection, learn, partial(has_moved, connection))
        if link.is_closed:
            raise NotExecuted("the log closed the connection at once")
        metrics.RECONNECTS.labels(role).inc()
        return link
