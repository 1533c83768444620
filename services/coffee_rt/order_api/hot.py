"""The hot routes, in front of the web framework: found by (method, path), answered without it.

Whatever a route raises of the families of failure becomes a problem answer here (or the older shape, on
compatibility routes); anything else is a bug and is left to crash the request, loudly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from coffee_rt.callers.rate import RateLimited
from coffee_rt.domain.problems import Problem, problem_of
from coffee_rt.errors import CoffeeRtError, Overload
from coffee_rt.order_api.body_room import BodyRoom
from coffee_rt.order_api.congestion import Congestion
from coffee_rt.order_api.gate import Gate, Visit
from coffee_rt.order_api.http_exchange import (
    Answer,
    ClientGone,
    Receive,
    Request,
    Scope,
    Send,
    problem_answer,
    read_head,
)
from coffee_rt.order_api.metrics import REFUSALS, Tally

App = Callable[[Scope, Receive, Send], Awaitable[None]]
Head = dict[bytes, bytes]

_LATE_REFUSALS = frozenset({"bodies-full", "log-queue-full", "log-slow"})
"""Overloads that are found behind the gate, and counted here."""


class Exchange(NamedTuple):
    """What a route gets: the request let in by the gate, and those of its headers that matter."""

    request: Request
    head: Head
    visit: Visit


@dataclass(frozen=True, slots=True)
class HotRoute:
    """`name` labels metrics; `refuse` makes the answer of a problem. `read_at`: where a GET of the same path is
    answered, for routers that can't tell methods apart (an Ingress)."""

    name: str
    handle: Callable[[Exchange], Awaitable[Answer]]
    refuse: Callable[[Problem, CoffeeRtError], Answer] = lambda problem, _error: problem_answer(
        problem
    )
    read_at: bytes = b""


class HotApp:
    """The process's ASGI application: hot routes, and `app` for everything else."""

    def __init__(
        self,
        app: App,
        gate: Gate,
        routes: dict[str, HotRoute],
        tally: Tally,
        congestion: Congestion,
        room: BodyRoom,
    ) -> None:
        self._app = app
        self._gate = gate
        self.routes = routes
        self._tally = tally
        self._congestion = congestion
        self._room = room
        self._refused: dict[tuple[str, str], bytes] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = self.routes.get(scope["path"])
        if route is None:
            await self._app(scope, receive, send)
        elif scope["method"] == "POST":
            request = Request(
                scope["headers"], scope["query_string"], scope.get("client"), receive=receive
            )
            answer = await self._refuse_or_respond(route, request)
            if answer is not None:
                await answer.send(send)
        elif route.read_at and scope["method"] in ("GET", "HEAD"):
            query = scope["query_string"]
            place = route.read_at + (b"?" + query if query else b"")
            await Answer(307, b"", [(b"location", place)]).send(send)
        else:
            allowed = "GET, HEAD, POST" if route.read_at else "POST"
            detail = f"Only {allowed} is taken here."
            answer = problem_answer(Problem(405, "method-not-allowed", detail))
            answer.headers.append((b"allow", allowed.encode()))
            await answer.send(send)

    def turn_away(self, route: HotRoute, waited_seconds: float = 0.0) -> bytes | None:
        """While the process can't keep up: the whole answer, for as little work as can be, because this is
        what there is most of then. None while orders are taken. `waited_seconds`: of this request, since it was
        read; one that waited too long is refused though those before it were not."""
        refusal = self._turn_away(route, waited_seconds)
        if refusal is None:
            return None
        kind = route.name, refusal.code
        refused = self._refused.get(kind)
        if refused is None:
            answer = route.refuse(problem_of(refusal), refusal)
            refused = self._refused[kind] = answer.to_bytes(is_last=False)
        return refused

    def _turn_away(self, route: HotRoute, waited_seconds: float = 0.0) -> Overload | None:
        refusal = self._congestion.refuse(waited_seconds)
        if refusal is not None:
            REFUSALS.labels(refusal.code).inc()
            self._tally.answered(route.name, refusal.status, 0.0)
        return refusal

    async def _refuse_or_respond(self, route: HotRoute, request: Request) -> Answer | None:
        refusal = self._turn_away(route)
        if refusal is not None:
            return route.refuse(problem_of(refusal), refusal)
        return await self.respond(route, request)

    async def respond(self, route: HotRoute, request: Request) -> Answer | None:
        """The answer of a hot route to a request that was not turned away; None when the client has gone."""
        tally = self._tally
        started = tally.start()
        quota = None
        request.room = self._room
        try:
            head = read_head(request.headers)
            visit = self._gate.enter(head, request)
            quota = visit.quota
            answer = await route.handle(Exchange(request, head, visit))
        except CoffeeRtError as error:
            if isinstance(error, RateLimited):
                quota = error.quota
            elif isinstance(error, Overload) and error.code in _LATE_REFUSALS:
                REFUSALS.labels(error.code).inc()
            answer = route.refuse(problem_of(error), error)
        except ClientGone:
            return None
        finally:
            if request.held:
                self._room.give(request.held)
        if quota is not None:
            if quota.is_exceeded:
                # The quota's own Retry-After is the exact one.
                answer.headers = [pair for pair in answer.headers if pair[0] != b"retry-after"]
            answer.limits = quota
        tally.answered(route.name, answer.status, started)
        return answer


async def flush_tally(tally: Tally, sleep: Callable[[float], Awaitable[Any]]) -> None:
    """Hand the counts over once a second, and when cancelled."""
    try:
        while True:
            await sleep(1.0)
            tally.flush()
    except asyncio.CancelledError:
        tally.flush()
        raise
