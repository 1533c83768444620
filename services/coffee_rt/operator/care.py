"""The tender's chores in log and database, as its spec wants them: partitions, retention, compaction.

The workers do the same by themselves as long as there is no operator; either may do it at any time. The
retention of the spec is stored as the policy of the installation, which goes before the workers' setting.
"""

from __future__ import annotations

from coffee_rt.errors import Retryable
from coffee_rt.operator import metrics
from coffee_rt.operator.pipeline_spec import PipelineSpec
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import Clock
from coffee_rt.runtime.logs import Log
from coffee_rt.store.contract import RetentionPolicy, StoreKeeper
from coffee_rt.streams.contract import LogKeeper

Done = tuple[str, str]
"""Reason and message of an event."""


class Chores:
    """Owned by the tender. Remembers only when it did what last."""

    def __init__(
        self,
        *,
        log_keeper: LogKeeper,
        store_keeper: StoreKeeper,
        redis: CircuitBreaker,
        database: CircuitBreaker,
        clock: Clock,
        log: Log,
        care_seconds: float,
    ) -> None:
        self._log_keeper = log_keeper
        self._store_keeper = store_keeper
        self._redis = redis
        self._database = database
        self._clock = clock
        self._log = log
        self._care_seconds = care_seconds
        self._generation: int | None = None
        self._cared_at = -float("inf")
        self._compacted_at = -float("inf")
        self._is_released = False

    async def run(self, spec: PipelineSpec, generation: int) -> tuple[list[Done], dict[str, str]]:
        """What is due. What was done, and why what could not be done was not, by part (log, store)."""
        self._is_released = False
        now = self._clock.monotonic()
        done: list[Done] = []
        faults: dict[str, str] = {}
        is_due = self._generation != generation or now - self._cared_at >= self._care_seconds
        if is_due:
            try:
                done += await self._care_for_partitions(spec)
                self._generation, self._cared_at = generation, now
            except Retryable as error:
                metrics.FAILURES.labels("postgresql").inc()
                faults["store"] = str(error)
        if now - self._compacted_at >= spec.compact_every_seconds:
            try:
                await self._compact(spec.compact_margin_seconds)
                self._compacted_at = now
            except Retryable as error:
                metrics.FAILURES.labels("postgresql").inc()
                faults.setdefault("store", str(error))
        return done, faults

    async def release(self) -> None:
        """Nothing is wanted any longer: each process has its own retention again. Raises Retryable."""
        if not self._is_released:
            async with self._database:
                await self._store_keeper.set_retention_policy(None)
            self._is_released = True
            self._generation = None

    async def _care_for_partitions(self, spec: PipelineSpec) -> list[Done]:
        keeper = self._store_keeper
        now_ms = int(self._clock.now() * 1000)
        policy = RetentionPolicy(spec.retention_days, spec.is_expired_dropped)
        async with self._database:
            await keeper.set_retention_policy(policy)
            made = await keeper.ensure_partitions(now_ms, spec.days_ahead)
            steps = await keeper.apply_retention(now_ms, spec.retention_days)
        done = []
        if made:
            metrics.ACTIONS.labels("partitions").inc(len(made))
            self._log.info("partitions made", partitions=made)
            done.append(("PartitionsMade", ", ".join(made)))
        if steps:
            metrics.ACTIONS.labels("retention").inc(len(steps))
            self._log.info("retention applied", steps=steps)
            done.append(("PartitionsRetired", ", ".join(steps)))
        return done

    async def _compact(self, margin_seconds: float) -> None:
        """Ledger rows of entries that left the log at least the margin ago move into the shard's sum."""
        margin_ms = int(margin_seconds * 1000)
        moved = 0
        for shard in range(self._log_keeper.shards):
            async with self._redis:
                horizon = await self._log_keeper.horizon(shard)
            # Below the first entry, not below the lowest pending: a group made again replays them all.
            first = horizon.first_entry or horizon.last_entry
            async with self._database:
                moved += await self._store_keeper.compact_ledger(shard, (first.ms - margin_ms, 0))
        metrics.ACTIONS.labels("compaction").inc()
        if moved:
            self._log.info("ledger compacted", entries=moved)
