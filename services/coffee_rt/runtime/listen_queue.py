"""Connections that nobody has accepted yet: they wait in the kernel, in the order of their handshakes.

libuv accepts one connection a turn of the loop. Behind long turns this queue grows unseen: a client stands in it until
it gives up, and by then the process may be accepting only those who have left. So it is looked at from outside:
how many wait (the kernel tells it of a listener), how long the first has waited (found from the counts of before),
and whether whoever is taken out is still there.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections import deque
from collections.abc import Callable

HEAD_BYTES = 65_536
"""Read from one that is turned away: closing a socket with unread bytes resets it, and the answer may be lost."""
_WAITING_AT = 24
"""Of struct tcp_info: tcpi_unacked, which for a listener is the length of its queue (Linux, tcp_get_info)."""
_TCP_INFO_BYTES = 32
_TCP_ESTABLISHED = 1


class Waits:
    """How long the first of a queue has waited, from when how many had come. Pure."""

    def __init__(self) -> None:
        self._came: deque[tuple[float, int]] = deque()
        self._came_total = 0
        self._lost = 0
        """Left the queue without being taken: at its limit of open files libuv hangs up on those who wait."""

    def see(self, now: float, taken: int, waiting: int) -> None:
        """`taken` of them so far, and `waiting` now. Called often: between two calls nobody's coming is known."""
        came = taken + self._lost + waiting
        if came > self._came_total:
            self._came_total = came
            self._came.append((now, came))
        else:
            self._lost += self._came_total - came
        self._forget(taken)

    def first_waited(self, now: float, taken: int) -> float:
        """Seconds, at least, that the one after the first `taken` has waited; 0 when there is none."""
        self._forget(taken)
        return now - self._came[0][0] if self._came else 0.0

    def _forget(self, taken: int) -> None:
        while self._came and self._came[0][1] <= taken + self._lost:
            self._came.popleft()


class ListenQueue:
    """The queue of one listening socket, which the server goes on accepting from.

    `accepted`: how many connections the server ever made a protocol of, also of those that `take` gave it.
    `fileno` stays the server's own: nothing here may be called once it is closed.
    """

    def __init__(self, fileno: int, accepted: Callable[[], int]) -> None:
        self._listener = socket.socket(fileno=fileno)
        self._accepted = accepted
        self._removed = 0
        self._waits = Waits()

    def look(self, now: float) -> int:
        """How many wait; -1 where the system does not tell. Call it often, see `Waits`."""
        if sys.platform != "linux":
            return -1
        told = self._listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        waiting = int.from_bytes(told[_WAITING_AT : _WAITING_AT + 4], sys.byteorder)
        self._waits.see(now, self._taken, waiting)
        return waiting

    def first_waited(self, now: float) -> float:
        """Seconds that the first one has waited."""
        return self._waits.first_waited(now, self._taken)

    @property
    def _taken(self) -> int:
        return self._accepted() + self._removed

    def take(self) -> socket.socket | None:
        """The first one, out of the queue and not blocking; None when nobody is there."""
        try:
            connection, _ = self._listener.accept()
        except OSError:
            # Nobody, or one whose error is its own: the server meets what concerns the listener.
            return None
        self._removed += 1
        connection.setblocking(False)
        return connection

    def is_accepted(self) -> None:
        """Said of one taken that the server counts from now on."""
        self._removed -= 1

    def forget(self) -> None:
        """Let go of the listener, which is the server's."""
        self._listener.detach()


def has_left(connection: socket.socket) -> bool:
    """Whether its client has hung up: it will not read an answer."""
    told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return told[0] != _TCP_ESTABLISHED


def first_bytes(connection: socket.socket, count: int) -> bytes:
    """Of what it has sent, still to be read; empty while that is nothing."""
    try:
        return connection.recv(count, socket.MSG_PEEK)
    except OSError:
        return b""


def turn_away(connection: socket.socket, answer: bytes) -> None:
    """Answer unheard, and hang up. Who sends more than HEAD_BYTES may see a reset instead of the answer."""
    # Where nothing has come yet, or the client has gone meanwhile, the answer is tried all the same.
    with contextlib.suppress(OSError):
        connection.recv(HEAD_BYTES)
    with contextlib.suppress(OSError):
        connection.send(answer)
    connection.close()
