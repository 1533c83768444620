"""One HTTP/1.1 connection of order_api: bounded as everywhere, with a short way for orders.

The short way: a POST to a hot route, with a small body of known length, on a connection with nothing else
under way, is handed over as it is and answered in one write, without the ASGI messages in between; that
halves what a request costs (docs/decisions/0002). Everything else goes through ASGI, to the same routes.
"""

from __future__ import annotations

from asyncio import TimerHandle
from collections.abc import Mapping
from random import random
from time import monotonic
from types import MappingProxyType
from typing import Any

from coffee_rt.errors import Bug
from coffee_rt.order_api.congestion import RETRY_AFTER_SECONDS
from coffee_rt.order_api.hot import HotApp, HotRoute
from coffee_rt.order_api.http_exchange import Headers, Request
from coffee_rt.runtime.http_bounds import BODY, IDLE, BoundedProtocol, HttpLimits, bounded

HOT_BODY_BYTES_MAX = 65_536
"""Larger bodies take the long way, where reading pauses while a body waits to be used."""


class _HotCycle:
    """Stands where uvicorn keeps its cycle: what its connection asks of one, and the body so far."""

    __slots__ = (
        "body",
        "disconnected",
        "headers",
        "keep_alive",
        "message_event",
        "read_at",
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
        self.read_at = 0.0
        self.response_complete = False
        self.response_started = False


class _NobodyWaits:
    """In place of an event: the short way waits for no further message."""

    def set(self) -> None:
        pass


_NOBODY_WAITS = _NobodyWaits()


class OrderApiProtocol(BoundedProtocol):
    """One connection. The hot routes are set on a subclass by `order_api_protocol`."""

    hot_app: HotApp | None = None
    hot_routes: Mapping[bytes, HotRoute] = MappingProxyType({})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: TimerHandle | None = None

    def on_headers_complete(self) -> None:
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            route = self.hot_routes.get(self.url)
            if route is not None and self._is_plain_post():
                self._stage = BODY
                self.cycle = _HotCycle(route, self.headers)  # type: ignore[assignment]
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
            and size <= self.limits.head_bytes_max
            and parser.should_keep_alive()
        )

    def on_body(self, body: bytes) -> None:
        cycle: Any = self.cycle
        if type(cycle) is _HotCycle:
            cycle.body += body
            self._body_bytes += len(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        cycle: Any = self.cycle
        if type(cycle) is not _HotCycle:
            super().on_message_complete()
            return
        self._stage = IDLE
        self._head_bytes = self._body_bytes = 0
        if not cycle.response_started:
            cycle.response_started = True
            refusal = self.hot_app.turn_away(cycle.route) if self.hot_app is not None else None
            if refusal is not None:
                self._turn_away(cycle, refusal)
                return
            cycle.read_at = monotonic()
            task = self.loop.create_task(self._respond(cycle))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    def _turn_away(self, cycle: _HotCycle, refusal: bytes) -> None:
        """Refuse a request without a task, and leave its connection unread for about as long as its client was
        told to stay away: else those who do not would cost more time than is left for orders."""
        cycle.response_complete = True
        if cycle.disconnected:
            return
        self.transport.write(refusal)
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()
        if not self.transport.is_closing():
            self.flow.pause_reading()
            # At different times, so that they do not all come back at once.
            seconds = RETRY_AFTER_SECONDS * (1 - random() / 2)
            self._held = self.loop.call_later(seconds, self.flow.resume_reading)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._held is not None:
            self._held.cancel()
        super().connection_lost(exc)

    async def _respond(self, cycle: _HotCycle) -> None:
        hot_app = self.hot_app
        if hot_app is None:
            raise Bug("a hot route without its application")
        refusal = hot_app.turn_away(cycle.route, monotonic() - cycle.read_at)
        if refusal is not None:
            self._turn_away(cycle, refusal)
            return
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


def order_api_protocol(hot_app: HotApp, limits: HttpLimits) -> type[BoundedProtocol]:
    """The protocol class for the HTTP server, with these limits and these hot routes."""
    routes = {path.encode(): route for path, route in hot_app.routes.items()}
    return bounded(limits, OrderApiProtocol, hot_app=hot_app, hot_routes=routes)
