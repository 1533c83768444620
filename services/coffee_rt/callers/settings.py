"""Settings of the processes that let callers in, by API key or by address: one shape and one check for all.

Their defaults may differ: a process's class names another one by the functions here.
"""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from coffee_rt.callers.addresses import Network, parse_networks
from coffee_rt.runtime.settings import PREFIX, ProcessSettings, SettingsError, own


def own_proxies(networks: tuple[str, ...]) -> Any:
    """The field `trusted_proxies` with this default."""
    return own(
        networks,
        help="Networks whose X-Forwarded-For is believed, with commas: 10.0.0.0/8,127.0.0.1. Callers behind a "
        "proxy left out share the limits of its one address.",
    )


def own_keys_refresh(seconds: float) -> Any:
    """The field `keys_refresh_seconds` with this default."""
    return own(
        seconds,
        gt=0,
        help="Seconds between loads of the API keys from PostgreSQL: a revoked key lives this long.",
    )


def own_keys_age(seconds: float) -> Any:
    """The field `keys_age_seconds_max` with this default."""
    return own(
        seconds,
        gt=0,
        help="Age up to which API keys are believed while PostgreSQL is away; then callers get 503. Not below the "
        "seconds between loads.",
    )


class CallerSettings(ProcessSettings):
    """A process that lets callers in."""

    trusted_proxies: tuple[str, ...] = own_proxies(())
    rate_settle_seconds: float = own(
        0.25,
        gt=0,
        help="How often requests (connections, in fanout) counted here are added up with the other pods in "
        "Redis. A limit can be exceeded by what the pods take within it.",
    )
    keys_refresh_seconds: float = own_keys_refresh(10.0)
    keys_age_seconds_max: float = own_keys_age(3600.0)

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        parse_networks(networks)
        return networks

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        if self.keys_age_seconds_max < self.keys_refresh_seconds:
            prefix = f"{PREFIX}{self.process.upper().replace('-', '_')}_KEYS"
            raise SettingsError(
                f"{prefix}_AGE_SECONDS_MAX is {self.keys_age_seconds_max:g}, below "
                f"{prefix}_REFRESH_SECONDS ({self.keys_refresh_seconds:g}): between two loads every key "
                "would be too old to be believed"
            )

    @property
    def proxy_networks(self) -> tuple[Network, ...]:
        """`trusted_proxies`, parsed."""
        return parse_networks(self.trusted_proxies)


class RequestSettings(CallerSettings):
    """One that answers requests. Its class says what a key may ask a minute when it has no limit of its own."""

    requests_per_minute: int
    anonymous_per_minute: int = own(
        100, ge=0, help="Requests a minute of an address without a valid API key; 0: no limit."
    )
