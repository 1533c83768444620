"""What the tender sees of an installation in one look: the log, the database, the pods.

A part that can't be seen leaves its fault and no value; the others are seen all the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from coffee_rt.conservation.balance import Scales, Settled, read_settled
from coffee_rt.errors import Retryable
from coffee_rt.operator import metrics
from coffee_rt.operator.contract import Autoscaler, Cluster, Workload
from coffee_rt.operator.pipeline_spec import FanoutSpec, PipelineSpec, WorkersSpec
from coffee_rt.operator.sessions import SessionCounter, SessionCounts
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import Clock
from coffee_rt.store.contract import PartitionState, StoreKeeper
from coffee_rt.store.view_contract import ViewFolder
from coffee_rt.streams.contract import STORE_GROUP, Backlog, LogKeeper

Check = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class LogView:
    """The log's side of one look."""

    backlogs: Sequence[Backlog]
    settled: Sequence[Settled]

    @property
    def records(self) -> int:
        return sum(backlog.records for backlog in self.backlogs)

    @property
    def seconds(self) -> float:
        return max((backlog.oldest_seconds for backlog in self.backlogs), default=0.0)


@dataclass(frozen=True, slots=True)
class StoreView:
    """The database's side."""

    partitions: Sequence[PartitionState]
    detached: int
    waiting_seconds: float
    """Age of what the views do not show yet."""
    imbalance: int | None
    """None where the log could not be seen."""


@dataclass(frozen=True, slots=True)
class Pods:
    """The pods of one process and what scales them. A missing object is None without a fault."""

    workload: Workload | None = None
    autoscaler: Autoscaler | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """`faults`: why a part could not be seen, by its name (log, store, cluster)."""

    at: float
    """Monotonic."""
    now: float
    log: LogView | None = None
    store: StoreView | None = None
    workers: Pods | None = None
    fanout: Pods | None = None
    sessions: SessionCounts | None = None
    faults: Mapping[str, str] = field(default_factory=dict)


class Observer:
    """Looks; changes nothing. Owned by the tender."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        log_keeper: LogKeeper,
        store_keeper: StoreKeeper,
        folder: ViewFolder,
        counter: SessionCounter,
        redis: CircuitBreaker,
        database: CircuitBreaker,
        clock: Clock,
        check_log: Check,
        check_store: Check,
    ) -> None:
        """`check_log` and `check_store` are asked before the first look at either, until they raise nothing:
        a database may wait for its migration."""
        self._cluster = cluster
        self._log_keeper = log_keeper
        self._store_keeper = store_keeper
        self._scales = Scales(store_keeper, clock)
        self._folder = folder
        self._counter = counter
        self._redis = redis
        self._database = database
        self._clock = clock
        self._checks = {"log": check_log, "store": check_store}

    async def look(self, spec: PipelineSpec) -> Look:
        """Everything that can be seen now."""
        faults: dict[str, str] = {}
        look = Look(self._clock.monotonic(), self._clock.now(), faults=faults)
        try:
            look = replace(look, log=await self._see_log())
        except Retryable as error:
            metrics.FAILURES.labels("redis").inc()
            faults["log"] = str(error)
        try:
            look = replace(look, store=await self._see_store(look.log))
        except Retryable as error:
            metrics.FAILURES.labels("postgresql").inc()
            faults["store"] = str(error)
        try:
            workers, (fanout, sessions) = (
                await self._see_pods(spec.workers),
                await self._see_fanout(spec.fanout),
            )
            look = replace(look, workers=workers, fanout=fanout, sessions=sessions)
        except Retryable as error:
            metrics.FAILURES.labels("kubernetes").inc()
            faults["cluster"] = str(error)
        return look

    async def _check(self, part: str) -> None:
        if part in self._checks:
            await self._checks[part]()
            del self._checks[part]

    async def _see_log(self) -> LogView:
        keeper = self._log_keeper
        async with self._redis:
            await self._check("log")
            backlogs, settled = await read_settled(keeper, STORE_GROUP)
        return LogView(backlogs, settled)

    async def _see_store(self, log: LogView | None) -> StoreView:
        keeper = self._store_keeper
        async with self._database:
            await self._check("store")
            works = await self._folder.waiting_lanes()
            partitions = await keeper.partitions()
            detached = await keeper.detached_partitions()
            imbalance = None if log is None else await self._imbalance(log)
        waiting = max((work.waiting_seconds for work in works), default=0.0)
        return StoreView(partitions, len(detached), waiting, imbalance)

    async def _imbalance(self, log: LogView) -> int:
        """Of all shards; one that lacks records is not made good by one with too many."""
        balances = [await self._scales.balance(each) for each in log.settled]
        return max((balance.imbalance for balance in balances), key=abs, default=0)

    async def _see_pods(self, spec: WorkersSpec | FanoutSpec | None) -> Pods | None:
        if spec is None:
            return None
        workload = await self._cluster.workload(spec.deployment)
        if spec.autoscaler is None:
            return Pods(workload)
        return Pods(workload, await self._cluster.autoscaler(spec.autoscaler))

    async def _see_fanout(
        self, spec: FanoutSpec | None
    ) -> tuple[Pods | None, SessionCounts | None]:
        pods = await self._see_pods(spec)
        if pods is None or pods.workload is None:
            return pods, None
        running = await self._cluster.running_pods(pods.workload)
        return pods, await self._counter.count(running)
