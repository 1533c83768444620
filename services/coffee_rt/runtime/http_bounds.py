"""HTTP/1.1 connections with bounds, for every process: uvicorn's, with what it leaves open to strangers.

Bounded here: the bytes and seconds of a request's head, the seconds of its body and the bytes around it
(trailers, chunks), the seconds an answer may wait for a client that does not read it, and the connections
of a process. Timers exist only while a request is incomplete, so one that arrives in one piece costs
nothing more.

At the limit of connections the oldest one that waits for a request makes room: whoever only holds
connections open shuts out no one who has something to ask.
"""

from __future__ import annotations

import json
from asyncio import TimerHandle, Transport
from typing import Any, ClassVar, NamedTuple

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from coffee_rt.runtime import metrics

HEAD, BODY, IDLE = "head", "body", "idle"
PROGRESS_BYTES = 4096
"""An answer whose unsent bytes change by less within `answer_seconds_max` is not being read."""
FRAMING_BYTES = 8
"""Bytes around each byte of a body that are still believed to be chunks of one byte."""
VICTIMS_MAX = 64
"""Connections looked at for one that can make room; more would make each new one expensive."""

CUT = metrics.counter(
    "coffee_rt_http_connections_cut_total",
    "HTTP connections ended by us. room: at COFFEE_RT_HTTP_CONNECTIONS_MAX; slow: head, body or answer "
    "took too long; bad: no HTTP, or a head too large. Rising fast: somebody attacks, or a client is broken.",
    ("reason",),
)
for _reason in ("room", "slow", "bad"):
    CUT.labels(_reason)


class HttpLimits(NamedTuple):
    """Bounds of a process's connections."""

    head_bytes_max: int = 32_768
    head_seconds_max: float = 10.0
    body_seconds_max: float = 30.0
    answer_seconds_max: float = 60.0
    connections_max: int = 3000


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `bounded` sets limits and register on a subclass of its own for each server."""

    limits: ClassVar[HttpLimits] = HttpLimits()
    opened: ClassVar[dict[BoundedProtocol, None]] = {}
    """Open connections of the server, oldest first."""
    made_total: ClassVar[int] = 0
    """Connections that the server ever accepted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        type(self).made_total += 1
        self._stage = HEAD
        self._head_bytes = 0
        self._body_bytes = 0
        self._timer: TimerHandle | None = None
        self._timed_stage = IDLE
        self._unsent = 0
        self._unsent_at = 0.0

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.opened) >= self.limits.connections_max and not self._make_room():
            CUT.labels("room").inc()
            self._refuse(503, "too-many-connections", "No connection is free here.", "1")
        self.opened[self] = None
        self._start_timer(HEAD, self.limits.head_seconds_max)

    def connection_lost(self, exc: Exception | None) -> None:
        self.opened.pop(self, None)
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._stage == IDLE:
            if self._timer is not None:
                self._stop_timer()
        elif self._stage == HEAD:
            if self._head_bytes > self.limits.head_bytes_max:
                self._refuse_head()
            elif self._timed_stage != HEAD:
                self._start_timer(HEAD, self.limits.head_seconds_max)
        else:
            if self._timed_stage != BODY:
                self._start_timer(BODY, self.limits.body_seconds_max)
            # All that is no body: head, chunk sizes and their extensions, trailers.
            around = self._head_bytes - self._body_bytes
            if around > 2 * self.limits.head_bytes_max + FRAMING_BYTES * self._body_bytes:
                self._refuse_head()

    def on_message_begin(self) -> None:
        self._stage = HEAD
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._stage = BODY
        size = sum(map(len, map(b"".join, self.headers)), len(self.url))
        if size > self.limits.head_bytes_max:
            self._refuse_head()
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._stage = IDLE
        # What is left of this chunk may begin the next head; it is counted with that head's end.
        self._head_bytes = self._body_bytes = 0
        if self.cycle is not None:
            super().on_message_complete()

    def is_unread(self, now: float) -> bool:
        """Whether its client has read nothing of an answer for too long. Asked every few seconds; also of
        connections that are closed but for what is still to be sent."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent or not self._unsent or abs(unsent - self._unsent) >= PROGRESS_BYTES:
            self._unsent, self._unsent_at = unsent, now
            return False
        return now - self._unsent_at > self.limits.answer_seconds_max

    def cut(self) -> None:
        """End the connection at once, whatever is still to be sent."""
        CUT.labels("slow").inc()
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        self._stop_timer()
        CUT.labels("bad").inc()
        self._refuse(400, "bad-http", "This is not valid HTTP/1.1.")

    @property
    def _is_waiting(self) -> bool:
        """Whether there is no complete request to answer, and no answer still to be sent."""
        is_answered = self.cycle is None or self.cycle.response_complete
        return self._stage != IDLE or (is_answered and not self.transport.get_write_buffer_size())

    def _make_room(self) -> bool:
        """End the oldest connection that waits for a request; False when all of the oldest are answering."""
        for _ in range(min(VICTIMS_MAX, len(self.opened))):
            oldest = next(iter(self.opened))
            del self.opened[oldest]
            if oldest._is_waiting:
                CUT.labels("room").inc()
                oldest.transport.abort()
                return True
            self.opened[oldest] = None
        return False

    def _start_timer(self, stage: str, seconds: float) -> None:
        self._stop_timer()
        self._timed_stage = stage
        self._timer = self.loop.call_later(seconds, self._on_slow, stage)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timed_stage = IDLE

    def _on_slow(self, stage: str) -> None:
        self._timer = None
        CUT.labels("slow").inc()
        self._refuse(408, f"{stage}-too-slow", f"The request's {stage} took too long.")

    def _refuse_head(self) -> None:
        CUT.labels("bad").inc()
        self._refuse(431, "headers-too-large", "The request's headers are too large.")

    def _refuse(self, status: int, code: str, detail: str, retry_after: str = "") -> None:
        """Answer without the application, and hang up. A response under way is only cut off."""
        if self.transport.is_closing():
            return
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            body = _problem(status, code, detail)
            after = f"retry-after: {retry_after}\r\n" if retry_after else ""
            head = (
                f"HTTP/1.1 {status} {code}\r\ncontent-type: application/problem+json\r\n{after}"
                "x-content-type-options: nosniff\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        if self.cycle is not None:
            # The application must not write after this answer.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


def bounded(
    limits: HttpLimits, base: type[BoundedProtocol] = BoundedProtocol, **members: Any
) -> type[BoundedProtocol]:
    """The protocol class for one server's `http` option; `members` are further attributes of it."""
    return type("ServedProtocol", (base,), {**members, "limits": limits, "opened": {}})


def _problem(status: int, code: str, detail: str) -> bytes:
    """As domain.problems writes it, which this layer does not know."""
    title = code.replace("-", " ").capitalize()
    kind = f"urn:coffee-rt:problem:{code}"
    return json.dumps({"type": kind, "title": title, "status": status, "detail": detail}).encode()
