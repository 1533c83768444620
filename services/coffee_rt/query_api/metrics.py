"""Metrics of query_api."""

from coffee_rt.runtime.metrics import counter, histogram

REQUESTS = counter(
    "coffee_rt_query_api_requests_total",
    "Reads answered, by route and status class; many 5xx: look at the breakers.",
    ("route", "status"),
)
SECONDS = histogram(
    "coffee_rt_query_api_request_seconds",
    "Time from request to answer, by route; slow: look at unfolded deltas and PostgreSQL.",
    ("route",),
)
TAILS_SKIPPED = counter(
    "coffee_rt_query_api_tails_skipped_total",
    "Reads answered without the unfolded tail because it was too long; add aggregators.",
)
REFUSALS = counter(
    "coffee_rt_query_api_refusals_total",
    "Requests refused for a limit, by reason: rate-limited and too-many-requests are one caller's, "
    "too-slow a question that took too long; database-busy: all connections are in use (a larger pool, or more "
    "pods); keys-unavailable: PostgreSQL is away.",
    ("reason",),
)
for _reason in (
    "rate-limited",
    "too-many-requests",
    "too-slow",
    "database-busy",
    "keys-unavailable",
):
    # At 0 before the first one, so that the first one is a rise.
    REFUSALS.labels(_reason)
