"""The dashboard *Are orders safe and fresh?*: from the question down to where to look.

Read from the top: six figures answer it; each row below follows an order one step further. What is told by
several processes about the same thing is taken once (max by shard), never summed.
"""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from dashboards.grafana.parts import Look, Query, empty_dashboard, figure, lines

UID = "coffee-rt-safe-and-fresh"

BACKLOG_SECONDS = 'max(coffee_rt_log_backlog_seconds{group="workers"})'
BACKLOG_RECORDS = 'sum(max by (shard) (coffee_rt_log_backlog_records{group="workers"}))'
ACCEPTED = 'sum(rate(coffee_rt_order_api_orders_total{outcome="new"}[$__rate_interval]))'
AGES = "sum by (le) (rate(coffee_rt_fanout_publication_age_seconds_bucket{}[$__rate_interval]))"
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
    for row in (_answer, _safe, _taken, _stored, _seen, _processes):
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


def _safe(board: Dashboard) -> None:
    board.with_row(Row("Safe: kept and accounted for"))
    for panel in (
        lines(
            Look(
                "Conservation imbalance",
                "Accepted minus stored, duplicate, dead and lost records, by shard; above 0 records are missing, "
                "below 0 the log has counted fewer than are stored.",
                "0 on every shard, always.",
                alert="ConservationViolated",
            ),
            Query("max by (shard) (coffee_rt_conservation_imbalance_records{})", "shard {{shard}}"),
        ),
        lines(
            Look(
                "Entries vanished",
                "Entries deleted from the log while they were pending, in five minutes.",
                "0: nobody but the workers' own trim deletes, and it never takes a pending entry.",
                alert="EntriesVanished",
            ),
            Query(
                "sum by (shard) (increase(coffee_rt_log_entries_vanished_total{}[5m]))",
                "shard {{shard}}",
            ),
        ),
        lines(
            Look(
                "Records lost by failover",
                "Records that were answered and are no longer in the log, as told by its counters; in five minutes.",
                "0. A Redis without failover can't lose any this way.",
                alert="RecordsLost",
            ),
            Query(
                "sum by (shard) (increase(coffee_rt_log_gap_records_total{}[5m]))",
                "shard {{shard}}",
            ),
        ),
        lines(
            Look(
                "Redis may lose orders",
                "1 where the log's server is not set up, or not able, to keep what it answered, by reason.",
                "0 for all four: eviction, append-only, fsync, disk. A server that hides a setting lacks its line.",
                alert="RedisUnsafe",
                limits=(None, 1),
            ),
            Query("max by (reason) (coffee_rt_log_unsafe_ratio{})", "{{reason}}"),
        ),
        lines(
            Look(
                "Redis memory",
                "Memory in use, and its maximum.",
                "below 70 % of the maximum; new orders get 429 from 80 % on and 503 from 90 % on.",
                unit="bytes",
                alert="OrdersRefused",
            ),
            Query("max by (kind) (coffee_rt_log_memory_bytes{})", "{{kind}}"),
        ),
        lines(
            Look(
                "Partitions ahead",
                "How far from now on each day has a partition for its orders.",
                "as many days as COFFEE_RT_WORKER_PARTITION_DAYS_AHEAD says (7), never below 2.",
                unit="s",
                alert="PartitionsShort",
            ),
            Query(
                "max(coffee_rt_worker_partitions_end_timestamp_seconds{} > 0) - time()",
                "ahead",
            ),
        ),
        lines(
            Look(
                "Dead letters",
                "Accepted records that can't be stored, by reason, in five minutes.",
                "0. A steady trickle of one reason is a client, or somebody else who writes to the log.",
                alert="DeadLetters",
            ),
            Query(
                "sum by (code) (increase(coffee_rt_worker_dead_letters_total{}[5m]))", "{{code}}"
            ),
        ),
        lines(
            Look(
                "Intake",
                "Records waiting in the database's intake, and taken there in five minutes because Redis was away.",
                "0; what waits is gone seconds after a worker can commit.",
                alert="IntakeWaiting",
            ),
            Query("max(coffee_rt_intake_waiting_records{})", "waiting"),
            Query("sum(increase(coffee_rt_intake_accepted_records_total{}[5m]))", "taken"),
        ),
        lines(
            Look(
                "Intake: oldest",
                "Age of the oldest batch in the database's intake.",
                "0; some seconds while Redis is away.",
                unit="s",
                alert="IntakeWaiting",
            ),
            Query("max(coffee_rt_intake_oldest_seconds{})", "oldest"),
        ),
        lines(
            Look(
                "Intake: refused",
                "Records that neither the log nor the intake took, by reason, in five minutes.",
                "0. 'away': both stores are.",
                alert="OrdersRefused",
            ),
            Query(
                "sum by (reason) (increase(coffee_rt_intake_refused_records_total{}[5m]))",
                "{{reason}}",
            ),
        ),
        lines(
            Look(
                "Groups in the way of the trim",
                "Consumer groups that nobody registered: nothing they have not read is removed from the log.",
                "0.",
            ),
            Query("max(coffee_rt_log_foreign_groups{})", "unregistered groups"),
        ),
        lines(
            Look(
                "Groups lost and set back",
                "Groups found missing and made again, and groups set back after a promotion of PostgreSQL; in five "
                "minutes.",
                "0, but after a failover.",
            ),
            Query("sum(increase(coffee_rt_log_groups_recreated_total{}[5m]))", "made again"),
            Query("sum(increase(coffee_rt_worker_groups_set_back_total{}[5m]))", "set back"),
        ),
    ):
        board.with_panel(panel)


def _taken(board: Dashboard) -> None:
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


def _stored(board: Dashboard) -> None:
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


def _seen(board: Dashboard) -> None:
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
