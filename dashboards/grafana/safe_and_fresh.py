"""The dashboard *Are orders safe and fresh?*: from the question down to where to look.

Read from the top: six figures answer it; each row below follows an order one step further. What is told by
several processes about the same thing is taken once (max by shard), never summed.
"""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from dashboards.grafana.kept import kept
from dashboards.grafana.order_way import ACCEPTED, AGES, seen, stored, taken
from dashboards.grafana.parts import Look, Query, empty_dashboard, figure, lines

UID = "coffee-rt-safe-and-fresh"

BACKLOG_SECONDS = 'max(coffee_rt_log_backlog_seconds{group="workers"})'
REFUSED = (
    "sum("
    'rate(coffee_rt_order_api_requests_total{status=~"5.."}[$__rate_interval]) or '
    'rate(coffee_rt_order_api_refusals_total{reason=~"log-filling|backlog"}[$__rate_interval])'
    ") / sum(rate(coffee_rt_order_api_requests_total{}[$__rate_interval]))"
)
COMPONENTS = 'component=~"order-api|worker|aggregator|fanout|query-api|operator"'
IMBALANCE = "max by (shard) (abs(coffee_rt_conservation_imbalance_records{}))"


def build() -> Dashboard:
    """The whole dashboard."""
    board = empty_dashboard(
        UID,
        "coffee-rt: Are orders safe and fresh?",
        "Whether every accepted order is kept, stored once, and seen in time. The first row answers; the rows "
        "below follow an order on its way. Each panel says what good looks like.",
    )
    for row in (_answer, kept, taken, stored, seen, _processes):
        row(board)
    return board


def _answer(board: Dashboard) -> None:
    board.with_row(Row("Are orders safe and fresh?"))
    for panel in (
        figure(
            Look(
                "Not accounted for",
                "Records of settled entries that are in no row of the ledger, or in two; all shards.",
                "0, always.",
                alert="ConservationViolated",
                limits=(None, 1),
            ),
            Query(f"sum({IMBALANCE})", "records"),
        ),
        figure(
            Look(
                "Dead letters, 1 h",
                "Accepted records of the last hour that can't be stored. They are kept with their bytes.",
                "0.",
                alert="DeadLetters",
                limits=(1, None),
            ),
            Query("sum(increase(coffee_rt_worker_dead_letters_total{}[1h]))", "records"),
        ),
        figure(
            Look(
                "Accepted",
                "New orders answered with a 2xx, that is: on disk in the log.",
                "what your shops send; a drop to 0 by day is worth a look.",
                unit="ops",
            ),
            Query(ACCEPTED, "orders"),
        ),
        figure(
            Look(
                "Refused",
                "Share of requests answered with a 5xx, or with 429 because the log fills up.",
                "0 %; above 1 % clients notice.",
                unit="percentunit",
                alert="OrdersRefused",
                limits=(0.0001, 0.01),
            ),
            Query(REFUSED, "share"),
        ),
        figure(
            Look(
                "Oldest unstored order",
                "Age of the oldest entry that no worker has acknowledged.",
                "below a second; orders are safe in the log meanwhile.",
                unit="s",
                alert="BacklogOld",
                limits=(10, 30),
            ),
            Query(BACKLOG_SECONDS, "age"),
        ),
        figure(
            Look(
                "Freshness, p95",
                "From the acceptance of an order to the fan-out process that shows it.",
                "well below a second.",
                unit="s",
                alert="NotFresh",
                limits=(1, 10),
            ),
            Query(f"histogram_quantile(0.95, {AGES})", "p95"),
        ),
    ):
        board.with_panel(panel)


def _processes(board: Dashboard) -> None:
    board.with_row(Row("Processes"))
    for panel in (
        lines(
            Look(
                "Answering Prometheus",
                "Processes that can be scraped, by component.",
                "as many as you run; a line that ends is a component that is gone.",
                alert="TargetMissing",
            ),
            Query(f"sum by (component) (up{{{COMPONENTS}}})", "{{component}}"),
        ),
        lines(
            Look(
                "Ready",
                "Processes that are ready, by component. /readyz of the others says what they lack.",
                "the same as in the panel beside.",
            ),
            Query("sum by (component) (coffee_rt_ready_ratio{})", "{{component}}"),
        ),
        lines(
            Look(
                "Breakers",
                "1: a process leaves a server alone because it kept failing; 0.5: it tries again.",
                "0. Look at the server that is named, not at the breaker.",
                limits=(0.5, 1),
            ),
            Query(
                "max by (component, name) (coffee_rt_breaker_open_ratio{})",
                "{{component}}: {{name}}",
            ),
        ),
    ):
        board.with_panel(panel)
