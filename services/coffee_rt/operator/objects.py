"""The tenders of MetricView, Redrive and Replay, together: what the wiring makes and the leader runs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from coffee_rt.operator import redriving, replaying
from coffee_rt.operator.contract import Cluster
from coffee_rt.operator.metric_views import MetricViews
from coffee_rt.operator.one_shots import OneShots
from coffee_rt.operator.pipelines import PipelineChanges
from coffee_rt.operator.redriving import Redriving
from coffee_rt.operator.replaying import Replaying
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import Clock
from coffee_rt.runtime.logs import Log
from coffee_rt.store.redrives import LetterRedriver
from coffee_rt.store.view_contract import ViewCatalogueStore, ViewRepairer


@dataclass(frozen=True, slots=True)
class Objects:
    """One tender a kind. Each works its objects off one after the other."""

    metric_views: MetricViews
    redrives: OneShots
    replays: OneShots

    async def run(self) -> None:
        """All three, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.metric_views.run(), name="metric views")
            group.create_task(self.redrives.run(), name="redrives")
            group.create_task(self.replays.run(), name="replays")


def make_objects(
    *,
    catalogue: ViewCatalogueStore,
    repairer: ViewRepairer,
    redriver: LetterRedriver,
    database: CircuitBreaker,
    cluster: Cluster,
    clock: Clock,
    log: Log,
) -> Objects:
    """The tenders on their contracts."""
    replay = Replaying(catalogue=catalogue, repairer=repairer, database=database, clock=clock)
    return Objects(
        MetricViews(
            changes=PipelineChanges(),
            catalogue=catalogue,
            repairer=repairer,
            database=database,
            cluster=cluster,
            clock=clock,
            log=log,
        ),
        OneShots(
            redriving.PLURAL,
            Redriving(redriver, database),
            changes=PipelineChanges(),
            cluster=cluster,
            clock=clock,
            log=log,
        ),
        OneShots(
            replaying.PLURAL,
            replay,
            changes=PipelineChanges(),
            cluster=cluster,
            clock=clock,
            log=log,
        ),
    )
