"""Calls between processes and servers: each may be late, lost on its way there or on its way back.

A server is a process too (it can freeze). What it does for one call is one step: atomic, as a script of
Redis or a transaction of PostgreSQL is. A call of a process that was killed meanwhile is still done when
it was on its way; its answer reaches nobody.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from coffee_rt.errors import NotExecuted, Retryable
from tests.simulation.loop import Process, VirtualLoop, current_process

LATE_SECONDS_MAX = 1.5
"""How long a call may be under way after its caller has given it up."""
GIVE_UP_SECONDS = 0.4


class Fate(Enum):
    FINE = "fine"
    LOST = "lost"
    """Never arrives."""
    UNANSWERED = "unanswered"
    """Done; the answer is lost."""
    LATE = "late"
    """Done after the caller has given up."""


@dataclass(slots=True)
class Weather:
    """Probabilities of a call's fates, drawn once a run; all 0 after healing."""

    lost: float = 0.0
    unanswered: float = 0.0
    late: float = 0.0
    slow: float = 0.0
    """Of taking up to a fifth of a second."""


class Server:
    """Redis or PostgreSQL, as calls meet it."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.name = name
        self.process = Process(loop, name)
        self.is_away = False
        """Refuses connections."""
        self.is_refusing = False
        """Takes calls and fails them, without effect."""
        self.run = 0
        """Raised when its connections break: what they still carried is not done."""


@dataclass(frozen=True, slots=True)
class Later:
    """What a server does in two steps, with others' steps in between: a transaction."""

    act: Callable[[], Any]
    abort: Callable[[], None]
    """Instead of `act`, when the connection breaks in between."""


class Network:
    """Shared by all processes of a run."""

    def __init__(self, loop: VirtualLoop, chance: random.Random, weather: Weather) -> None:
        self.loop = loop
        self.weather = weather
        self.cut: set[tuple[str, str]] = set()
        """(process, server) pairs between which nothing passes."""
        self.refused: set[tuple[str, str]] = set()
        """Pairs of which the process can't connect to the server."""
        self.on_fault: Callable[[str, str, str], None] = lambda who, point, fate: None
        self._chance = chance

    def delay(self) -> float:
        chance = self._chance.random
        if self.weather.slow and chance() < self.weather.slow:
            return 0.2 * chance()
        return 0.0002 + 0.001 * chance()

    async def call(self, server: Server, act: Callable[[], Any], point: str) -> Any:
        """What `act` returns or raises when the server does it. Raises NotExecuted where it was certainly
        not done, Retryable where nobody knows."""
        process = current_process()
        if self.is_away(server):
            await asyncio.sleep(self.delay())
            raise NotExecuted(f"{server.name} refuses connections")
        fate = self._draw_fate(process, server)
        answer: asyncio.Future[Any] = self.loop.create_future()
        if fate is not Fate.FINE:
            self.on_fault(process.name, f"{point} to {server.name}", fate.value)
        if fate is not Fate.LOST:
            late = GIVE_UP_SECONDS + LATE_SECONDS_MAX * self._chance.random()
            self.loop.call_later(
                late if fate is Fate.LATE else self.delay(),
                self._arrive,
                _Call(server, server.run, process, act, answer, fate),
                context=server.process.context,
            )
        if fate is Fate.FINE:
            return await answer
        timer = self.loop.call_later(
            GIVE_UP_SECONDS, _settle, answer, Retryable(f"no answer to {point}")
        )
        try:
            return await answer
        finally:
            timer.cancel()

    def is_away(self, server: Server) -> bool:
        """Whether the running process can't connect to the server."""
        return server.is_away or (current_process().name, server.name) in self.refused

    def reply(self, process: Process, answer: asyncio.Future[Any], result: Any) -> None:
        """Settle a future of another process, a moment later."""
        self.loop.call_later(self.delay(), _settle, answer, result, context=process.context)

    def _draw_fate(self, process: Process, server: Server) -> Fate:
        if (process.name, server.name) in self.cut:
            return Fate.LOST if self._chance.random() < 0.5 else Fate.UNANSWERED
        weather, drawn = self.weather, self._chance.random()
        for fate, share in (
            (Fate.LOST, weather.lost),
            (Fate.UNANSWERED, weather.unanswered),
            (Fate.LATE, weather.late),
        ):
            if drawn < share:
                return fate
            drawn -= share
        return Fate.FINE

    def _arrive(self, call: _Call) -> None:
        if call.server.run != call.run or call.server.is_away:
            result: Any = Retryable(f"the connection to {call.server.name} broke")
        elif (call.process.name, call.server.name) in self.refused:
            # The link broke with the call on its way, or with its answer.
            result = self._break_off(call)
        elif call.server.is_refusing:
            result = Retryable(f"{call.server.name} can't now")
        else:
            result = _outcome(call.act)
        if isinstance(result, Later):
            self._finish_later(call, result)
        elif call.fate is not Fate.UNANSWERED:
            self.reply(call.process, call.answer, result)

    def _break_off(self, call: _Call) -> Retryable:
        if self._chance.random() < 0.5:
            done = _outcome(call.act)
            if isinstance(done, Later):
                done.abort()
        return Retryable(f"the connection to {call.server.name} broke")

    def _finish_later(self, call: _Call, later: Later) -> None:
        context = call.server.process.context
        self.loop.call_later(3 * self.delay(), self._finish, call, later, context=context)

    def _finish(self, call: _Call, later: Later) -> None:
        # A dead caller had sent its COMMIT already, or had not.
        is_sent = not call.process.is_dead or self._chance.random() < 0.5
        if call.server.run != call.run or not is_sent:
            later.abort()
            result: Any = Retryable(f"the connection to {call.server.name} broke")
        else:
            result = _outcome(later.act)
        if call.fate is not Fate.UNANSWERED:
            self.reply(call.process, call.answer, result)


@dataclass(slots=True)
class _Call:
    server: Server
    run: int
    process: Process
    act: Callable[[], Any]
    answer: asyncio.Future[Any]
    fate: Fate


def _outcome(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except Exception as error:  # noqa: BLE001 - whatever a server answers is the caller's
        return error


def _settle(answer: asyncio.Future[Any], result: Any) -> None:
    if answer.done():
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)
