"""What is known of connections that nobody has accepted yet, on real sockets; and how long the first has waited."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coffee_rt.runtime.listen_queue import ListenQueue, Waits, first_bytes, has_left, turn_away

ANSWER = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Door:
    """A listener, its queue, and those who come."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.accepted = 0
        self.queue = ListenQueue(listener.fileno(), lambda: self.accepted)
        self.clients: list[socket.socket] = []

    def come(self, said: bytes = b"") -> socket.socket:
        client = socket.create_connection(self.listener.getsockname())
        self.clients.append(client)
        client.sendall(said)
        return client

    def accept(self) -> socket.socket:
        """As the server does."""
        connection, _ = self.listener.accept()
        self.accepted += 1
        return connection


@pytest.fixture
def door() -> Iterator[Door]:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        listener.setblocking(False)
        door = Door(listener)
        yield door
        door.queue.forget()
        for client in door.clients:
            client.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_kernel_tells_how_many_wait_and_the_counts_how_long(door: Door) -> None:
    assert door.queue.look(1.0) == 0
    assert door.queue.first_waited(1.0) == 0
    for _ in range(3):
        door.come()
    assert door.queue.look(2.0) == 3
    door.come()
    assert door.queue.look(3.0) == 4
    assert door.queue.first_waited(5.0) == 3.0
    with door.accept(), door.accept():
        taken = door.queue.take()
        assert taken is not None
        # The three of second 2 are out: the next has waited since second 3.
        assert door.queue.first_waited(5.0) == 2.0
        door.queue.is_accepted()
        door.accepted += 1
        assert door.queue.first_waited(5.0) == 2.0
        taken.close()
        assert door.queue.look(5.0) == 1
        last = door.queue.take()
        assert last is not None
        last.close()
        assert door.queue.take() is None
        assert (door.queue.look(6.0), door.queue.first_waited(6.0)) == (0, 0)


def test_who_has_hung_up_is_known_though_it_said_something_first(door: Door) -> None:
    door.come(b"POST / HTTP/1.1\r\n\r\n").close()
    reset = door.come(b"POST / HTTP/1.1\r\n\r\n")
    reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    reset.close()
    door.come(b"GET")
    for is_gone in (True, True, False):
        connection = door.queue.take()
        assert connection is not None
        with connection:
            assert has_left(connection) is is_gone


def test_one_that_is_turned_away_reads_why_and_the_end(door: Door) -> None:
    client = door.come(b"POST /api/v1/orders HTTP/1.1\r\ncontent-length: 9\r\n\r\n" + b"x" * 9)
    connection = door.queue.take()
    assert connection is not None
    wait_until(lambda: first_bytes(connection, 4) == b"POST")
    turn_away(connection, ANSWER)
    assert client.recv(1000) == ANSWER
    # No reset: what it sent was read.
    assert client.recv(1000) == b""


def test_one_that_says_nothing_is_not_waited_for(door: Door) -> None:
    client = door.come()
    connection = door.queue.take()
    assert connection is not None
    assert first_bytes(connection, 4) == b""
    turn_away(connection, ANSWER)
    assert client.recv(1000) == ANSWER


def test_the_listener_stays_the_servers(door: Door) -> None:
    other = ListenQueue(door.listener.fileno(), lambda: 0)
    other.forget()
    door.come()
    door.accept().close()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), max_size=40))
def test_the_first_has_waited_since_the_look_that_saw_it_come(
    steps: list[tuple[int, int, bool]],
) -> None:
    """Beside a queue that remembers when each came; looks see them at once. Some are hung up on by the server at its
    limit of open files, which counts them nowhere."""
    waits, queue, taken = Waits(), [], 0
    for now, (come, go, is_counted) in enumerate(steps):
        queue += [now] * come
        waits.see(now, taken, len(queue))
        assert waits.first_waited(now, taken) == (now - queue[0] if queue else 0)
        gone = min(go, len(queue))
        del queue[:gone]
        if is_counted:
            taken += gone
        else:
            waits.see(now, taken, len(queue))
        assert waits.first_waited(now, taken) == (now - queue[0] if queue else 0)
