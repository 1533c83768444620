"""One HTTP/1.1 connection of the server: uvicorn's, with what it leaves open and a short way for orders.

Left open there: how large a request's head may be and how long head and body may take. Timers exist only
while a request is incomplete, so a request that arrives in one piece costs nothing more.

The short way: a POST to a hot route, with a small body of known length, on a connection with nothing else
under way, is handed over as it is and answered in one write, without the ASGI messages in between; that
halves what a request costs (docs/decisions/0002). Everything else goes through ASGI, to the same routes.
"""

from __future__ import annotations

from asyncio import TimerHandle, Transport
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from coffee_rt.domain.problems import CONTENT_TYPE, Problem
from coffee_rt.errors import Bug
from coffee_rt.order_api.hot import HotApp, HotRoute
from coffee_rt.order_api.http_exchange import Headers, Request

HOT_BODY_BYTES_MAX = 65_536
"""Larger bodies take the long way, where reading pauses while a body waits to be used."""

_HEAD, _BODY, _IDLE = "head", "body", "idle"


class _HotCycle:
    """Stands where uvicorn keeps its cycle: what its connection asks of one, and the body so far."""

    __slots__ = (
        "body",
        "disconnected",
        "headers",
        "keep_alive",
        "message_event",
        "response_complete",
        "response_started",
        "route",
    )

    def __init__(self, route: HotRoute, headers: Headers) -> None:
        self.route = route
        # The next request may begin before this one is looked at: its headers are another list.
        self.headers = headers
        self.body = b""
        self.disconnected = False
        self.keep_alive = True
        self.message_event = _NOBODY_WAITS
        self.response_complete = False
        self.response_started = False


class _NobodyWaits:
    """In place of an event: the short way waits for no further message."""

    def set(self) -> None:
        pass


_NOBODY_WAITS = _NobodyWaits()


class BoundedProtocol(HttpToolsProtocol):
    """One connection. The limits are set on a subclass by `bounded_protocol`."""

    hot_app: HotApp | None = None
    hot_routes: Mapping[bytes, HotRoute] = MappingProxyType({})
    header_bytes_max = 32_768
    header_seconds_max = 10.0
    body_seconds_max = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stage = _HEAD
        self._head_bytes = 0
        self._timer: TimerHandle | None = None
        self._timed_stage = _IDLE

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer(_HEAD, self.header_seconds_max)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._stage == _IDLE:
            if self._timer is not None:
                self._stop_timer()
        elif self._stage == _HEAD:
            if self._head_bytes > self.header_bytes_max:
                self._refuse(431, "headers-too-large", "The request's headers are too large.")
            elif self._timed_stage != _HEAD:
                self._start_timer(_HEAD, self.header_seconds_max)
        elif self._timed_stage != _BODY:
            self._start_timer(_BODY, self.body_seconds_max)

    def on_message_begin(self) -> None:
        self._stage = _HEAD
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._stage = _BODY
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            route = self.hot_routes.get(self.url)
            if route is not None and self._is_plain_post():
                self.cycle = _HotCycle(route, self.headers)  # type: ignore[assignment]
                return
        size = sum(map(len, map(b"".join, self.headers)), len(self.url))
        if size > self.header_bytes_max:
            self._refuse(431, "headers-too-large", "The request's headers are too large.")
            return
        super().on_headers_complete()

    def _is_plain_post(self) -> bool:
        """Whether the short way is open: else uvicorn decides about chunks, upgrades, 100-continue."""
        parser = self.parser
        if parser.get_method() != b"POST" or self.expect_100_continue or parser.should_upgrade():
            return False
        length, size = -1, 0
        for name, value in self.headers:
            size += len(name) + len(value)
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                return False
        return (
            0 <= length <= HOT_BODY_BYTES_MAX
            and size <= self.header_bytes_max
            and parser.should_keep_alive()
        )

    def on_body(self, body: bytes) -> None:
        cycle: Any = self.cycle
        if type(cycle) is _HotCycle:
            cycle.body += body
        elif cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._stage = _IDLE
        # What is left of this chunk may begin the next head; it is counted with that head's end.
        self._head_bytes = 0
        cycle: Any = self.cycle
        if type(cycle) is _HotCycle:
            if not cycle.response_started:
                cycle.response_started = True
                task = self.loop.create_task(self._respond(cycle))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
        elif cycle is not None:
            super().on_message_complete()

    async def _respond(self, cycle: _HotCycle) -> None:
        hot_app = self.hot_app
        if hot_app is None:
            raise Bug("a hot route without its application")
        request = Request(cycle.headers, b"", self.client, cycle.body)
        answer = None
        try:
            answer = await hot_app.respond(cycle.route, request)
        finally:
            cycle.response_complete = True
            if answer is None:
                self.transport.close()
        if answer is None or cycle.disconnected:
            return
        if self.flow.write_paused:
            await self.flow.drain()
        is_last = not cycle.keep_alive or answer.is_closing
        self.transport.write(answer.to_bytes(is_last))
        if is_last:
            self.transport.close()
        self.on_response_complete()

    def send_400_response(self, msg: str) -> None:
        self._stop_timer()
        self._refuse(400, "bad-http", "This is not valid HTTP/1.1.")

    def _start_timer(self, stage: str, seconds: float) -> None:
        self._stop_timer()
        self._timed_stage = stage
        self._timer = self.loop.call_later(seconds, self._on_slow, stage)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timed_stage = _IDLE

    def _on_slow(self, stage: str) -> None:
        self._timer = None
        self._refuse(408, f"{stage}-too-slow", f"The request's {stage} took too long.")

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Answer without the application, and hang up. A response under way is only cut off."""
        if self.transport.is_closing():
            return
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            body = Problem(status, code, detail).to_bytes()
            head = (
                f"HTTP/1.1 {status} {code}\r\ncontent-type: {CONTENT_TYPE}\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        if self.cycle is not None:
            # The application must not write after this answer.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


def bounded_protocol(
    hot_app: HotApp, header_bytes_max: int, header_seconds_max: float, body_seconds_max: float
) -> type[BoundedProtocol]:
    """The protocol class for uvicorn's `http` option, with these limits and these hot routes."""
    members = {
        "hot_app": hot_app,
        "hot_routes": {path.encode(): route for path, route in hot_app.routes.items()},
        "header_bytes_max": header_bytes_max,
        "header_seconds_max": header_seconds_max,
        "body_seconds_max": body_seconds_max,
    }
    return type("OrderApiProtocol", (BoundedProtocol,), members)
