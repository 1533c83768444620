"""Settings of the worker. Every limit of its pipeline is here; memory is bounded by their product."""

from __future__ import annotations

from typing import ClassVar

from coffee_rt.runtime.settings import (
    DatabaseSettings,
    ProcessSettings,
    RedisSettings,
    own,
    shared,
)
from coffee_rt.store.contract import KEEP_DAYS_MIN


class WorkerSettings(ProcessSettings):
    """COFFEE_RT_WORKER_* and what all processes share.

    Memory: at most six batches are held (gathering, prepared, waiting, committed, waiting and being
    acknowledged), each of `batch_records_max` records or `batch_bytes_max` bytes (times about 8 as Python
    objects), plus one read a shard and four pages of claimed entries.
    """

    process: ClassVar[str] = "worker"

    http_port: int = shared(8002, ge=0, le=65535, help="Port to listen on; 0: any free one.")
    grace_seconds: float = shared(
        60.0, gt=0, help="Seconds to drain after SIGTERM; then the process ends with exit code 1."
    )
    linger_ms: int = own(
        20,
        ge=0,
        le=10_000,
        help="Milliseconds a batch waits after its oldest entry. 0: twice the CPU, 4 ms earlier; larger: "
        "orders are seen later.",
    )
    batch_records_max: int = own(
        10_000,
        ge=1,
        le=200_000,
        help="Records at which a batch is closed at once. Larger: a little faster, longer transactions.",
    )
    batch_bytes_max: int = own(
        8 * 1024 * 1024, ge=1024, help="Bytes of entries at which a batch is closed at once."
    )
    read_entries_max: int = own(
        500,
        ge=1,
        le=20_000,
        help="Entries asked for in one read of a shard; fewer as soon as they are known to be large. Times "
        "the producers' limit for an entry (1 MB) it is the worst case of a read.",
    )
    read_wait_seconds: float = own(
        0.5,
        gt=0,
        le=5,
        help="Seconds a read waits on an empty shard; bounds how long a drain waits.",
    )
    claim_every_seconds: float = own(
        5.0, gt=0, help="Seconds between looks for entries that dead workers left, per shard."
    )
    claim_idle_seconds_min: float = own(
        30.0,
        gt=0,
        help="Seconds an entry lies with another worker before it is taken over. Below the longest commit, "
        "workers take entries from each other for nothing.",
    )
    claim_entries_max: int = own(
        128,
        ge=1,
        le=1000,
        help="Entries taken over at once; they are committed in a transaction apart.",
    )
    suspect_attempts_min: int = own(
        5,
        ge=2,
        help="Deliveries (or failed commits) above which an entry is processed alone. Never a verdict.",
    )
    park_failures: int = own(
        5,
        ge=2,
        help="Failures in a row of a suspect entry, alone, with others committed between them, before it "
        "becomes a dead letter. Smaller: a flapping database could cost an order.",
    )
    backoff_seconds_max: float = own(
        2.0, gt=0, help="Longest wait between two attempts to commit the same batch."
    )
    drain_seconds_max: float = own(
        30.0, gt=0, help="Seconds to commit what was read before SIGTERM; the rest stays pending."
    )
    partition_days_ahead: int = own(
        7, ge=1, le=60, help="Days for which partitions of orders are made ahead."
    )
    retention_days: int = own(
        400,
        ge=KEEP_DAYS_MIN,
        le=36_500,
        help="Days that orders are kept; then their partition is dropped.",
    )
    care_seconds: float = own(
        10.0,
        gt=0,
        help="Seconds between heartbeats, trims, and checks of backlog and conservation.",
    )
    trim_keep_seconds: float = own(
        600.0,
        ge=0,
        help="Seconds that acknowledged entries stay in the log. Shorter than a failover of PostgreSQL "
        "loses what an asynchronous standby lacked.",
    )
    trim_memory_percent_max: int = own(
        60,
        ge=1,
        le=100,
        help="Share of Redis's memory above which acknowledged entries go at once.",
    )
    compact_margin_seconds: float = own(
        3600.0,
        ge=60,
        help="Seconds that ledger rows stay after their entry left the log. Shorter than a paused "
        "worker can sleep would store its entries twice.",
    )
    keys_noted: bool = own(
        True,
        help="Keep the Idempotency-Keys of stored orders in PostgreSQL, which the intake of order_api needs; "
        "costs only keyed orders. The same for all workers.",
    )
    keys_noted_hours: int = own(
        25,
        ge=1,
        le=24 * 31,
        help="Hours such a key is kept: at least COFFEE_RT_ORDER_API_KEY_WINDOW_HOURS and an hour.",
    )
    redis: RedisSettings = RedisSettings()
    database: DatabaseSettings = DatabaseSettings()
