"""Whether the log takes more orders: refuse early, with a time to come back, before Redis has to.

Bytes and records decide first. Age counts in hours only, and records count as undelivered: one stuck
entry, or one slow second group, must not stop the intake for everybody. `decide_admission` is pure; an
`Admission` is refreshed in the background, so that a request costs one comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coffee_rt.errors import Overload
from coffee_rt.streams.contract import Backlog, LogKeeper


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """When to refuse. Each limit names what happens above it."""

    memory_ratio_slow: float = 0.80
    """Share of Redis's maxmemory above which new orders get 429: clients slow down."""
    memory_ratio_max: float = 0.90
    """Share above which they get 503. Below 1, so that duplicates and acknowledgements still work."""
    backlog_bytes_max: int = 0
    """Bytes of all shards' streams; 0: no limit but the ratio above. For a Redis without maxmemory."""
    undelivered_records_max: int = 20_000_000
    """Records no worker has been handed yet; 429 above. At 90 000/s this is four minutes of one worker."""
    oldest_seconds_max: float = 12 * 3600
    """Age of the oldest unacknowledged entry; 503 above. Must stay below the views' retention margin."""
    retry_after_seconds: float = 5.0
    """What a refused client is told; also how far the figures may be behind."""


@dataclass(frozen=True, slots=True)
class LogLoad:
    """The figures a decision is made on, of one moment."""

    memory_used: int
    memory_max: int
    """0: no maximum is set."""
    backlog: Sequence[Backlog]
    """Of the group that stores the orders, by shard."""


def decide_admission(load: LogLoad, limits: AdmissionLimits) -> Overload | None:
    """None, or why not."""
    retry = limits.retry_after_seconds
    ratio = load.memory_used / load.memory_max if load.memory_max else 0.0
    log_bytes = sum(shard.memory_bytes for shard in load.backlog)
    if ratio > limits.memory_ratio_max:
        return Overload("log-memory", f"the order log is {ratio:.0%} full", retry * 2)
    if limits.backlog_bytes_max and log_bytes > limits.backlog_bytes_max:
        return Overload("log-bytes", "the order log holds as many bytes as it may", retry * 2)
    if max((shard.oldest_seconds for shard in load.backlog), default=0) > limits.oldest_seconds_max:
        return Overload("log-age", "orders have waited for hours to be stored", retry * 12)
    if ratio > limits.memory_ratio_slow:
        return Overload("log-filling", f"the order log is {ratio:.0%} full", retry, 429)
    undelivered = sum(shard.undelivered_records for shard in load.backlog)
    if undelivered > limits.undelivered_records_max:
        return Overload("backlog", f"{undelivered} orders wait to be stored", retry, 429)
    return None


class Admission:
    """The current decision. Owned by one process: one task refreshes and clears it, every request checks."""

    def __init__(
        self,
        keeper: LogKeeper,
        group: str,
        limits: AdmissionLimits | None = None,
    ) -> None:
        self._keeper = keeper
        self._group = group
        self._limits = limits or AdmissionLimits()
        self.refusal: Overload | None = None
        """Why orders are refused now; None while they are taken."""

    def check(self) -> None:
        """Raises Overload while orders are refused."""
        refusal = self.refusal
        if refusal is not None:
            raise Overload(
                refusal.code, refusal.detail, refusal.retry_after_seconds, refusal.status
            )

    async def refresh(self) -> None:
        """Look at the log once. Raises Retryable; the decision before stays then."""
        used, maximum = await self._keeper.memory()
        # Without what is away: orders for it fail on their own, and the others are still taken.
        backlog = await self._keeper.backlog(self._group, is_partial=True)
        load = LogLoad(used, maximum, backlog)
        self.refusal = decide_admission(load, self._limits)
