"""The HTTP side of a hot route, below any framework: the request's head, its body within bounds, the answer.

Bodies may be gzip or zstd; what they unpack to is bounded while unpacking, so a bomb costs no more than the
bound. How long a head or a body may take is kept by `runtime.http_bounds`.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from typing import Any, Protocol

import zstandard

from coffee_rt.domain.problems import CONTENT_TYPE as PROBLEM_TYPE
from coffee_rt.domain.problems import Problem
from coffee_rt.errors import Rejected
from coffee_rt.order_api.body_room import BodyRoom

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

KEY_BYTES_MAX = 255
ZSTD_WINDOW_BYTES_MAX = 8 * 1024 * 1024
"""What RFC 8878 asks every decoder to support; a larger window would cost that much memory a request."""
ZSTD_PART_BYTES = 1 << 20
PACKED_MEMBERS_MAX = 4096
"""Packed streams one after the other in a body. Empty ones take a few bytes each and unpack to nothing, so
only their number bounds what they cost."""
PACKED_PIECE_BYTES = 64 * 1024
"""Handed to an unpacker in one go: what is left of a piece behind a member's end is copied."""
UNPACK_IN_THREAD_BYTES = 128 * 1024
"""Smaller packed bodies are unpacked at once; larger ones beside the event loop."""

_FORWARDED = b"x-forwarded-for"
_WANTED = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"idempotency-key",
        b"prefer",
        b"traceparent",
        b"x-api-key",
        _FORWARDED,
    }
)
_ONCE = frozenset({b"authorization", b"content-type", b"idempotency-key", b"x-api-key"})


_CLOSING = frozenset({408, 413})
"""Here the rest of the body is not read, so the connection can't be used again."""
_STATUS_LINES = {
    # With the header that runtime.http gives to all other answers.
    status.value: (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nx-content-type-options: nosniff\r\n".encode()
    )
    for status in HTTPStatus
}


class ClientGone(Exception):
    """The client hung up before its body was complete: there is nobody to answer."""


class Request:
    """One request to a hot route, however it arrived. `body` is set where it came whole with the head;
    else `receive` gives it in parts (ASGI). `held` are the bytes it has taken of the `room` for bodies."""

    __slots__ = ("body", "client", "headers", "held", "query", "receive", "room")

    def __init__(
        self,
        headers: Headers,
        query: bytes,
        client: tuple[str, int] | None,
        body: bytes | None = None,
        receive: Receive | None = None,
    ) -> None:
        self.headers = headers
        self.query = query
        self.client = client
        self.body = body
        self.receive = receive
        self.room: BodyRoom | None = None
        self.held = 0

    def hold(self, size: int) -> None:
        """Take room for a body of so many bytes in all. Raises Overload."""
        if self.room is not None and size > self.held:
            self.room.take(size - self.held)
            self.held = size


class LimitHeaders(Protocol):
    """What a rate limit says of itself (rate.Quota), as pairs or as HTTP/1.1 lines."""

    def headers(self) -> Headers: ...

    def to_bytes(self) -> bytes: ...


class Answer:
    """Status, headers and body of a response. Mutable until sent: limits add their headers."""

    __slots__ = ("body", "headers", "limits", "status")

    def __init__(self, status: int, body: bytes, headers: Headers) -> None:
        self.status = status
        self.body = body
        self.headers = headers
        self.limits: LimitHeaders | None = None

    async def send(self, send: Send) -> None:
        """Over ASGI."""
        if self.limits is not None:
            self.headers += self.limits.headers()
        self.headers.append((b"content-length", b"%d" % len(self.body)))
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})

    def to_bytes(self, is_last: bool) -> bytes:
        """As HTTP/1.1; `is_last` when the connection ends with it."""
        parts = [_STATUS_LINES[self.status]]
        for name, value in self.headers:
            parts += (name, b": ", value, b"\r\n")
            is_last = is_last and name != b"connection"
        if self.limits is not None:
            parts.append(self.limits.to_bytes())
        closing = b"connection: close\r\n" if is_last else b""
        parts += (closing, b"content-length: %d\r\n\r\n" % len(self.body), self.body)
        return b"".join(parts)

    @property
    def is_closing(self) -> bool:
        """Whether the connection must not be used again."""
        return self.status in _CLOSING


def problem_answer(problem: Problem) -> Answer:
    headers: Headers = [(b"content-type", PROBLEM_TYPE.encode())]
    headers.extend(encode_headers(problem.headers))
    if problem.status in _CLOSING:
        headers.append((b"connection", b"close"))
    return Answer(problem.status, problem.to_bytes(), headers)


def encode_headers(headers: Iterable[tuple[str, str]]) -> Headers:
    return [(name.lower().encode(), value.encode()) for name, value in headers]


def read_head(headers: Headers) -> dict[bytes, bytes]:
    """The headers that matter here, names in lower case. Raises Rejected for one that may come only once."""
    head: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _WANTED:
            if name in head and name in _ONCE:
                place = name.decode()
                raise Rejected("repeated-header", "must be sent once", place, status=400)
            if name in head and name == _FORWARDED:
                # A proxy may add a line of its own below those that came.
                value = head[name] + b"," + value
            head[name] = value
    return head


def idempotency_key(head: dict[bytes, bytes]) -> bytes | None:
    """The key as sent, None without one. Raises Rejected unless it is 1..255 visible ASCII characters."""
    key = head.get(b"idempotency-key")
    if key is None:
        return None
    if not 1 <= len(key) <= KEY_BYTES_MAX:
        detail = f"must have 1 to {KEY_BYTES_MAX} characters"
        raise Rejected("bad-idempotency-key", detail, "Idempotency-Key", status=400)
    if not key.isascii() or min(key) < 0x21 or max(key) > 0x7E:
        detail = "must be visible ASCII without spaces"
        raise Rejected("bad-idempotency-key", detail, "Idempotency-Key", status=400)
    return key


def content_kind(head: dict[bytes, bytes], taken: dict[bytes, str]) -> str:
    """What the content type stands for, from `taken`. Raises Rejected(415) for any other or none."""
    text = head.get(b"content-type", b"")
    kind = taken.get(text)
    if kind is not None:
        return kind
    bare, _, parameters = text.partition(b";")
    kind = taken.get(bare.strip().lower())
    charset = parameters.replace(b" ", b"").replace(b'"', b"").lower()
    if kind is None or (b"charset=" in charset and b"charset=utf-8" not in charset):
        names = ", ".join(sorted(name.decode() for name in taken))
        raise Rejected("wrong-content-type", f"must be one of: {names}", "Content-Type", status=415)
    return kind


async def read_body(head: dict[bytes, bytes], request: Request, bytes_max: int) -> bytes:
    """The whole body, unpacked. Raises Rejected (413, 415, 400), Overload or ClientGone."""
    body = request.body
    if body is None:
        body = await _receive_body(head, request, bytes_max)
    if len(body) > bytes_max:
        raise _too_large(bytes_max)
    encoding = head.get(b"content-encoding")
    if encoding is None:
        return body
    if len(body) > UNPACK_IN_THREAD_BYTES:
        body = await asyncio.to_thread(unpack, body, encoding, bytes_max)
    else:
        body = unpack(body, encoding, bytes_max)
    request.hold(len(body))
    return body


async def _receive_body(head: dict[bytes, bytes], request: Request, bytes_max: int) -> bytes:
    length = head.get(b"content-length")
    if length is not None:
        if int(length) > bytes_max:
            raise _too_large(bytes_max)
        request.hold(int(length))
    if request.receive is None:
        return b""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if size > bytes_max:
            raise _too_large(bytes_max)
        request.hold(size)
        if not message.get("more_body"):
            return b"".join(parts)


def unpack(body: bytes, encoding: bytes, bytes_max: int) -> bytes:
    """The body behind a Content-Encoding. Never makes more than `bytes_max` + 1 bytes."""
    name = encoding.strip().lower()
    if name == b"identity":
        return body
    if name in (b"gzip", b"x-gzip"):
        unpacked = _gunzip(body, bytes_max)
    elif name == b"zstd":
        unpacked = _unzstd(body, bytes_max)
    else:
        raise Rejected(
            "wrong-content-encoding", "must be gzip or zstd", "Content-Encoding", status=415
        )
    if len(unpacked) > bytes_max:
        raise _too_large(bytes_max)
    return unpacked


def _gunzip(body: bytes, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    left = bytes_max + 1
    at = members = 0
    member = None
    while at < len(body):
        if member is None:
            members = _count_member(members, "gzip")
            member = zlib.decompressobj(16 + zlib.MAX_WBITS)
        piece = body[at : at + PACKED_PIECE_BYTES]
        at += len(piece)
        try:
            parts.append(member.decompress(piece, left))
        except zlib.error:
            raise _not_packed("gzip") from None
        left -= len(parts[-1])
        if left <= 0:
            raise _too_large(bytes_max)
        if member.eof:
            at -= len(member.unused_data)
            member = None
    if member is not None:
        raise _not_packed("gzip")
    return b"".join(parts)


def _unzstd(body: bytes, bytes_max: int) -> bytes:
    packer = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
    try:
        # Two passes: the reader bounds what is made but takes a cut-off frame for whole; the other way
        # round with decompressobj.
        reader = packer.stream_reader(body, read_across_frames=True)
        left = bytes_max
        while part := reader.read(ZSTD_PART_BYTES):
            left -= len(part)
            if left < 0:
                raise _too_large(bytes_max)
        return _unzstd_whole(packer, body)
    except zstandard.ZstdError:
        raise _not_packed("zstd") from None


def _unzstd_whole(packer: zstandard.ZstdDecompressor, body: bytes) -> bytes:
    parts: list[bytes] = []
    at = members = 0
    frame = None
    while at < len(body):
        if frame is None:
            members = _count_member(members, "zstd")
            frame = packer.decompressobj()
        piece = body[at : at + PACKED_PIECE_BYTES]
        at += len(piece)
        parts.append(frame.decompress(piece))
        if frame.eof:
            at -= len(frame.unused_data)
            frame = None
    if frame is not None:
        raise _not_packed("zstd")
    return b"".join(parts)


def _count_member(members: int, name: str) -> int:
    if members == PACKED_MEMBERS_MAX:
        detail = f"must be at most {PACKED_MEMBERS_MAX} {name} members"
        raise Rejected("bad-encoding", detail, "Content-Encoding", status=400)
    return members + 1


def _not_packed(name: str) -> Rejected:
    return Rejected("bad-encoding", f"is not valid {name}", "Content-Encoding", status=400)


def _too_large(bytes_max: int) -> Rejected:
    detail = f"The body must be at most {bytes_max} bytes, unpacked."
    return Rejected("too-large", detail, status=413)
