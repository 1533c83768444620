"""What a worker is made of, and its limits: the wiring brings the real parts, a simulation those in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from coffee_rt.channels.contract import Channels
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import Clock
from coffee_rt.runtime.health import Health
from coffee_rt.runtime.logs import Log
from coffee_rt.store.contract import OrderWriter, StoreKeeper
from coffee_rt.store.intake_contract import Intake
from coffee_rt.streams.contract import GroupReader, LogKeeper
from coffee_rt.worker.care import CareLimits
from coffee_rt.worker.reading import ReadLimits
from coffee_rt.worker.storing import Offload, StoreLimits, run_inline


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Units are in the names; WorkerSettings explains each."""

    batch_records_max: int = 10_000
    batch_bytes_max: int = 8 * 1024 * 1024
    linger_seconds: float = 0.02
    drain_seconds_max: float = 30.0
    currency_decimals: int = 2
    read: ReadLimits = field(default_factory=ReadLimits)
    store: StoreLimits = field(default_factory=StoreLimits)
    care: CareLimits = field(default_factory=CareLimits)


async def _nothing() -> None:
    """No check."""


@dataclass(frozen=True, slots=True)
class WorkerParts:
    """Shared by all tasks of one worker; closed by whoever made them."""

    reader: GroupReader
    log_keeper: LogKeeper
    writer: OrderWriter
    store_keeper: StoreKeeper
    channels: Channels
    log_breaker: CircuitBreaker
    store_breaker: CircuitBreaker
    clock: Clock
    health: Health
    log: Log
    intake: Intake | None = None
    """What order_api took while the log was away; None: nobody asks."""
    offload: Offload = run_inline
    check_store: Callable[[], Awaitable[None]] = _nothing
    check_log: Callable[[], Awaitable[None]] = _nothing
    """Raises Retryable while a server is away or not yet migrated, Rejected where the log was installed
    otherwise."""
