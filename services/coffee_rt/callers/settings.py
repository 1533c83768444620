"""Settings of the processes that answer callers by HTTP."""

from __future__ import annotations

from coffee_rt.runtime.settings import ProcessSettings, own


class CallerSettings(ProcessSettings):
    """A process's class says what a key may ask a minute when it has no limit of its own."""

    requests_per_minute: int
    anonymous_per_minute: int = own(
        100, ge=0, help="Requests a minute of an address without a valid API key; 0: no limit."
    )
    rate_settle_seconds: float = own(
        0.25,
        gt=0,
        help="How often requests counted here are added up with the other pods in Redis. A limit can be "
        "exceeded by what the pods take within it.",
    )
    trusted_proxies: tuple[str, ...] = own(
        (), help="Networks whose X-Forwarded-For is believed, with commas: 10.0.0.0/8,127.0.0.1."
    )
