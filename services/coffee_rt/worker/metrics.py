"""Metrics of the worker."""

from __future__ import annotations

from coffee_rt.runtime import metrics

ORDERS_STORED = metrics.counter(
    "coffee_rt_worker_orders_stored_total",
    "Orders committed to PostgreSQL. Flat while orders are accepted: look at readiness and at the store.",
)
ORDERS_DUPLICATE = metrics.counter(
    "coffee_rt_worker_orders_duplicate_total",
    "Records that were stored before under the same id and body. A few are normal after a failover.",
)
DEAD_LETTERS = metrics.counter(
    "coffee_rt_worker_dead_letters_total",
    "Records that can't be stored, by reason. Above 0: read them in dead_letters and find their writer.",
    ("code",),
)
for _code in (
    "bad-data",
    "foreign-entry",
    "found-by-store",
    "miscounted-entry",
    "order-id-time",
    "unreadable-record",
    "unstorable-entry",
):
    # At 0 before the first one, so that the first one is a rise.
    DEAD_LETTERS.labels(_code)
ENTRIES = metrics.counter(
    "coffee_rt_worker_entries_total",
    "Entries committed: stored, or seen before (a redelivery that the ledger absorbed).",
    ("outcome",),
)
ENTRIES_CLAIMED = metrics.counter(
    "coffee_rt_worker_entries_claimed_total",
    "Entries taken over from workers that went away. A steady rate: workers keep dying or are too slow.",
)
ENTRIES_PARKED = metrics.counter(
    "coffee_rt_worker_entries_parked_total",
    "Entries parked whole because they alone failed while others were stored. Read their dead letters.",
)
ENTRIES_UNKNOWN = metrics.gauge(
    "coffee_rt_worker_entries_unknown_version",
    "Entries of a wire version this release can't read, left pending. Above 0: roll out the newer release.",
)
RECORDS_HELD = metrics.gauge(
    "coffee_rt_worker_records_held",
    "Records read and not yet acknowledged by this worker. Bounded by six batches.",
)
BATCH_RECORDS = metrics.histogram(
    "coffee_rt_worker_batch_records",
    "Records of a committed batch. At the limit all the time: add workers.",
    buckets=(1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000),
)
COMMIT_SECONDS = metrics.histogram(
    "coffee_rt_worker_commit_seconds",
    "Time of a transaction. When it rises, look at PostgreSQL's disk and locks.",
)
STORED_AGE_SECONDS = metrics.histogram(
    "coffee_rt_worker_stored_age_seconds",
    "Age of a batch's oldest entry when it was committed: accepted to stored, at worst.",
)
COMMIT_FAILURES = metrics.counter(
    "coffee_rt_worker_commit_failures_total",
    "Commits that failed: retryable (PostgreSQL away or busy) or bad_data (a batch being bisected).",
    ("reason",),
)
READ_FAILURES = metrics.counter(
    "coffee_rt_worker_read_failures_total",
    "Reads, claims and acknowledgements that failed, by shard. Look at Redis and the network to it.",
    ("shard",),
)
PUBLISH_FAILURES = metrics.counter(
    "coffee_rt_worker_publish_failures_total",
    "Announcements of commits that were not sent. Waiting clients then learn it by polling.",
)
CONSERVATION = metrics.gauge(
    "coffee_rt_conservation_imbalance_records",
    "Accepted records of a shard's settled entries that are not stored, duplicate, dead or lost. Above 0: they "
    "are missing. Below 0: the log counts on from less than is stored. `coffee-rt audit` names them.",
    ("shard",),
)
CONSERVATION_RECORDS = metrics.gauge(
    "coffee_rt_conservation_records",
    "Records of a shard by what became of them: accepted = stored + duplicate + dead + lost + in_flight + the "
    "imbalance, less numbers that a failover of the log gave twice. Since the install; dead falls when letters are redriven.",
    ("shard", "state"),
)
CARE_FAILURES = metrics.counter(
    "coffee_rt_worker_care_failures_total",
    "Chores that failed and are tried again at their next turn, by chore.",
    ("chore",),
)
GROUPS_SET_BACK = metrics.counter(
    "coffee_rt_worker_groups_set_back_total",
    "Shards set back because PostgreSQL was promoted or restored; the ledger absorbs what is stored. Rising "
    "for ever: two primaries answer in turns, or a name leads to both.",
    ("shard",),
)
LEDGER_COMPACTED = metrics.counter(
    "coffee_rt_worker_ledger_compacted_entries_total",
    "Ledger rows moved into their shard's sum because their entries left the log.",
)
PARTITIONS_END = metrics.gauge(
    "coffee_rt_worker_partitions_end_timestamp_seconds",
    "Unix time up to which orders have a partition for each day, from today on. Less than two days ahead: "
    "the hourly chore fails; the worker's log has its error.",
)
INTAKE_DRAINED = metrics.counter(
    "coffee_rt_intake_drained_records_total",
    "Records that came by the database's intake and are stored (or known, or dead) now.",
)
INTAKE_WAITING_RECORDS = metrics.gauge(
    "coffee_rt_intake_waiting_records",
    "Records waiting in the database's intake. Above 0 for long: no worker drains it.",
)
INTAKE_OLDEST_SECONDS = metrics.gauge(
    "coffee_rt_intake_oldest_seconds",
    "Age of the oldest batch in the intake. Above some seconds: workers are away, or can't commit it.",
)
INTAKE_IMBALANCE = metrics.gauge(
    "coffee_rt_intake_imbalance_records",
    "Records the intake took that are neither stored nor waiting. Always 0; else rows were removed by hand.",
)
