"""Frames to browsers: bytes made once, sent to many. Pure; docs/protocol.md describes each of them.

A row is encoded once, when it changes. A frame joins encoded rows, once per channel and distinct filter, and
carries its WebSocket and its event-stream form, each made at most once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

encode = msgspec.json.Encoder().encode

_TEXT = 0x81  # FIN and opcode 1 (RFC 6455, 5.2); a server's frames are not masked.


class Frame:
    """One message to clients, immutable once made; shared by all sessions that are sent the same."""

    __slots__ = ("_stream", "_websocket", "mark", "payload", "type")

    def __init__(self, type_: str, payload: bytes, mark: str = "") -> None:
        self.type = type_
        self.payload = payload
        self.mark = mark
        """What an event stream resumes from: epoch and versions. Empty: nothing to resume from."""
        self._websocket: bytes | None = None
        self._stream: bytes | None = None

    def as_websocket(self) -> bytes:
        """A whole WebSocket text frame, ready for the socket."""
        if self._websocket is None:
            self._websocket = websocket_text(self.payload)
        return self._websocket

    def as_stream(self) -> bytes:
        """A server-sent event."""
        if self._stream is None:
            mark = f"id: {self.mark}\n" if self.mark else ""
            head = f"event: {self.type}\n{mark}data: ".encode()
            self._stream = head + self.payload + b"\n\n"
        return self._stream


def websocket_text(payload: bytes) -> bytes:
    """The bytes of an unfragmented WebSocket text frame from a server."""
    size = len(payload)
    if size < 126:
        return bytes((_TEXT, size)) + payload
    if size < 1 << 16:
        return bytes((_TEXT, 126)) + size.to_bytes(2, "big") + payload
    return bytes((_TEXT, 127)) + size.to_bytes(8, "big") + payload


def message(type_: str, **fields: Any) -> Frame:
    """A frame of plain fields."""
    return Frame(type_, encode({"type": type_, **fields}))


def mark_of(epoch: str, versions: Sequence[int]) -> str:
    """What a client resumes an event stream from (Last-Event-ID)."""
    return f"{epoch}:{','.join(map(str, versions))}"


def delta_frame(
    subscription: int,
    lanes: Sequence[tuple[int, int, int]],
    rows: Iterable[bytes],
    newest_at_ms: int,
    mark: str,
) -> Frame:
    """Changed rows, and what lanes' versions they lead to: (lane, version, previous)."""
    head = b'{"type":"delta","id":%d,"lanes":%s,"rows":[' % (subscription, encode(lanes))
    payload = head + b",".join(rows) + b'],"newest_at_ms":%d}' % newest_at_ms
    return Frame("delta", payload, mark)


def versions_frame(subscription: int, versions: Sequence[int], mark: str) -> Frame:
    payload = encode({"type": "versions", "id": subscription, "versions": versions})
    return Frame("versions", payload, mark)


def snapshot_frames(
    head: dict[str, Any], rows: Sequence[bytes], mark: str, part_bytes_max: int
) -> list[Frame]:
    """A snapshot in parts of about `part_bytes_max`; at least one part. `head` holds all but the rows.

    Only the last part carries the mark: a client that resumes in the middle starts again.
    """
    parts = _split(rows, part_bytes_max)
    start = encode({"type": "snapshot", **head})[:-1]
    return [
        Frame(
            "snapshot",
            start
            + b',"part":%d,"parts":%d,"rows":[' % (number, len(parts))
            + b",".join(part)
            + b"]}",
            mark if number == len(parts) else "",
        )
        for number, part in enumerate(parts, 1)
    ]


def _split(rows: Sequence[bytes], bytes_max: int) -> list[list[bytes]]:
    parts: list[list[bytes]] = [[]]
    size = 0
    for row in rows:
        if size + len(row) > bytes_max and parts[-1]:
            parts.append([])
            size = 0
        parts[-1].append(row)
        size += len(row) + 1
    return parts


def orders_frame(subscription: int, orders: Iterable[bytes]) -> Frame:
    """Newest orders first, each already encoded."""
    return Frame(
        "orders",
        b'{"type":"orders","id":%d,"orders":[' % subscription + b",".join(orders) + b"]}",
    )
