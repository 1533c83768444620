"""Metrics of the log. Shards are labels (a closed list); ids never are."""

from __future__ import annotations

from coffee_rt.runtime import metrics

FLUSHES = metrics.counter(
    "coffee_rt_log_flushes_total",
    "Flushes answered by the log, by outcome. Anything but ok: look at Redis and at the network to it.",
    ("outcome",),
)
FLUSH_OK = FLUSHES.labels("ok")
FLUSH_SECONDS = metrics.histogram(
    "coffee_rt_log_flush_seconds",
    "Time of one flush from send to durable. When it rises, look at the fsync time of Redis's disk.",
)
FLUSH_RECORDS = metrics.histogram(
    "coffee_rt_log_flush_records",
    "Records sharing one flush. Rises with load; at the limit, add shards or order_api pods.",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000),
)
REPLICAS_MISSED = metrics.counter(
    "coffee_rt_log_replicas_missed_total",
    "Flushes that fewer replicas had in time than were asked for: outcome unknown. Rising: look at the "
    "replicas and at the network between them.",
)
QUEUE_RECORDS = metrics.gauge(
    "coffee_rt_log_queue_records",
    "Records waiting for the next flush, by shard. Steadily high: Redis is slower than the intake.",
    ("shard",),
)
CLOCK_OFFSET = metrics.gauge(
    "coffee_rt_log_clock_offset_seconds",
    "Redis's clock minus ours. Beyond a second: mend NTP on one of the two machines.",
)
GAP_RECORDS = metrics.counter(
    "coffee_rt_log_gap_records_total",
    "Records acknowledged and then lost by a failover, as told by gap entries read. Above 0: data loss.",
    ("shard",),
)
ENTRIES_VANISHED = metrics.counter(
    "coffee_rt_log_entries_vanished_total",
    "Entries deleted while pending. Above 0: somebody trims or deletes the log by hand. Data loss.",
    ("shard",),
)
GROUPS_RECREATED = metrics.counter(
    "coffee_rt_log_groups_recreated_total",
    "Consumer groups found missing and made again from the first entry. Redis lost them: find out why.",
    ("shard",),
)
ACKNOWLEDGEMENTS_DROPPED = metrics.counter(
    "coffee_rt_log_acknowledgements_dropped_total",
    "Entries read on an earlier connection and therefore not acknowledged; they are read again.",
    ("shard",),
)
RECONNECTS = metrics.counter(
    "coffee_rt_log_connections_total",
    "Connections opened to the log, by role. A steady rate means they keep breaking.",
    ("role",),
)
BACKLOG_RECORDS = metrics.gauge(
    "coffee_rt_log_backlog_records",
    "Records from the oldest unacknowledged entry on, by group and shard. Rising: add workers.",
    ("group", "shard"),
)
BACKLOG_SECONDS = metrics.gauge(
    "coffee_rt_log_backlog_seconds",
    "Age of the oldest unacknowledged entry, by group and shard. Rising: the store is slow or stuck.",
    ("group", "shard"),
)
PENDING_ENTRIES = metrics.gauge(
    "coffee_rt_log_pending_entries",
    "Entries delivered and not acknowledged, by group and shard.",
    ("group", "shard"),
)
FOREIGN_GROUPS = metrics.gauge(
    "coffee_rt_log_foreign_groups",
    "Consumer groups nobody registered. Above 0: nothing is trimmed past them; register or destroy them.",
)
TRIMMED_ENTRIES = metrics.counter(
    "coffee_rt_log_trimmed_entries_total",
    "Entries removed after every group acknowledged them. Flat while orders flow: a group is stuck.",
    ("shard",),
)
MEMORY_BYTES = metrics.gauge(
    "coffee_rt_log_memory_bytes",
    "Memory of Redis: used, and the maximum (0: none set). Near the maximum, orders are refused.",
    ("kind",),
)
UNSAFE = metrics.gauge(
    "coffee_rt_log_unsafe_ratio",
    "1 where Redis may lose what it answered, by reason: eviction, append-only, fsync, disk. A reason it does "
    "not tell of is absent. Above 0: set it as docs/guarantees.md says; coffee-rt doctor has the commands.",
    ("reason",),
)


def prepare_shards(shards: int) -> None:
    """Have the counts of what should never happen at 0 before it happens: Prometheus sees no rise in a
    series that begins at 1."""
    for shard in map(str, range(shards)):
        for never in (GAP_RECORDS, ENTRIES_VANISHED, GROUPS_RECREATED):
            never.labels(shard)
