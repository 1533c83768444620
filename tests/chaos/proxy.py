"""A TCP proxy on loopback that misbehaves on command: it stands between every pair of parts.

Bytes go through unchanged, in order, until a fault is set; faults hold until `heal()`, for open and for new
connections alike unless said otherwise. One proxy is one link (who connects > to whom) and lives on the loop
that started it; its port is the same from `start()` to `close()`, also while nothing listens on it.

What a fault can't be undone on is reset at the latest by `heal()`: a stream that lost bytes is worthless.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum

CHUNK_BYTES = 64 * 1024
CHUNKS_UNDER_WAY_MAX = 64
"""Chunks a direction holds back (4 MB); beyond, the sender feels it."""


class Direction(Enum):
    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"
    BOTH = "both ways"

    @property
    def ways(self) -> tuple[Direction, ...]:
        return (Direction.TO_SERVER, Direction.TO_CLIENT) if self is Direction.BOTH else (self,)


@dataclass
class Way:
    """What is wrong in one direction."""

    latency_seconds: float = 0.0
    jitter_seconds: float = 0.0
    bytes_per_second: float = 0.0
    """0: no limit."""
    is_swallowed: bool = False
    resets_when_swallowing: bool = False
    cut_bytes: int | None = None
    passes: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared: a black hole. Bytes wait, as for a retransmission that comes through one day."""


@dataclass(eq=False)
class Connection:
    """Both halves of one proxied connection."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    budgets: dict[Direction, int] = field(default_factory=dict)
    """Bytes that may still pass before the cut."""
    is_deaf: bool = False
    """Half open: whatever is sent from now on goes nowhere, and nobody says so."""
    has_lost_bytes: bool = False

    def reset(self) -> None:
        """RST to both sides."""
        for writer in (self.client, self.server):
            if writer is None:
                continue
            found = writer.transport.get_extra_info("socket")
            if found is not None:
                with suppress(OSError):
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        for task in self.tasks:
            if task is not asyncio.current_task():
                task.cancel()


def hold_port(host: str = "127.0.0.1") -> socket.socket:
    """A socket that keeps a free port ours without listening: connections to it are refused, and no
    connection going out takes it while its listener is away. Listeners bind beside it (SO_REUSEADDR)."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((host, 0))
    return held


class FaultProxy:
    """One link. `upstream` is asked for each connection, because a server may come back elsewhere."""

    def __init__(self, name: str, upstream: Callable[[], tuple[str, int]]) -> None:
        self.name = name
        self.connections: set[Connection] = set()
        self.accepted = 0
        """Connections ever taken: a storm of reconnects shows here."""
        self.bytes_passed = 0
        self._upstream = upstream
        self._chance = random.Random(name)
        """Of the jitter: each link's own, the same in every run."""
        self._held: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._ways = {way: Way() for way in Direction.BOTH.ways}
        for way in self._ways.values():
            way.passes.set()

    @property
    def port(self) -> int:
        assert self._held is not None, "start() first"
        return int(self._held.getsockname()[1])

    async def start(self) -> None:
        self._held = hold_port()
        await self.listen()

    async def close(self) -> None:
        self.refuse()
        for connection in list(self.connections):
            connection.reset()
            await asyncio.gather(*connection.tasks, return_exceptions=True)
        if self._held is not None:
            self._held.close()
            self._held = None

    # Faults of connections

    def reset(self) -> int:
        """Cut every open connection with an RST; how many. New ones work."""
        connections = list(self.connections)
        for connection in connections:
            connection.reset()
        return len(connections)

    def refuse(self) -> None:
        """Nobody listens: new connections are refused, open ones live on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def listen(self) -> None:
        """The opposite of `refuse`."""
        if self._server is None:
            self._server = await asyncio.start_server(self._take, "127.0.0.1", self.port)

    def half_open(self) -> int:
        """The peer of every open connection is gone and nobody told: what is sent goes nowhere, nothing
        comes back, nothing is closed. New connections work. How many were open."""
        connections = list(self.connections)
        for connection in connections:
            connection.is_deaf = connection.has_lost_bytes = True
            if connection.server is not None:
                connection.server.transport.abort()
        return len(connections)

    # Faults of bytes

    def latency(
        self, seconds: float, jitter: float = 0.0, direction: Direction = Direction.BOTH
    ) -> None:
        """Each chunk arrives `seconds` (plus up to `jitter`, evenly) later; order is kept."""
        for way in direction.ways:
            self._ways[way].latency_seconds = seconds
            self._ways[way].jitter_seconds = jitter

    def bandwidth(self, bytes_per_second: float, direction: Direction = Direction.BOTH) -> None:
        """A narrow line: of each connection, each way."""
        for way in direction.ways:
            self._ways[way].bytes_per_second = bytes_per_second

    def cut_after(self, count: int, direction: Direction = Direction.TO_SERVER) -> None:
        """Each connection is reset when `count` more bytes have passed in this direction."""
        for way in direction.ways:
            self._ways[way].cut_bytes = count
            for connection in self.connections:
                connection.budgets[way] = count

    def swallow_replies(self, *, then_reset: bool = False) -> None:
        """Requests arrive and take effect, their answers don't come back. `then_reset`: a connection is
        reset as soon as an answer of it was swallowed, instead of staying silent."""
        way = self._ways[Direction.TO_CLIENT]
        way.is_swallowed = True
        way.resets_when_swallowing = then_reset

    def black_hole(self, direction: Direction = Direction.BOTH) -> None:
        """Nothing arrives in this direction, and nothing is refused. Bytes wait for `heal()`. A new
        connection is taken, because the kernel does that, and then is silent."""
        for way in direction.ways:
            self._ways[way].passes.clear()

    async def heal(self) -> None:
        """All well again; connections that lost bytes are reset."""
        for way in self._ways.values():
            way.latency_seconds = way.jitter_seconds = way.bytes_per_second = 0.0
            way.is_swallowed = way.resets_when_swallowing = False
            way.cut_bytes = None
            way.passes.set()
        for connection in list(self.connections):
            connection.budgets.clear()
            if connection.has_lost_bytes:
                connection.reset()
        await self.listen()

    # The pumps

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        connection = Connection(writer)
        connection.budgets = {
            name: way.cut_bytes for name, way in self._ways.items() if way.cut_bytes is not None
        }
        self.connections.add(connection)
        task = asyncio.current_task()
        assert task is not None
        connection.tasks.add(task)
        try:
            # A black hole swallows the handshake's answer too.
            await self._ways[Direction.TO_SERVER].passes.wait()
            from_server, connection.server = await asyncio.open_connection(*self._upstream())
            pumps = (
                (Direction.TO_SERVER, reader, connection.server),
                (Direction.TO_CLIENT, from_server, writer),
            )
            tasks = [asyncio.create_task(self._pump(connection, *pump)) for pump in pumps]
            connection.tasks.update(tasks)
            await asyncio.gather(*tasks)
        except OSError:
            connection.reset()
        except asyncio.CancelledError:
            # By reset() or close(): the streams' own callback must not report it.
            connection.reset()
        finally:
            self.connections.discard(connection)
            for half in (writer, connection.server):
                if half is not None:
                    half.close()

    async def _pump(
        self,
        connection: Connection,
        direction: Direction,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """One direction of one connection: a reader that stamps chunks, a writer that waits for their time."""
        way = self._ways[direction]
        queue: asyncio.Queue[tuple[float, bytes | OSError]] = asyncio.Queue(CHUNKS_UNDER_WAY_MAX)
        loop = asyncio.get_running_loop()

        async def read() -> None:
            data: bytes | OSError = b"-"
            while data and not isinstance(data, OSError):
                try:
                    data = await reader.read(CHUNK_BYTES)
                except OSError as error:
                    data = error
                delay = way.latency_seconds + self._chance.random() * way.jitter_seconds
                await queue.put((loop.time() + delay, data))

        reading = asyncio.create_task(read())
        try:
            while True:
                due, data = await queue.get()
                if due > loop.time():
                    await asyncio.sleep(due - loop.time())
                if isinstance(data, OSError):
                    raise data
                if way.bytes_per_second:
                    await asyncio.sleep(len(data) / way.bytes_per_second)
                await way.passes.wait()
                if not data:
                    if not connection.is_deaf and writer.can_write_eof():
                        writer.write_eof()
                    return
                if not connection.is_deaf and not await self._pass(
                    connection, direction, data, writer
                ):
                    return
        finally:
            reading.cancel()

    async def _pass(
        self,
        connection: Connection,
        direction: Direction,
        data: bytes,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Hand one chunk on, as far as the faults let it; False once the connection is cut."""
        way = self._ways[direction]
        if way.is_swallowed:
            connection.has_lost_bytes = True
            if way.resets_when_swallowing:
                connection.reset()
                return False
            return True
        budget = connection.budgets.get(direction)
        if budget is not None and len(data) > budget:
            writer.write(data[:budget])
            with suppress(OSError):
                await writer.drain()
            connection.reset()
            return False
        if budget is not None:
            connection.budgets[direction] = budget - len(data)
        self.bytes_passed += len(data)
        writer.write(data)
        await writer.drain()
        return True
