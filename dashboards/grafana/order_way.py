"""Rows of *Are orders safe and fresh?* that follow an order on its way: taken, stored, seen."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from dashboards.grafana.parts import Look, Query, lines

ACCEPTED = 'sum(rate(coffee_rt_order_api_orders_total{outcome="new"}[$__rate_interval]))'
AGES = "sum by (le) (rate(coffee_rt_fanout_publication_age_seconds_bucket{}[$__rate_interval]))"
BACKLOG_RECORDS = 'sum(max by (shard) (coffee_rt_log_backlog_records{group="workers"}))'


def taken(board: Dashboard) -> None:
    board.with_row(Row("Taken: from the request to the log"))
    for panel in (
        lines(
            Look(
                "Orders by outcome",
                "Records a second by what became of them: new, duplicate (a retry met its key), conflict, rejected, "
                "failed.",
                "new, and a few duplicates; failed means unknown or away.",
                unit="ops",
            ),
            Query(
                "sum by (outcome) (rate(coffee_rt_order_api_orders_total{}[$__rate_interval]))",
                "{{outcome}}",
            ),
        ),
        lines(
            Look(
                "Refusals",
                "Requests refused before the log could be harmed, by reason, and answers with a 5xx by status.",
                "0; 'rate' alone is a client over its limit.",
                unit="ops",
                alert="OrdersRefused",
            ),
            Query(
                "sum by (reason) (rate(coffee_rt_order_api_refusals_total{}[$__rate_interval]))",
                "{{reason}}",
            ),
            Query(
                'sum by (status) (rate(coffee_rt_order_api_requests_total{status=~"5.."}[$__rate_interval]))',
                "{{status}}",
            ),
        ),
        lines(
            Look(
                "Time to answer, and to disk",
                "99 of 100 requests are answered within the first line; 99 of 100 flushes are on disk within the "
                "second.",
                "both below 50 ms.",
                unit="s",
            ),
            Query(
                "histogram_quantile(0.99, sum by (le) "
                "(rate(coffee_rt_order_api_request_seconds_bucket{}[$__rate_interval])))",
                "answer p99",
            ),
            Query(
                "histogram_quantile(0.99, sum by (le) "
                "(rate(coffee_rt_log_flush_seconds_bucket{}[$__rate_interval])))",
                "flush p99",
            ),
        ),
    ):
        board.with_panel(panel)


def stored(board: Dashboard) -> None:
    board.with_row(Row("Stored: from the log to PostgreSQL"))
    for panel in (
        lines(
            Look(
                "Backlog, seconds",
                "Age of the oldest entry that is not acknowledged, by shard.",
                "below a second on every shard; one shard alone is an entry that a worker holds.",
                unit="s",
                alert="BacklogOld",
                limits=(None, 30),
            ),
            Query(
                'max by (shard) (coffee_rt_log_backlog_seconds{group="workers"})', "shard {{shard}}"
            ),
        ),
        lines(
            Look(
                "Backlog, records",
                "Records from the oldest unacknowledged entry on, all shards; and entries handed to a worker.",
                "a second of the accept rate at most.",
                alert="BacklogOld",
            ),
            Query(BACKLOG_RECORDS, "records"),
            Query(
                'sum(max by (shard) (coffee_rt_log_pending_entries{group="workers"}))',
                "entries in hand",
            ),
        ),
        lines(
            Look(
                "Accepted and stored",
                "Orders a second that were accepted, and that were committed.",
                "two lines on top of each other.",
                unit="ops",
                alert="BacklogOld",
            ),
            Query(ACCEPTED, "accepted"),
            Query("sum(rate(coffee_rt_worker_orders_stored_total{}[$__rate_interval]))", "stored"),
        ),
    ):
        board.with_panel(panel)


def seen(board: Dashboard) -> None:
    board.with_row(Row("Seen: from PostgreSQL to the page"))
    for panel in (
        lines(
            Look(
                "Freshness",
                "From the acceptance of an order to its arrival in a fan-out process.",
                "p50 below 100 ms, p99 below a second.",
                unit="s",
                alert="NotFresh",
                limits=(None, 10),
            ),
            *(Query(f"histogram_quantile(0.{part}, {AGES})", f"p{part}") for part in (50, 95, 99)),
        ),
        lines(
            Look(
                "Waiting to be folded",
                "Age of the oldest delta that is not in its view yet.",
                "below a second; steadily more: add aggregators.",
                unit="s",
                alert="NotFresh",
                limits=(None, 10),
            ),
            Query("max(coffee_rt_aggregator_waiting_seconds{})", "oldest delta"),
        ),
        lines(
            Look(
                "Sessions",
                "Open sessions by kind, and subscriptions whose browser reads too slowly.",
                "what your pages and clients are; lagging near 0.",
            ),
            Query("sum by (kind) (coffee_rt_fanout_sessions_count{})", "{{kind}}"),
            Query("sum(coffee_rt_fanout_lagging_subscriptions_count{})", "lagging"),
        ),
    ):
        board.with_panel(panel)
