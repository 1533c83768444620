"""Who a request comes from, and whether that caller has asked too often: API key first, else address."""

from __future__ import annotations

from collections.abc import Sequence

from coffee_rt.callers.addresses import Network, client_address, client_subject
from coffee_rt.callers.rate import Quota, RateLimited, RateLimiter
from coffee_rt.callers.settings import CallerSettings, RequestSettings
from coffee_rt.domain.keys import ANYONE, Access, KeyRing, Principal, token_of
from coffee_rt.errors import Rejected
from coffee_rt.runtime.clock import Clock

Client = tuple[str, int] | None
"""Host and port of a connection's other end, as ASGI tells them."""

FRESH_REFRESHES = 3
"""Missed refreshes of the API keys after which an unknown key may simply be new."""


class Callers:
    """One of a process. `keys` None: every caller may do everything (auth off). A limit of 0 is none."""

    def __init__(
        self,
        keys: KeyRing | None,
        rate: RateLimiter,
        clock: Clock,
        *,
        requests_per_minute: int,
        anonymous_per_minute: int,
        trusted_proxies: Sequence[Network] = (),
    ) -> None:
        self._keys = keys
        self._rate = rate
        self._clock = clock
        self._requests_per_minute = requests_per_minute
        self._anonymous_per_minute = anonymous_per_minute
        self._trusted = tuple(trusted_proxies)

    def identify(
        self,
        access: Access,
        authorization: str | None,
        api_key: str | None,
        client: Client,
        forwarded: bytes | None,
    ) -> tuple[Principal, Quota | None]:
        """Count a request, given its headers. Raises RateLimited, Rejected (401, 403), Overload."""
        if self._keys is None:
            return ANYONE, self._take_address(client, forwarded)
        try:
            token = token_of(authorization, api_key)
            principal = self._keys.check(token, access, self._clock.monotonic())
        except Rejected as error:
            if error.status == 401:
                # Guessing keys is limited by address, like everything without one.
                self._take_address(client, forwarded)
            raise
        limit = principal.requests_per_minute
        if limit is None:
            limit = self._requests_per_minute
        return principal, self._take(f"key:{principal.key_id}", limit)

    def address_of(self, client: Client, forwarded: bytes | None) -> str:
        """What of a caller's address is limited."""
        return client_subject(client_address(client, forwarded, self._trusted))

    def _take_address(self, client: Client, forwarded: bytes | None) -> Quota | None:
        if not self._anonymous_per_minute:
            return None
        subject = f"address:{self.address_of(client, forwarded)}"
        return self._take(subject, self._anonymous_per_minute)

    def _take(self, subject: str, limit: int) -> Quota | None:
        if not limit:
            return None
        quota = self._rate.take(subject, limit)
        if quota.is_exceeded:
            raise RateLimited(quota)
        return quota


def key_ring_of(settings: CallerSettings) -> KeyRing | None:
    """The ring of a process, still empty; None where keys are off."""
    if settings.auth == "off":
        return None
    return KeyRing(
        age_seconds_max=settings.keys_age_seconds_max,
        fresh_seconds=settings.keys_refresh_seconds * FRESH_REFRESHES,
    )


def callers_of(
    settings: RequestSettings, keys: KeyRing | None, rate: RateLimiter, clock: Clock
) -> Callers:
    """The callers of a process; `keys` None: auth is off."""
    return Callers(
        keys,
        rate,
        clock,
        requests_per_minute=settings.requests_per_minute,
        anonymous_per_minute=settings.anonymous_per_minute,
        trusted_proxies=settings.proxy_networks,
    )
