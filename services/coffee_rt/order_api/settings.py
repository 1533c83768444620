"""Settings of order_api: COFFEE_RT_ORDER_API_<FIELD>, beside those every process has."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from coffee_rt.callers.settings import RequestSettings, own_keys_age, own_keys_refresh
from coffee_rt.runtime.settings import (
    DatabaseSettings,
    RedisSettings,
    own,
)


class OrderApiSettings(RequestSettings):
    """Everything order_api can be told."""

    process: ClassVar[str] = "order_api"

    redis: RedisSettings = RedisSettings()
    database: DatabaseSettings = DatabaseSettings(pool_size_min=0, pool_size_max=3)

    order_bytes_max: int = own(
        65_536,
        ge=1024,
        help="Bytes of a single order's body, decompressed, or of a record of a batch; larger ones get 413.",
    )
    batch_bytes_max: int = own(
        33_554_432, ge=1024, help="Bytes of a batch's body, decompressed; larger ones get 413."
    )
    batch_records_max: int = own(
        20_000, ge=1, le=1_000_000, help="Records of a batch; more get 413 and nothing is taken."
    )
    batch_slice_records_max: int = own(
        1000,
        ge=1,
        le=10_000,
        help="Records of a batch handled in one go; larger ones keep other requests waiting longer.",
    )
    body_seconds_max: float = own(
        30.0, gt=0, help="Seconds a client may take to send a body; slower ones get 408."
    )
    header_bytes_max: int = own(
        32_768, ge=1024, help="Bytes of a request's head; longer ones get 431."
    )
    header_seconds_max: float = own(
        10.0, gt=0, help="Seconds a client may take to send a request's head; slower ones get 408."
    )
    key_window_hours: int = own(
        24,
        ge=1,
        le=24 * 30,
        help="Hours an Idempotency-Key is remembered. A key takes 88 bytes of Redis: 5000 a second for "
        "24 hours are 38 GB.",
    )
    replicas_min: int = own(
        0,
        ge=0,
        le=10,
        help="Replicas of Redis that must have an order before its 202 (WAIT); 0: the server alone.",
    )
    replicas_level: Literal["memory", "disk"] = own(
        "memory",
        help="What those replicas must have done with it: memory (WAIT), or disk, the server's own included "
        "(WAITAOF: Redis 7.2, Valkey). With appendfsync everysec a disk may take a second.",
    )
    replicas_wait_seconds_max: float = own(
        1.0, gt=0, le=30, help="Seconds to wait for them; then the outcome is unknown (503)."
    )
    flush_records_max: int = own(
        5000, ge=1, le=20_000, help="Orders in one stream entry. Larger: longer stalls of Redis."
    )
    queue_records_max: int = own(
        50_000, ge=1, help="Orders waiting for a shard's flush; above it new ones get 503."
    )
    queue_bytes_max: int = own(
        33_554_432, ge=1_048_576, help="Bytes waiting for a shard's flush; above it: 503."
    )
    wait_seconds_max: float = own(
        3.0,
        gt=0,
        help="Expected wait for this process and for the log above which new orders get 503 at once. Below "
        "the time clients wait for an answer, above three flushes at their slowest.",
    )
    turn_seconds_max: float = own(
        0.25,
        gt=0,
        help="Turn of the event loop above which, twice in a row, new orders get 503 at once; also how long one "
        "that was read may wait to be looked at. Beyond, the process has more to do than it can.",
    )
    bodies_bytes_max: int = own(
        134_217_728,
        ge=1_048_576,
        help="Bytes of larger bodies (over 64 KiB, in chunks, or packed) under way; above it: 503.",
    )
    ack_wait_seconds_default: float = own(
        5.0, ge=0, help="How long ack=stored or visible waits when wait_ms is not given."
    )
    ack_wait_seconds_max: float = own(
        30.0, ge=0, help="The longest wait_ms a client may ask for; longer ones are cut to it."
    )
    ack_waits_max: int = own(
        10_000,
        ge=1,
        help="Requests waiting for stored or visible; above it they get logged at once.",
    )
    catalogue_file: Path | None = own(
        None, help="YAML with lists `stores` and/or `drinks`; only those are taken. None: any text."
    )
    requests_per_minute: int = own(
        60_000, ge=0, help="Requests a minute of an API key that has no limit of its own; 0: none."
    )
    keys_refresh_seconds: float = own_keys_refresh(5.0)
    # A day: orders are taken while PostgreSQL is away.
    keys_age_seconds_max: float = own_keys_age(86_400.0)
    clock_offset_seconds_max: float = own(
        5.0, gt=0, help="Difference from Redis's clock above which this process is not ready."
    )
    memory_ratio_slow: float = own(
        0.80, gt=0, le=1, help="Part of Redis's maxmemory above which new orders get 429."
    )
    memory_ratio_max: float = own(
        0.90, gt=0, le=1, help="Part of Redis's maxmemory above which new orders get 503."
    )
    backlog_bytes_max: int = own(
        0,
        ge=0,
        help="Bytes of the log above which new orders get 503, without maxmemory; 0: no limit.",
    )
    undelivered_records_max: int = own(
        20_000_000, ge=1, help="Orders no worker was handed yet above which new ones get 429."
    )
    backlog_hours_max: float = own(
        12.0, gt=0, help="Age of the oldest unstored order above which new ones get 503."
    )
    intake: bool = own(
        True,
        help="Take orders into PostgreSQL while the log is away, at a reduced rate; false: they get 503. "
        "Keyed ones need COFFEE_RT_WORKER_KEYS_NOTED.",
    )
    intake_records_max: int = own(
        1_000_000, ge=1, help="Orders waiting in the intake above which new ones get 503."
    )
    intake_bytes_max: int = own(
        536_870_912, ge=1_048_576, help="Bytes waiting in the intake above which new ones get 503."
    )
    intake_records_per_second_max: int = own(
        2_000,
        ge=10,
        le=100_000,
        help="Orders a second this process puts into the intake; five seconds of it may wait. Higher: the "
        "views' folds and the workers' commits feel it.",
    )

    def hosts(self) -> tuple[str, ...]:
        return (self.http_host,)
