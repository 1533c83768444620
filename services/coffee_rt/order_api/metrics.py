"""Metrics of order_api. Requests are counted in plain numbers and handed over once a second (`Tally`):
a Prometheus counter costs more than reading an order does.
"""

from __future__ import annotations

from collections import Counter as CountOf
from time import monotonic

from coffee_rt.runtime.metrics import counter, gauge, histogram

REQUESTS = counter(
    "coffee_rt_order_api_requests_total",
    "Answers by route and status. Many 5xx: look at Redis; many 429: a client or a limit is off.",
    ("route", "status"),
)
ORDERS = counter(
    "coffee_rt_order_api_orders_total",
    "Records by outcome: new, duplicate (a retry met its key), conflict, rejected, failed (unknown or away).",
    ("outcome",),
)
REQUEST_SECONDS = histogram(
    "coffee_rt_order_api_request_seconds",
    "Time to answer, of one request in 16. Above 50 ms: Redis's disk, or this process is out of CPU.",
    ("route",),
)
REFUSALS = counter(
    "coffee_rt_order_api_refusals_total",
    "Requests refused before the log could be harmed, by reason. Rising: see backlog and Redis memory.",
    ("reason",),
)
for _outcome in ("new", "duplicate", "conflict", "rejected", "failed"):
    ORDERS.labels(_outcome)
for _reason in (
    *("rate", "log-memory", "log-bytes", "log-age", "log-filling", "backlog"),
    *("overloaded", "log-slow", "bodies-full"),
):
    # At 0 before the first one, so that the first one is a rise.
    REFUSALS.labels(_reason)
WAIT_SECONDS = gauge(
    "coffee_rt_order_api_wait_seconds",
    "Expected wait of an order that arrives now. Near the maximum orders are refused: more pods for CPU, or "
    "a faster disk for Redis where coffee_rt_log_flush_seconds is high too.",
)
UNACCEPTED = gauge(
    "coffee_rt_order_api_unaccepted_connections",
    "Connections that wait to be accepted. Above some hundred: more clients come than this process can serve; "
    "more pods.",
)
LEFT = counter(
    "coffee_rt_order_api_left_connections_total",
    "Connections whose client had hung up before they were accepted. Rising: clients wait longer than they want to.",
)
BODIES_BYTES = gauge(
    "coffee_rt_order_api_bodies_bytes",
    "Bytes of bodies under way. At the maximum, larger requests are refused.",
)
ACK_WAITS = gauge(
    "coffee_rt_order_api_ack_waits",
    "Requests waiting for stored or visible. Near the maximum: workers or aggregators are behind.",
)
KEYS_AGE_SECONDS = gauge(
    "coffee_rt_order_api_keys_age_seconds",
    "Time since API keys were read from PostgreSQL. Rising: PostgreSQL is away; at the maximum, 503.",
)
INTAKE_ACCEPTED = counter(
    "coffee_rt_intake_accepted_records_total",
    "Records taken into the database's intake because the log was away. Rising: look at Redis.",
)
INTAKE_REFUSED = counter(
    "coffee_rt_intake_refused_records_total",
    "Records that neither the log nor the intake took: it is full, its queue is, the database is away (or "
    "its answer was lost: unknown), or it does not know all keys yet. Rising: both stores need a look.",
    ("reason",),
)
INTAKE_APPEND_SECONDS = histogram(
    "coffee_rt_intake_append_seconds",
    "Time of one append to the intake. Above 50 ms: PostgreSQL's disk, or locks on keys.",
)
for _reason in ("full", "queue", "away", "unknown", "keys"):
    INTAKE_REFUSED.labels(_reason)

SAMPLE_EVERY = 16


class Tally:
    """Counts of one process until `flush`. One thread only."""

    __slots__ = ("_answers", "_orders", "_seen")

    def __init__(self) -> None:
        self._answers: dict[tuple[str, int], int] = {}
        self._orders: CountOf[str] = CountOf()
        self._seen = 0

    def start(self) -> float:
        """The time, for one request in SAMPLE_EVERY; 0 for the others."""
        self._seen += 1
        return monotonic() if self._seen % SAMPLE_EVERY == 0 else 0.0

    def answered(self, route: str, status: int, started: float) -> None:
        key = (route, status)
        self._answers[key] = self._answers.get(key, 0) + 1
        if started:
            REQUEST_SECONDS.labels(route).observe(monotonic() - started)

    def took(self, outcome: str, count: int = 1) -> None:
        self._orders[outcome] += count

    def flush(self) -> None:
        answers, self._answers = self._answers, {}
        taken, self._orders = self._orders, CountOf()
        for (route, status), count in answers.items():
            REQUESTS.labels(route, str(status)).inc(count)
        for outcome, count in taken.items():
            ORDERS.labels(outcome).inc(count)
