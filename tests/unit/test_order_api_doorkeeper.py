"""Who is let in sooner and who is told to come again, of real connections that wait behind turns that are told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from coffee_rt.order_api import doorkeeper as doorkeeping
from coffee_rt.order_api.congestion import Congestion
from coffee_rt.order_api.doorkeeper import LET_IN_MAX, Doorkeeper
from coffee_rt.runtime.listen_queue import ListenQueue
from tests.clocks import StoppedClock

ANSWER = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
ORDER = b"POST /api/v1/orders HTTP/1.1\r\n\r\n"
TURN_SECONDS_MAX, WAIT_SECONDS_MAX = 0.25, 3.0


class Door:
    """A listener nobody else accepts from, a doorkeeper, and who was let in."""

    def __init__(self, listener: socket.socket) -> None:
        self.clock = StoppedClock()
        self.listener = listener
        self.let_in: list[socket.socket] = []
        self.clients: list[socket.socket] = []
        self.congestion = Congestion(
            self.clock,
            lambda: 0.0,
            wait_seconds_max=WAIT_SECONDS_MAX,
            turn_seconds_max=TURN_SECONDS_MAX,
        )
        self.is_draining = False
        self.doorkeeper = Doorkeeper(
            self.clock,
            self.congestion,
            ANSWER,
            lambda: self.is_draining,
            wait_seconds_max=WAIT_SECONDS_MAX,
            turn_seconds_max=TURN_SECONDS_MAX,
        )
        self.queue = ListenQueue(listener.fileno(), lambda: len(self.let_in))

    async def come(self, said: bytes = ORDER) -> socket.socket:
        client = socket.socket()
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, self.listener.getsockname())
        await loop.sock_sendall(client, said)
        self.clients.append(client)
        return client

    async def serve(self, connection: socket.socket) -> None:
        self.queue.is_accepted()
        self.let_in.append(connection)

    async def look(self, turn_seconds: float, *, after: float = 0.0) -> None:
        """The next look, so long after the last, behind turns of this length."""
        self.clock.at += after
        self.congestion.look(turn_seconds)
        self.doorkeeper.look(self.queue, self.serve)
        await asyncio.sleep(0)

    def close(self) -> None:
        self.queue.forget()
        for each in self.clients + self.let_in:
            each.close()


@pytest.fixture
async def door(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Door]:
    # How long a look really takes is the machine's matter.
    monkeypatch.setattr(doorkeeping, "BURST_SECONDS", 5.0)
    monkeypatch.setattr(doorkeeping, "TIME_SHARE", 50.0)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        listener.setblocking(False)
        door = Door(listener)
        yield door
        door.close()


async def answer(client: socket.socket) -> bytes:
    async with asyncio.timeout(5):
        return await asyncio.get_running_loop().sock_recv(client, 1000)


async def test_who_waited_behind_long_turns_gets_its_503_and_who_just_came_waits(
    door: Door,
) -> None:
    old = await door.come()
    await door.look(0.2)
    await door.look(0.2, after=0.2)
    young = await door.come()
    await door.look(0.2, after=0.1)
    assert await answer(old) == ANSWER
    assert not door.let_in
    assert door.queue.look(door.clock.at) == 1
    await door.look(0.2, after=0.3)
    assert await answer(young) == ANSWER


async def test_behind_short_turns_many_are_let_in_at_once_but_not_all(door: Door) -> None:
    for _ in range(LET_IN_MAX + 5):
        await door.come()
    await door.look(0.001, after=0.02)
    assert len(door.let_in) == LET_IN_MAX
    await door.look(0.001, after=0.02)
    assert len(door.let_in) == LET_IN_MAX + 5


async def test_reads_and_probes_are_let_in_however_late(door: Door) -> None:
    await door.come(b"GET /livez HTTP/1.1\r\n\r\n")
    refused = await door.come()
    await door.look(0.2)
    await door.look(0.2, after=1.0)
    assert len(door.let_in) == 1
    assert await answer(refused) == ANSWER


async def test_who_left_is_not_served(door: Door) -> None:
    gone = await door.come()
    gone.close()
    stayed = await door.come()
    await door.look(0.001, after=0.02)
    assert len(door.let_in) == 1
    await asyncio.get_running_loop().sock_sendall(stayed, b"more")
    assert door.let_in[0].recv(1000) in (ORDER, ORDER + b"more")


async def test_turning_away_takes_no_more_than_its_share_of_the_time(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(20):
        await door.come()
    await door.look(0.2)
    monkeypatch.setattr(doorkeeping, "BURST_SECONDS", 0.0)
    await door.look(0.2, after=1.0)
    # At most the one that was begun before the time was asked for.
    assert door.queue.look(door.clock.at) >= 19
    monkeypatch.setattr(doorkeeping, "BURST_SECONDS", 5.0)
    await door.look(0.2, after=1.0)
    assert door.queue.look(door.clock.at) == 0


async def test_from_the_drain_on_the_listener_is_left_alone(door: Door) -> None:
    await door.come()
    door.is_draining = True
    await door.doorkeeper.tend(door.queue, door.serve)
    assert door.queue.look(door.clock.at) == 1
