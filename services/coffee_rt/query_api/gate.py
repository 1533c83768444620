"""Who may ask, how often, and how much at once: one caller's questions must not be felt by the others."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from fastapi import Request

from coffee_rt.callers.identity import Callers, Client
from coffee_rt.callers.rate import Quota
from coffee_rt.callers.turns import Turns
from coffee_rt.domain.keys import Access, Principal


class Gate:
    """One of a process; shared by all requests."""

    def __init__(self, callers: Callers, turns: Turns) -> None:
        self._callers = callers
        self._turns = turns

    def enter(self, request: Request, access: Access) -> tuple[Principal, Quota | None]:
        """Raises Rejected (401, 403), RateLimited, or Overload (503) when the keys are too old to be
        believed."""
        headers = request.headers
        return self._callers.identify(
            access,
            headers.get("authorization"),
            headers.get("x-api-key"),
            _client(request),
            _forwarded(request),
        )

    def turn(self, request: Request, principal: Principal) -> AbstractAsyncContextManager[None]:
        """A turn of a caller that was let in. Raises Overload (429)."""
        subject = principal.key_id or self._callers.address_of(
            _client(request), _forwarded(request)
        )
        return self._turns.take(subject)


def _client(request: Request) -> Client:
    return request.client and (request.client.host, request.client.port)


def _forwarded(request: Request) -> bytes | None:
    """All of them: a proxy may add a line of its own below the one a client has made up."""
    lines = request.headers.getlist("x-forwarded-for")
    return ",".join(lines).encode("latin-1") if lines else None
