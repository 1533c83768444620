"""A tender over a log, a store and a cluster in memory, in virtual time: what tests of OrderPipelines stand
on. And the leases of that cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from coffee_rt.errors import Retryable
from coffee_rt.operator.care import Chores
from coffee_rt.operator.contract import (
    Autoscaler,
    CustomObject,
    Lease,
    ObjectRef,
    PodAddress,
    Workload,
)
from coffee_rt.operator.observing import Observer
from coffee_rt.operator.pipelines import PipelineChanges
from coffee_rt.operator.sessions import SessionCounter, SessionCounts
from coffee_rt.operator.tending import Tender
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.logs import get_log
from coffee_rt.store.contract import PartitionState
from coffee_rt.store.memory import MemoryKeeper as MemoryStoreKeeper
from coffee_rt.store.memory_database import MemoryDatabase
from coffee_rt.store.memory_views import MemoryViewFolder
from coffee_rt.streams.contract import STORE_GROUP
from coffee_rt.streams.memory import MemoryLog
from coffee_rt.streams.memory_groups import MemoryKeeper
from tests.fanout_world import VirtualClock
from tests.memory_cluster import MemoryCluster
from tests.workers import entry_fields, now_order

PLURAL = "orderpipelines"


@dataclass
class ScaledCluster(MemoryCluster):
    """With autoscalers, Deployments and leases. `is_away`: the API server does not answer."""

    autoscalers: dict[str, Autoscaler] = field(default_factory=dict)
    workloads: dict[str, Workload] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    is_away: bool = False
    status_writes: int = 0
    _version: int = 0

    def _reach(self, call: str) -> None:
        super()._reach(call)
        if self.is_away:
            raise Retryable("Kubernetes: All connection attempts failed")

    def next_version(self) -> str:
        self._version += 1
        return str(self._version)

    def put_autoscaler(self, name: str, low: int, high: int) -> None:
        self.autoscalers[name] = Autoscaler(name, low, high, self.next_version())

    def put_pipeline(self, name: str, spec: dict[str, Any], created_at: str = "2026-01-01") -> None:
        """Make an OrderPipeline, or give it another spec."""
        known = self.objects.get((PLURAL, name))
        if known is None:
            ref = ObjectRef("OrderPipeline", name, f"uid-{self.next_version()}")
            self.objects[PLURAL, name] = CustomObject(ref, created_at, 1, spec, {})
        else:
            generation = known.generation + 1
            self.objects[PLURAL, name] = replace(known, spec=spec, generation=generation)

    async def write_status(self, plural: str, name: str, status: dict[str, Any]) -> None:
        self.status_writes += 1
        await super().write_status(plural, name, status)

    async def autoscaler(self, name: str) -> Autoscaler | None:
        self._reach("autoscaler")
        return self.autoscalers.get(name)

    async def floored_autoscalers(self) -> list[Autoscaler]:
        self._reach("autoscalers")
        return [one for one in self.autoscalers.values() if one.floor is not None]

    async def set_floor(self, autoscaler: Autoscaler, floor: int, base: int | None) -> None:
        self._reach("floor")
        if self.autoscalers[autoscaler.name].version != autoscaler.version:
            raise Retryable("Kubernetes: the object has been modified")
        self.autoscalers[autoscaler.name] = replace(
            autoscaler,
            replicas_min=floor,
            floor=None if base is None else floor,
            base=base,
            version=self.next_version(),
        )

    async def workload(self, name: str) -> Workload | None:
        self._reach("workload")
        return self.workloads.get(name)

    async def lease(self, name: str) -> Lease | None:
        self._reach("lease")
        return self.leases.get(name)

    async def create_lease(self, lease: Lease) -> bool:
        self._reach("lease")
        if lease.name in self.leases:
            return False
        self.leases[lease.name] = replace(lease, version=self.next_version())
        return True

    async def replace_lease(self, lease: Lease, *, is_taken: bool) -> bool:
        self._reach("lease")
        if self.leases[lease.name].version != lease.version:
            return False
        self.leases[lease.name] = replace(
            lease, version=self.next_version(), transitions=lease.transitions + is_taken
        )
        return True


class AwayStore(MemoryStoreKeeper):
    """A store in memory that can go away."""

    is_away = False

    async def partitions(self) -> list[PartitionState]:
        if self.is_away:
            raise Retryable("PostgreSQL: connection refused")
        return await super().partitions()


class KnownSessions(SessionCounter):
    """Pods whose sessions a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = SessionCounts(0, 0)

    async def count(self, pods: Sequence[PodAddress]) -> SessionCounts:
        return self.counts


async def nothing_to_check() -> None:
    return None


class TenderBed:
    """A tender with its surroundings; `turn` is one of its turns."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.cluster = ScaledCluster()
        self.log = MemoryLog(self.clock, 2)
        self.database = MemoryDatabase()
        self.store = AwayStore(self.database)
        self.sessions = KnownSessions()
        self.keeper = MemoryKeeper(self.log)
        self.tender = self.make_tender()
        for name in ("worker", "fanout"):
            self.cluster.workloads[name] = Workload(name, 1, {"component": name})

    def make_tender(self) -> Tender:
        """A new one, as after a restart."""
        log = get_log("operator")
        redis = CircuitBreaker("redis", failures=1000, clock=self.clock)
        database = CircuitBreaker("postgresql", failures=1000, clock=self.clock)
        return Tender(
            cluster=self.cluster,
            observer=Observer(
                cluster=self.cluster,
                log_keeper=self.keeper,
                store_keeper=self.store,
                folder=MemoryViewFolder(self.database, self.clock),
                counter=self.sessions,
                redis=redis,
                database=database,
                clock=self.clock,
                check_log=nothing_to_check,
                check_store=nothing_to_check,
            ),
            chores=Chores(
                log_keeper=self.keeper,
                store_keeper=self.store,
                redis=redis,
                database=database,
                clock=self.clock,
                log=log,
                care_seconds=300.0,
            ),
            changes=PipelineChanges(),
            clock=self.clock,
            log=log,
            tend_seconds=5.0,
            status_seconds=15.0,
        )

    async def turn(self, seconds: float = 5.0) -> dict[str, Any]:
        """Let time pass, take one turn; the status of the first pipeline then."""
        await self.clock.advance(seconds)
        await self.tender.turn()
        return dict(next((one.status for one in self.cluster.objects.values()), {}))

    async def append(self, entries: int) -> None:
        """A backlog: entries of one order, evenly over the shards."""
        await self.keeper.ensure_group(STORE_GROUP)
        for number in range(entries):
            shard = number % self.keeper.shards
            state = self.log.shards[shard]
            state.counter += 1
            self.log.insert_raw(shard, entry_fields([now_order()], state.counter))

    def pipeline(self, **spec: Any) -> None:
        """The OrderPipeline with this spec; both processes with autoscalers unless said otherwise."""
        both = {
            "workers": {"deployment": "worker", "autoscaler": "worker"},
            "fanout": {"deployment": "fanout", "autoscaler": "fanout"},
        }
        self.cluster.put_pipeline("coffee", {**both, **spec})

    def reasons(self) -> list[str]:
        """Of all events so far."""
        return [reason for _, reason, _ in self.cluster.events]


def condition(status: dict[str, Any], name: str) -> tuple[str, str]:
    """Status and reason of one of its conditions."""
    found = next(one for one in status["conditions"] if one["type"] == name)
    return found["status"], found["reason"]
