"""The operator's tenders of views, redrives and replays over stores in memory, in a time of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from coffee_rt.domain.orders import Order
from coffee_rt.operator.objects import Objects, make_objects
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.logs import get_log
from coffee_rt.store.contract import DeadRecord
from coffee_rt.store.memory import MemoryKeeper, MemoryOrderWriter
from coffee_rt.store.memory_database import MemoryDatabase
from coffee_rt.store.memory_redriver import MemoryLetterRedriver
from coffee_rt.store.memory_views import MemoryViewCatalogue, MemoryViewRepairer
from tests.builders import NOW_MS
from tests.clocks import StoppedClock
from tests.memory_cluster import MemoryCluster
from tests.store_harness import an_entry


@dataclass
class OperatorBed:
    """What outlives an operator (cluster, database), and makers of operators."""

    database: MemoryDatabase = field(default_factory=MemoryDatabase)
    cluster: MemoryCluster = field(default_factory=MemoryCluster)
    clock: StoppedClock = field(default_factory=lambda: StoppedClock(NOW_MS / 1000))

    def __post_init__(self) -> None:
        self.catalogue = MemoryViewCatalogue(self.database, self.clock)
        self.repairer = MemoryViewRepairer(self.database, self.clock)
        self.writer = MemoryOrderWriter(self.database)
        self.keeper = MemoryKeeper(self.database)

    def operator(self) -> Objects:
        """One that remembers nothing."""
        return make_objects(
            catalogue=self.catalogue,
            repairer=self.repairer,
            redriver=MemoryLetterRedriver(self.database, self.clock.now),
            database=CircuitBreaker("test-postgresql", clock=self.clock, failures=1000),
            cluster=self.cluster,
            clock=self.clock,
            log=get_log("test"),
        )

    async def store(self, orders: Sequence[Order] = (), dead: Sequence[DeadRecord] = ()) -> None:
        await self.writer.commit(self.writer.prepare([an_entry(*orders, dead=dead)]))

    async def fill(self, internal: str, chunks_max: int | None = None) -> None:
        """What an aggregator does for a new view; only the first chunks where told so."""
        chunks = await self.repairer.plan_chunks(internal, None, None)
        for chunk in chunks[:chunks_max]:
            await self.repairer.rebuild_chunk(chunk)
            await self.repairer.mark_backfilled(internal, chunk.end)
        if chunks_max is None:
            await self.repairer.mark_backfilled(internal, None)
            await self.catalogue.make_current(internal)

    def status(self, plural: str, name: str) -> dict[str, Any]:
        return dict(self.cluster.status(plural, name))

    def condition(self, plural: str, name: str, type_: str = "Ready") -> tuple[str, str]:
        """(status, reason)."""
        for each in self.status(plural, name)["conditions"]:
            if each["type"] == type_:
                return each["status"], each["reason"]
        raise AssertionError(f"{name} has no condition {type_}")
