"""The worker's chores: partitions made ahead, retention, heartbeat, trim, ledger compaction, conservation,
the settings of the log's server.

Each chore may run in every worker at any time (the store and the log see to that), fails without harm and
is tried again at its next turn.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from coffee_rt.conservation.balance import Balance, Scales, read_settled
from coffee_rt.domain.wire import INTAKE_SHARD
from coffee_rt.errors import Retryable
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import Clock
from coffee_rt.runtime.logs import Log
from coffee_rt.store.contract import FEATURE_LEVEL, PartitionState, StoreKeeper
from coffee_rt.store.intake_contract import Intake
from coffee_rt.streams.contract import STORE_GROUP, LogKeeper
from coffee_rt.worker import metrics

HOUR_SECONDS = 3600.0
SWEEP_PAUSE_SECONDS = 3000.0
"""Between two sweeps of the keys, whoever does them: each reads the whole table."""
INTAKE_MARGIN_MS = 120_000
"""The audit looks for lost entries by the time in their ids, a minute to either side."""
FIRST_HOURLY_SECONDS_MAX = 60.0
"""The hourly chores begin within it: a worker that never lives for an hour must do them too. Spread, because
all workers of a roll-out start together."""
CONSUMER_IDLE_SECONDS_MIN = 3600.0
"""Consumers of workers gone for so long are forgotten, once nothing is pending for them."""


@dataclass(frozen=True, slots=True)
class CareLimits:
    group: str = STORE_GROUP
    instance: str = "worker"
    care_seconds: float = 10.0
    partition_days_ahead: int = 7
    retention_days: int = 400
    trim_keep_seconds: float = 600.0
    trim_memory_percent_max: int = 60
    compact_margin_seconds: float = 3600.0
    keys_keep_seconds: float = 25 * 3600.0


class Caretaker:
    """Runs the chores. One task each kind of turn; owned by the worker."""

    def __init__(
        self,
        *,
        log_keeper: LogKeeper,
        store_keeper: StoreKeeper,
        log_breaker: CircuitBreaker,
        store_breaker: CircuitBreaker,
        clock: Clock,
        log: Log,
        limits: CareLimits,
        intake: Intake | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._log_keeper = log_keeper
        self._store_keeper = store_keeper
        self._log_breaker = log_breaker
        self._store_breaker = store_breaker
        self._clock = clock
        self._log = log
        self._limits = limits
        self._intake = intake
        self._uniform = uniform
        self._scales = Scales(store_keeper, clock)
        self._is_timeline_told = True
        self.timeline = ""
        """PostgreSQL's, as the log was last told it from here."""
        self._unsafe_reasons: list[str] = []

    async def prepare_store(self) -> None:
        """What must hold before the first commit. Raises Retryable, or Rejected for another shard count."""
        async with self._store_breaker:
            await self._store_keeper.ensure_shards(self._log_keeper.shards)
        await self.ensure_partitions()
        await self.heartbeat()

    async def prepare_log(self) -> None:
        async with self._log_breaker:
            await self._log_keeper.ensure_group(self._limits.group)
        for shard in range(self._log_keeper.shards):
            # At 0 before the first one, so that the first one is a rise.
            metrics.GROUPS_SET_BACK.labels(str(shard))
        await self.follow_timeline()

    async def run_often(self) -> None:
        """Every `care_seconds`, for ever: heartbeat, timeline, backlog, conservation, the log's server, trim."""
        chores = {
            "heartbeat": self.heartbeat,
            "timeline": self.follow_timeline,
            "conservation": self.check_conservation,
            "intake": self.check_intake,
            "server": self.check_server,
            "trim": self.trim,
        }
        seconds = self._limits.care_seconds
        await self._repeat(self._uniform(0.8, 1.2) * seconds, seconds, chores)

    async def run_hourly(self) -> None:
        """Soon after the start, then every hour: partitions, retention, compaction, forgotten consumers."""
        chores = {
            "partitions": self.ensure_partitions,
            "retention": self.apply_retention,
            "compaction": self.compact,
            "keys": self.forget_keys,
            "groups": self.check_groups,
        }
        first_seconds = self._uniform(0.0, FIRST_HOURLY_SECONDS_MAX)
        await self._repeat(first_seconds, HOUR_SECONDS, chores)

    async def _repeat(
        self,
        first_seconds: float,
        seconds: float,
        chores: Mapping[str, Callable[[], Awaitable[None]]],
    ) -> None:
        await self._clock.sleep(first_seconds)
        while True:
            for name, chore in chores.items():
                try:
                    await chore()
                except Retryable as error:
                    metrics.CARE_FAILURES.labels(name).inc()
                    self._log.warning("chore failed", chore=name, error=str(error))
            # Not all workers in the same moment.
            await self._clock.sleep(self._uniform(0.8, 1.2) * seconds)

    async def heartbeat(self) -> None:
        async with self._store_breaker:
            await self._store_keeper.heartbeat("worker", self._limits.instance, FEATURE_LEVEL)

    async def follow_timeline(self) -> None:
        """Have a promoted or restored PostgreSQL told again what it may have lost."""
        self._is_timeline_told = False
        async with self._store_breaker:
            timeline = await self._store_keeper.timeline()
        async with self._log_breaker:
            shards = await self._log_keeper.follow_timeline(
                self._limits.group, timeline, self._limits.trim_keep_seconds
            )
        self._is_timeline_told = True
        self.timeline = timeline
        for shard in shards:
            metrics.GROUPS_SET_BACK.labels(str(shard)).inc()
        if shards:
            self._log.warning(
                "PostgreSQL was promoted or restored: the log is read again",
                timeline=timeline,
                shards=shards,
                seconds=self._limits.trim_keep_seconds,
            )

    async def ensure_partitions(self) -> None:
        now_ms = int(self._clock.now() * 1000)
        async with self._store_breaker:
            made = await self._store_keeper.ensure_partitions(
                now_ms, self._limits.partition_days_ahead
            )
            partitions = await self._store_keeper.partitions()
        metrics.PARTITIONS_END.set(covered_to_ms(partitions, now_ms) / 1000)
        if made:
            self._log.info("partitions made", partitions=made)

    async def apply_retention(self) -> None:
        now_ms = int(self._clock.now() * 1000)
        async with self._store_breaker:
            done = await self._store_keeper.apply_retention(now_ms, self._limits.retention_days)
        if done:
            self._log.info("retention applied", steps=done)

    async def trim(self) -> None:
        """Remove what every group acknowledged: after a while, or at once when Redis fills up."""
        async with self._log_breaker:
            used, maximum = await self._log_keeper.memory()
        is_full = maximum and used * 100 > maximum * self._limits.trim_memory_percent_max
        if not is_full and not self._is_timeline_told:
            # While PostgreSQL is away its last commits grow old in the log: a standby may yet need them.
            return
        keep_seconds = 0.0 if is_full else self._limits.trim_keep_seconds
        failure: Retryable | None = None
        for shard in range(self._log_keeper.shards):
            try:
                async with self._log_breaker:
                    await self._log_keeper.trim(shard, keep_seconds)
            except Retryable as error:
                # The server of one shard may be away; the others' must not fill up for it.
                failure = error
        if failure is not None:
            raise failure

    async def compact(self) -> None:
        """Ledger rows of entries that left the log at least the margin ago move into the shard's sum."""
        margin_ms = int(self._limits.compact_margin_seconds * 1000)
        oldest_ms = int(self._clock.now() * 1000)
        for shard in range(self._log_keeper.shards):
            async with self._log_breaker:
                horizon = await self._log_keeper.horizon(shard)
            # Below the first entry, not below the lowest pending: a group made again replays them all.
            first = horizon.first_entry or horizon.last_entry
            async with self._store_breaker:
                moved = await self._store_keeper.compact_ledger(shard, (first.ms - margin_ms, 0))
            metrics.LEDGER_COMPACTED.inc(moved)
            oldest_ms = min(oldest_ms, first.ms)
        # Not before the shards' of the same time: an order whose entry has no row looks like a lost row.
        below_ms = max(0, oldest_ms - margin_ms - INTAKE_MARGIN_MS)
        async with self._store_breaker:
            await self._store_keeper.compact_ledger(INTAKE_SHARD, (below_ms, 0))

    async def check_intake(self) -> None:
        """What waits in the database's intake, and whether all it ever took is accounted for."""
        if self._intake is None:
            return
        async with self._store_breaker:
            state = await self._intake.state()
        metrics.INTAKE_WAITING_RECORDS.set(state.records)
        metrics.INTAKE_OLDEST_SECONDS.set(state.oldest_seconds)
        metrics.INTAKE_IMBALANCE.set(state.imbalance)
        if state.imbalance:
            self._log.error("conservation of the intake is violated", records=state.imbalance)

    async def forget_keys(self) -> None:
        """Idempotency-Keys past their window."""
        if self._intake is None:
            return
        async with self._store_breaker:
            await self._intake.sweep(self._limits.keys_keep_seconds, SWEEP_PAUSE_SECONDS)

    async def check_groups(self) -> None:
        async with self._log_breaker:
            foreign = await self._log_keeper.foreign_groups()
            await self._log_keeper.remove_idle_consumers(
                self._limits.group, CONSUMER_IDLE_SECONDS_MIN
            )
        if foreign:
            self._log.warning("unregistered groups keep the log from being trimmed", groups=foreign)

    async def check_server(self) -> None:
        """Say when the log's server is no longer set up to keep what it answered, and when it is again."""
        async with self._log_breaker:
            reasons = await self._log_keeper.unsafe_reasons()
        if reasons == self._unsafe_reasons:
            return
        self._unsafe_reasons = reasons
        if reasons:
            self._log.error("the log's server may lose what it answered", reasons=reasons)
        else:
            self._log.info("the log's server keeps what it answers again")

    async def check_conservation(self) -> None:
        """Per shard: accepted minus accounted for, over the entries below the lowest unacknowledged."""
        balances = await self._balances()
        if any(balance.imbalance for balance in balances):
            # A promotion may have come between the last look at the timeline and this one, and a log that
            # failed over may be about to say what it lost. What is wrong stays wrong.
            await self.follow_timeline()
            balances = await self._balances()
        for balance in balances:
            shard = str(balance.shard)
            metrics.CONSERVATION.labels(shard).set(balance.imbalance)
            for state, records in balance.states.items():
                metrics.CONSERVATION_RECORDS.labels(shard, state).set(records)
            if balance.imbalance:
                self._log.error(
                    "conservation is violated: coffee-rt audit names the entries",
                    shard=balance.shard,
                    records=balance.imbalance,
                    below=str(balance.below),
                    sums=balance.states,
                )

    async def _balances(self) -> list[Balance]:
        async with self._log_breaker:
            _, settled = await read_settled(self._log_keeper, self._limits.group)
        async with self._store_breaker:
            return [await self._scales.balance(each) for each in settled]


def covered_to_ms(partitions: Sequence[PartitionState], now_ms: int) -> int:
    """Where the first gap begins (Unix ms) in the days of partitions from now on; `now_ms` when now is in one."""
    covered = now_ms
    for partition in sorted(partitions, key=lambda each: each.start_ms):
        if partition.start_ms <= covered:
            covered = max(covered, partition.end_ms)
    return covered
