"""What the fan-out needs of a connection to a client. Adapters: `websocket_server` (picows), `streams` (SSE).

The core never sees a library: it writes bytes that are already framed, looks at one flag before it does,
and closes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from coffee_rt.fanout.frames import Frame


class Socket(Protocol):
    """One client's connection, owned by its adapter, used by one Session. Not for several threads.

    `is_congested` is true from the moment the write buffer passes its upper mark until it has fallen
    below the lower one; the adapter then calls the session's `on_writable`. Writing to a congested socket
    is allowed (it buffers) but only control messages of bounded number do. After `close` nothing is written.
    """

    is_congested: bool

    @property
    def write(self) -> Callable[[bytes], object]:
        """Takes bytes that are already encoded; never blocks, never raises for a lost connection."""

    def encode(self, frame: Frame, /) -> bytes:
        """How a frame looks on this kind of connection: the same for all sockets of one class."""

    def close(self, code: int, reason: str) -> None:
        """Say goodbye and close; idempotent. `code` is a WebSocket close code."""
