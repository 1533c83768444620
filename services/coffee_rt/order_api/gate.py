"""Who may come in: API key, rate limit, and the state of the log, asked in this order, before a body is read.

Everything here is decided from what background tasks keep up to date; no request waits for a server.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import NamedTuple, Protocol

from coffee_rt.domain.keys import ANYONE, Access, KeyRing, Principal, token_of
from coffee_rt.errors import Overload, Rejected
from coffee_rt.order_api.http_exchange import Request
from coffee_rt.order_api.metrics import REFUSALS
from coffee_rt.order_api.rate import Quota, RateLimiter
from coffee_rt.runtime.clock import Clock

Network = IPv4Network | IPv6Network


class Admission(Protocol):
    """The last word on whether the log takes more (streams.admission)."""

    def check(self) -> None:
        """Raises Overload when it does not."""


class RateLimited(Overload):
    """Refused for its rate; carries the quota for the answer's headers."""

    def __init__(self, quota: Quota) -> None:
        detail = f"More than {quota.limit} requests a minute."
        super().__init__("rate-limited", detail, float(quota.reset_seconds), 429)
        self.quota = quota


class Visit(NamedTuple):
    """A request that was let in."""

    principal: Principal
    quota: Quota | None


class Gate:
    """One of a process. `keys` None: every caller may do everything (auth off)."""

    def __init__(
        self,
        keys: KeyRing | None,
        rate: RateLimiter,
        admission: Admission,
        clock: Clock,
        *,
        requests_per_minute: int,
        anonymous_per_minute: int,
        trusted_proxies: Sequence[str] = (),
    ) -> None:
        self._keys = keys
        self._rate = rate
        self._admission = admission
        self._clock = clock
        self._requests_per_minute = requests_per_minute
        self._anonymous_per_minute = anonymous_per_minute
        self._trusted: tuple[Network, ...] = tuple(map(ip_network, trusted_proxies))

    def enter(self, head: dict[bytes, bytes], request: Request) -> Visit:
        """Raises Rejected (401, 403), RateLimited, Overload."""
        principal, quota = self._identify(head, request)
        if quota is not None and quota.is_exceeded:
            REFUSALS.labels("rate").inc()
            raise RateLimited(quota)
        try:
            self._admission.check()
        except Overload as error:
            REFUSALS.labels(error.code).inc()
            raise
        return Visit(principal, quota)

    def _identify(
        self, head: dict[bytes, bytes], request: Request
    ) -> tuple[Principal, Quota | None]:
        if self._keys is None:
            return ANYONE, self._take_address(head, request)
        try:
            token = token_of(_text(head, b"authorization"), _text(head, b"x-api-key"))
            principal = self._keys.check(token, Access.INGEST, self._clock.monotonic())
        except Rejected as error:
            # Guessing keys is limited by address, like everything without one.
            quota = self._take_address(head, request) if error.status == 401 else None
            if quota is not None and quota.is_exceeded:
                return ANYONE, quota
            raise
        limit = principal.requests_per_minute
        if limit is None:
            limit = self._requests_per_minute
        return principal, self._rate.take(f"key:{principal.key_id}", limit) if limit else None

    def _take_address(self, head: dict[bytes, bytes], request: Request) -> Quota | None:
        if not self._anonymous_per_minute:
            return None
        address = client_address(request.client, head.get(b"x-forwarded-for"), self._trusted)
        return self._rate.take(f"address:{client_subject(address)}", self._anonymous_per_minute)


def _text(head: dict[bytes, bytes], name: bytes) -> str | None:
    value = head.get(name)
    return None if value is None else value.decode("latin-1")


def client_address(
    client: tuple[str, int] | None, forwarded: bytes | None, trusted: Sequence[Network]
) -> str:
    """The nearest address that is no trusted proxy: X-Forwarded-For is read from its right end, and only
    as long as each hop that wrote it is trusted."""
    address = str(client[0]) if client else "unknown"
    if forwarded is None or not trusted:
        return address
    for hop in reversed(forwarded.decode("latin-1").split(",")):
        if not _is_trusted(address, trusted):
            return address
        address = hop.strip()
    return address


def client_subject(address: str) -> str:
    """What of an address is limited: for IPv6 its /64, because one caller is given all of those."""
    parsed = _parse_address(address)
    if parsed is None:
        return "unknown"
    if isinstance(parsed, IPv4Address):
        return str(parsed)
    return str(ip_network((int(parsed) >> 64 << 64, 64)))


def _is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    parsed = _parse_address(address)
    return parsed is not None and any(parsed in network for network in trusted)


def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """An address, with a port as some proxies write it; an IPv4 one inside IPv6 is that IPv4 one."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        parsed = ip_address(text)
    except ValueError:
        return None
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed
