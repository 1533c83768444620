"""Sockets over picows: WebSocket connections of `/ws` and `/ws/dashboard`.

Frames that many sessions share are framed once by us and written to the transport as they are. Everything
a client could abuse has a bound: bytes of a message, fragments included; messages; silence. A socket that
does not read is found by the pings it never answers, or, if it talks all the same, by what it leaves unread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from picows import (
    WSCloseCode,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
    ws_create_server,
)

from coffee_rt.errors import Bug, Overload, Rejected
from coffee_rt.fanout.door import Door, Visitor
from coffee_rt.fanout.frames import Frame, encode
from coffee_rt.fanout.protocol import (
    CLOSE_BAD_FRAME,
    CLOSE_TOO_BIG,
    CLOSE_TOO_MANY,
    CLOSE_UNSUPPORTED,
)
from coffee_rt.fanout.sockets import Socket
from coffee_rt.runtime.clock import Clock

PING_FRAME = b"\x89\x00"
WRITE_BUFFER_HIGH = 64 * 1024
"""Bytes waiting in a socket above which it is congested; one part of a snapshot may come on top."""
WRITE_BUFFER_LOW = 8 * 1024
READ_BUFFER_BYTES = 1024
"""First size of a connection's read buffer: picows keeps it for the connection's whole life."""
CLOSE_SECONDS_MAX = 5.0
"""A closed connection whose peer does not read what is left is cut after so long."""


class Listener(Protocol):
    """The session behind a socket."""

    def on_message(self, text: bytes) -> None: ...
    def on_activity(self) -> bool: ...
    def on_writable(self) -> None: ...
    def on_closed(self) -> None: ...
    def close(self, code: int, reason: str) -> None: ...


# An adapter rather than a logger: of a logger, picows makes a child for each connection.
_logger = logging.LoggerAdapter(logging.getLogger("coffee_rt.fanout.picows"), {})

OpenSession = Callable[[Socket, Visitor], Listener]


@dataclass(frozen=True, slots=True)
class ServerLimits:
    message_bytes_max: int = 16 * 1024
    ping_seconds: float = 20.0


class _Connection(WSListener):
    """Socket and picows listener in one, because there are thousands."""

    __slots__ = (
        "_fragments",
        "_is_closing",
        "_open",
        "_server",
        "_session",
        "_transport",
        "_unread",
        "_visitor",
        "address",
        "is_congested",
        "is_heard",
        "write",
    )

    def __init__(self, server: WebSocketServer, visitor: Visitor, open_: OpenSession) -> None:
        self._server = server
        self._visitor: Visitor | None = visitor
        self._open: OpenSession | None = open_
        self._session: Listener | None = None
        self._transport: WSTransport | None = None
        self._fragments: bytearray | None = None
        self._is_closing = False
        self._unread = 0
        self.address: str | None = None
        """Where it was counted in at the door."""
        self.is_congested = False
        self.is_heard = True
        self.write: Callable[[bytes], object] = _write_nowhere

    @staticmethod
    def encode(frame: Frame, /) -> bytes:
        return frame.as_websocket()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        under = transport.underlying_transport
        under.set_write_buffer_limits(high=WRITE_BUFFER_HIGH, low=WRITE_BUFFER_LOW)
        self.write = under.write
        # Headers of a browser are kilobytes, and nobody reads them again.
        transport.request.headers.clear()
        visitor, open_ = self._visitor, self._open
        self._visitor = self._open = None
        if visitor is None or open_ is None:
            raise Bug("a connection was opened twice")
        peer = under.get_extra_info("peername")
        try:
            self._server.add(self, visitor, str(peer[0]) if peer else "")
        except Overload as error:
            self.close(CLOSE_TOO_MANY, error.detail)
            return
        self._session = open_(self, visitor)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        self.is_heard = True
        session = self._session
        if self._is_closing or session is None:
            return
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            session.close(CLOSE_BAD_FRAME, "reserved bits")
            return
        kind = frame.msg_type
        if kind == WSMsgType.TEXT or kind == WSMsgType.CONTINUATION:
            self._on_text(session, kind, frame)
        elif kind == WSMsgType.PING:
            # No pong on top of what it does not read: pings of a deaf socket must not fill our memory.
            if session.on_activity() and not self.is_congested:
                transport.send_pong(frame.get_payload_as_bytes())
        elif kind == WSMsgType.PONG:
            session.on_activity()
        elif kind == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        elif kind == WSMsgType.BINARY:
            session.close(CLOSE_UNSUPPORTED, "text only")

    def _on_text(self, session: Listener, kind: WSMsgType, frame: WSFrame) -> None:
        """Put a message together from its fragments; they count as activity, so endless ones end."""
        if kind == WSMsgType.TEXT and self._fragments is not None:
            session.close(CLOSE_BAD_FRAME, "a message inside another")
            return
        if frame.fin and kind == WSMsgType.TEXT:
            session.on_message(frame.get_payload_as_bytes())
            return
        if kind == WSMsgType.TEXT:
            self._fragments = bytearray()
        if self._fragments is None:
            session.close(CLOSE_UNSUPPORTED, "a continuation of nothing")
            return
        self._fragments += frame.get_payload_as_bytes()
        if len(self._fragments) > self._server.limits.message_bytes_max:
            session.close(CLOSE_TOO_BIG, "message too big")
        elif frame.fin:
            whole, self._fragments = bytes(self._fragments), None
            session.on_message(whole)
        else:
            session.on_activity()

    def pause_writing(self) -> None:
        self.is_congested = True

    def resume_writing(self) -> None:
        self.is_congested = False
        if not self._is_closing and self._session is not None:
            self._session.on_writable()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._is_closing = True
        self.write = _write_nowhere
        self._server.remove(self)
        if self._session is not None:
            self._session.on_closed()

    def close(self, code: int, reason: str) -> None:
        if self._is_closing or self._transport is None:
            return
        self._is_closing = True
        self.write = _write_nowhere
        # Any 16-bit number will do; the enumeration only has those of the RFC.
        self._transport.send_close(cast(WSCloseCode, code), reason.encode())
        self._transport.disconnect()
        self._server.cut_later(self)

    def is_deaf(self) -> bool:
        """Whether it has read nothing since this was last asked, with much to be read."""
        before, self._unread = self._unread, 0
        if not self.is_congested or self._transport is None:
            return False
        self._unread = self._transport.underlying_transport.get_write_buffer_size()
        return self._unread == before

    def cut(self) -> None:
        """End the connection at once, whatever is still to be written."""
        if self._transport is not None:
            self._transport.underlying_transport.abort()


def _write_nowhere(data: bytes) -> None:
    """What `write` is before a connection is open and after it is closed."""


class WebSocketServer:
    """Listens, asks the door, upgrades. `routes` maps a path to what opens its sessions."""

    def __init__(
        self,
        *,
        routes: dict[str, OpenSession],
        door: Door,
        clock: Clock,
        limits: ServerLimits | None = None,
    ) -> None:
        self.limits = limits or ServerLimits()
        self._routes = routes
        self._door = door
        self._clock = clock
        self._connections: dict[_Connection, None] = {}
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self, host: str, port: int) -> None:
        """Listen; raises OSError when the port is taken."""
        self._server = await ws_create_server(
            self._upgrade,
            host,
            port,
            max_frame_size=self.limits.message_bytes_max,
            read_buffer_init_size=READ_BUFFER_BYTES,
            enable_auto_ping=False,
            enable_auto_pong=False,
            websocket_handshake_timeout=5,
            disconnect_on_exception=True,
            backlog=4096,
            logger_name=_logger,
        )

    async def run(self) -> None:
        """Ping every connection in turn, until cancelled; one that was silent or deaf since is cut."""
        while True:
            await self._clock.sleep(self.limits.ping_seconds)
            for connection in list(self._connections):
                if not connection.is_heard or connection.is_deaf():
                    connection.cut()
                    continue
                connection.is_heard = False
                if not connection.is_congested:
                    connection.write(PING_FRAME)

    def stop_listening(self) -> None:
        """No new connections; those that are open go on."""
        self._door.is_closed = True
        if self._server is not None:
            self._server.close()

    async def close(self) -> None:
        """Cut what is still open."""
        self.stop_listening()
        for connection in list(self._connections):
            connection.cut()

    def add(self, connection: _Connection, visitor: Visitor, peer: str) -> None:
        """Raises Overload."""
        connection.address = self._door.enter(visitor, peer)
        self._connections[connection] = None

    def remove(self, connection: _Connection) -> None:
        if connection in self._connections:
            del self._connections[connection]
            assert connection.address is not None
            self._door.leave(connection.address)

    def cut_later(self, connection: _Connection) -> None:
        asyncio.get_running_loop().call_later(CLOSE_SECONDS_MAX, connection.cut)

    def _upgrade(self, request: WSUpgradeRequest) -> WSUpgradeResponseWithListener:
        path = request.path.decode("latin-1").partition("?")[0]
        open_ = self._routes.get(path)
        if open_ is None:
            return _refuse(404, "not-found", "There is no such socket.")
        try:
            visitor = self._door.check(request.headers)
        except Rejected as error:
            return _refuse(error.status, error.code, error.detail)
        except Overload as error:
            after = f"{error.retry_after_seconds:.0f}"
            return _refuse(error.status, error.code, error.detail, {"Retry-After": after})
        headers = {"Sec-WebSocket-Protocol": visitor.subprotocol} if visitor.subprotocol else None
        return WSUpgradeResponseWithListener(
            WSUpgradeResponse.create_101_response(headers), _Connection(self, visitor, open_)
        )


def _refuse(
    status: int, code: str, detail: str, headers: dict[str, str] | None = None
) -> WSUpgradeResponseWithListener:
    body = encode({"type": f"urn:coffee-rt:problem:{code}", "status": status, "detail": detail})
    return WSUpgradeResponseWithListener(
        WSUpgradeResponse.create_error_response(
            status,
            body,
            {
                "Content-Type": "application/problem+json",
                "X-Content-Type-Options": "nosniff",
                **(headers or {}),
            },
        ),
        None,
    )
