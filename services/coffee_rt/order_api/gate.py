"""Who may come in: API key, rate limit, and the state of the log, asked in this order, before a body is read.

Everything here is decided from what background tasks keep up to date; no request waits for a server.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from coffee_rt.callers.identity import Callers
from coffee_rt.callers.rate import Quota, RateLimited
from coffee_rt.domain.keys import Access, Principal
from coffee_rt.errors import Overload
from coffee_rt.order_api.http_exchange import Request
from coffee_rt.order_api.metrics import REFUSALS


class Admission(Protocol):
    """The last word on whether the log takes more (streams.admission)."""

    def check(self) -> None:
        """Raises Overload when it does not."""


class Visit(NamedTuple):
    """A request that was let in."""

    principal: Principal
    quota: Quota | None


class Gate:
    """One of a process."""

    def __init__(self, callers: Callers, admission: Admission) -> None:
        self._callers = callers
        self._admission = admission

    def enter(self, head: dict[bytes, bytes], request: Request) -> Visit:
        """Raises Rejected (401, 403), RateLimited, Overload."""
        try:
            principal, quota = self._callers.identify(
                Access.INGEST,
                _text(head, b"authorization"),
                _text(head, b"x-api-key"),
                request.client,
                head.get(b"x-forwarded-for"),
            )
        except RateLimited:
            REFUSALS.labels("rate").inc()
            raise
        try:
            self._admission.check()
        except Overload as error:
            REFUSALS.labels(error.code).inc()
            raise
        return Visit(principal, quota)


def _text(head: dict[bytes, bytes], name: bytes) -> str | None:
    value = head.get(name)
    return None if value is None else value.decode("latin-1")
