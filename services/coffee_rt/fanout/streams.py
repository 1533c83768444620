"""Server-sent events: `GET /api/v1/live?channel=view:hourly&store=uptown&since=...`, one channel a stream.

The same frames as on a WebSocket, each as an event whose id is what `Last-Event-ID` resumes from.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping

from starlette.requests import Request
from starlette.responses import StreamingResponse

from coffee_rt.errors import Overload, Rejected
from coffee_rt.fanout.door import Door, Visitor
from coffee_rt.fanout.frames import Frame, encode, message
from coffee_rt.fanout.hub import Hub
from coffee_rt.fanout.protocol import Subscribe, parse_filter, parse_mark

BUFFER_BYTES_HIGH = 64 * 1024
BUFFER_BYTES_LOW = 8 * 1024
SUBSCRIPTION = 1
"""Id of a stream's only subscription."""
_SECONDS = re.compile(r"[0-9]{1,11}")
HEADERS = {
    "Cache-Control": "no-store",
    # Some proxies collect an answer before they pass it on, unless told not to.
    "X-Accel-Buffering": "no",
}


class StreamSocket:
    """A Socket whose bytes are pulled by the HTTP server. One writer, one reader task."""

    def __init__(self) -> None:
        self.is_congested = False
        self.on_writable: Callable[[], None] = _ignore
        self._buffer: deque[bytes] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._is_closed = False

    @staticmethod
    def encode(frame: Frame, /) -> bytes:
        return frame.as_stream()

    def write(self, data: bytes) -> None:
        self._buffer.append(data)
        self._bytes += len(data)
        self.is_congested = self.is_congested or self._bytes > BUFFER_BYTES_HIGH
        self._arrived.set()

    def close(self, code: int, reason: str) -> None:
        self._is_closed = True
        self._arrived.set()

    async def read(self) -> AsyncIterator[bytes]:
        """What was written, until closed; the server asks for more only when the client took what it had."""
        while True:
            if self._buffer:
                data = self._buffer.popleft()
                self._bytes -= len(data)
                yield data
                if self.is_congested and self._bytes <= BUFFER_BYTES_LOW:
                    self.is_congested = False
                    self.on_writable()
            elif self._is_closed:
                return
            else:
                self._arrived.clear()
                await self._arrived.wait()


def _ignore() -> None:
    """Until a session listens."""


class LiveStreams:
    """Opens streams. Shared by all requests."""

    def __init__(self, hub: Hub, door: Door) -> None:
        self._hub = hub
        self._door = door

    async def open(self, request: Request) -> StreamingResponse:
        """Raises Rejected or Overload before the stream begins; later errors are events."""
        wish = self._wish(request)
        visitor = self._door.check(request.headers)
        self._hub.authorize(visitor.token)
        self._hub.key_sessions.check(visitor.token)
        peer = request.client.host if request.client else ""
        return StreamingResponse(
            self._stream(wish, visitor, peer), media_type="text/event-stream", headers=HEADERS
        )

    async def _stream(self, wish: Subscribe, visitor: Visitor, peer: str) -> AsyncIterator[bytes]:
        """Counted in only here: a client that is gone before its stream begins never gets to the end."""
        try:
            address = self._door.enter(visitor, peer)
        except Overload as error:
            yield message("error", code=error.code, detail=error.detail).as_stream()
            return
        socket = StreamSocket()
        session = self._hub.open(socket, "stream", visitor.token)
        try:
            socket.on_writable = session.on_writable
            session.on_message(encode(wish))
            async for data in socket.read():
                yield data
        finally:
            session.on_closed()
            self._door.leave(address)

    def _wish(self, request: Request) -> Subscribe:
        """The subscription a request asks for."""
        hub = self._hub
        query = request.query_params
        name = query.get("channel", "")
        channel = hub.channels.get(name)
        if channel is None:
            if not hub.views.is_listed:
                raise Overload("loading", "The views are not loaded yet.", 1.0)
            known = ", ".join(sorted(hub.channels))
            raise Rejected("unknown-view", f"no such channel; known: {known}", "channel", 404)
        wanted: Mapping[str, list[str] | str] = {
            key: query.getlist(key) for key in query if key not in ("channel", "since")
        }
        parse_filter(dict(wanted), channel.dimensions)
        since = _parse_since(query.get("since"))
        if since is not None:
            channel.check_since(since, hub.now())
        return Subscribe(
            id=SUBSCRIPTION,
            channel=name,
            filter=dict(wanted),
            since=since,
            resume=parse_mark(request.headers.get("Last-Event-ID", "")),
        )


def _parse_since(text: str | None) -> int | None:
    if text is None:
        return None
    if not _SECONDS.fullmatch(text):
        raise Rejected("bad-since", "must be Unix seconds", "since")
    return int(text)
