"""Browsers: clients of docs/protocol.md that look at a view, come and go, and are slow at times."""

from __future__ import annotations

import asyncio
from typing import Any

from coffee_rt.channels.messages import encode
from coffee_rt.fanout.session import Session
from tests.fanout_world import FakeSocket
from tests.live_client import LiveView
from tests.simulation.loop import Process
from tests.simulation.world import Part, World


class Connection:
    """A socket to one pod. What is said arrives in order, a moment later, in the pod's process."""

    def __init__(self, world: World, part: Part) -> None:
        assert part.process is not None
        self.socket = FakeSocket()
        self._loop = world.loop
        self._pod: Process = part.process
        self._session: Session | None = None
        self._in_pod(self._open, part)

    @property
    def is_gone(self) -> bool:
        return self._pod.is_dead or self.socket.closed is not None

    def say(self, message: dict[str, Any]) -> None:
        self._in_pod(self._on_message, encode(message))

    def drain(self) -> None:
        self.socket.is_congested = False
        self._in_pod(self._on_writable)

    def close(self) -> None:
        self._in_pod(self._on_closed)

    def _in_pod(self, act: Any, *arguments: Any) -> None:
        if not self._pod.is_dead:
            self._pod.run(self._loop.call_soon, act, *arguments)

    def _open(self, part: Part) -> None:
        self._session = part.core.open(self.socket, "websocket")

    def _on_message(self, text: bytes) -> None:
        if self._session is not None and not self._session.is_closed:
            self._session.on_message(text)

    def _on_writable(self) -> None:
        if self._session is not None:
            self._session.on_writable()

    def _on_closed(self) -> None:
        if self._session is not None:
            self._session.on_closed()


class Browser:
    """One view on one connection at a time. Reads what has arrived a few times a second."""

    def __init__(self, world: World, name: str, view: str = "sales") -> None:
        self.view = view
        self.state = LiveView()
        self._world = world
        self._name = name
        self._connection: Connection | None = None

    async def run(self, world: World, process: Process) -> None:
        world.parts[process.name].core = self
        while True:
            await asyncio.sleep(0.1 + 0.1 * world.chance.random())
            if self._connection is None or self._connection.is_gone:
                self._connect()
            else:
                self._look(self._connection)

    def _look(self, connection: Connection) -> None:
        for message in connection.socket.take():
            if message["type"] == "error":
                # The view is just being defined anew, or not loaded yet.
                self.state = LiveView()
                self.state.needs_resume = True
            else:
                self.state.apply(message)
        if self.state.needs_resume:
            self._subscribe(connection)
        if not self._world.is_healed:
            self._stumble(connection)
        elif connection.socket.is_congested:
            connection.drain()

    def _stumble(self, connection: Connection) -> None:
        drawn = self._world.chance.random()
        if drawn < 0.05:
            connection.socket.is_congested = True
        elif drawn < 0.15 and connection.socket.is_congested:
            connection.drain()
        elif drawn > 0.97:
            self._world.note(f"{self._name} goes elsewhere")
            connection.close()
            self._connection = None

    def _connect(self) -> None:
        pods = [
            part
            for name, part in self._world.parts.items()
            if name.startswith("pod") and part.is_up
        ]
        if pods:
            part = pods[int(self._world.chance.random() * len(pods))]
            self._connection = Connection(self._world, part)
            self._subscribe(self._connection)

    def _subscribe(self, connection: Connection) -> None:
        connection.say(self.state.subscribe(f"view:{self.view}"))
