"""Who may open a session: origins, addresses, numbers. Pure; the adapters ask before they upgrade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from coffee_rt.callers.addresses import Network, client_address, client_subject
from coffee_rt.callers.rate import RateLimited, RateLimiter
from coffee_rt.domain.keys import token_of
from coffee_rt.errors import Overload, Rejected
from coffee_rt.fanout import metrics
from coffee_rt.fanout.protocol import SUBPROTOCOL, TOKEN_SUBPROTOCOL


@dataclass(frozen=True, slots=True)
class Visitor:
    """A connection that may be upgraded."""

    token: str | None = field(repr=False)
    subprotocol: str | None
    """To be confirmed in the answer to the upgrade."""
    forwarded: str
    """X-Forwarded-For, believed as far as trusted proxies wrote it."""


class Door:
    """Counts open sessions and checks new ones. One per process; each `enter` that did not raise is
    followed by a `leave` with the address it gave. `rate` counts connections a minute of an address, which
    also limits guesses of keys: each has a connection of its own.

    `origins` are allowed besides the page's own (same host as the request's). A request without an Origin
    comes from no browser: where keys are on it needs a token anyway.
    """

    def __init__(
        self,
        *,
        sessions_max: int,
        sessions_per_address_max: int,
        rate: RateLimiter | None = None,
        connects_per_minute: int = 0,
        origins: Sequence[str] = (),
        trusted_proxies: Sequence[Network] = (),
    ) -> None:
        self.is_closed = False
        self._sessions_max = sessions_max
        self._per_address_max = sessions_per_address_max
        self._rate = rate
        self._connects_per_minute = connects_per_minute
        self._origins = frozenset(origins)
        self._trusted = tuple(trusted_proxies)
        self._open = 0
        self._by_address: dict[str, int] = {}

    def check(self, headers: Mapping[str, str]) -> Visitor:
        """Raises Rejected (403 origin, 401 token) or Overload (503). `headers` ignore case."""
        if self.is_closed:
            raise Overload("draining", "This process is stopping; connect again.", 1.0)
        self._check_origin(headers.get("Origin"), headers.get("Host", ""))
        if self._open >= self._sessions_max:
            metrics.refused.labels("sessions").inc()
            raise Overload("too-many-sessions", "No session is free here.", 5.0)
        offered = [
            part.strip() for part in headers.get("Sec-WebSocket-Protocol", "").split(",") if part
        ]
        token = token_of(headers.get("Authorization"), headers.get("X-API-Key"))
        for part in offered:
            if token is None and part.startswith(TOKEN_SUBPROTOCOL):
                token = part.removeprefix(TOKEN_SUBPROTOCOL)
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in offered else None
        return Visitor(token, subprotocol, _lines_of(headers, "x-forwarded-for"))

    def enter(self, visitor: Visitor, peer: str) -> str:
        """Count a connection from `peer` in; what of the client's address is limited. Raises Overload (429)."""
        forwarded = visitor.forwarded.encode("latin-1", "replace") or None
        address = client_subject(client_address((peer, 0), forwarded, self._trusted))
        if self._rate is not None and self._connects_per_minute:
            quota = self._rate.take(f"address:{address}", self._connects_per_minute)
            if quota.is_exceeded:
                metrics.refused.labels("rate").inc()
                raise RateLimited(quota)
        if self._by_address.get(address, 0) >= self._per_address_max:
            metrics.refused.labels("address").inc()
            raise Overload("too-many-sessions", "too many sessions from this address", 10.0, 429)
        self._open += 1
        self._by_address[address] = self._by_address.get(address, 0) + 1
        return address

    def leave(self, address: str) -> None:
        self._open -= 1
        left = self._by_address[address] - 1
        if left:
            self._by_address[address] = left
        else:
            del self._by_address[address]

    def _check_origin(self, origin: str | None, host: str) -> None:
        if origin is None or origin in self._origins:
            return
        # "null" (a sandboxed page, a local file) has no host and so never matches.
        if host and _host_of(origin) == host.lower():
            return
        metrics.refused.labels("origin").inc()
        raise Rejected("bad-origin", "This page may not connect here.", status=403)


def _host_of(origin: str) -> str:
    """Host and port of an origin; empty for what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _lines_of(headers: Mapping[str, str], name: str) -> str:
    """All lines of a header in one: a proxy may add a line of its own below the one a client has made up."""
    return ",".join(text for known, text in headers.items() if known.lower() == name)
