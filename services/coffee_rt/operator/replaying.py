"""The work of a Replay object: views rebuilt from the orders, chunk by chunk, while orders flow.

Folds wait for the chunk under way, so after each it rests for as long as it took.
"""

from __future__ import annotations

from coffee_rt.errors import Rejected
from coffee_rt.operator import replay_plan as plan
from coffee_rt.operator.contract import CustomObject
from coffee_rt.operator.object_status import instant_text
from coffee_rt.operator.one_shots import End, Report
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import Clock
from coffee_rt.store.contract import BadData
from coffee_rt.store.view_contract import Chunk, ViewCatalogueStore, ViewRepairer

PLURAL = "replays"
PAUSE_SHARE = 1.0
"""Rest after a chunk as a multiple of the time it took."""


class Replaying:
    """Performs Replays (see one_shots.Perform)."""

    def __init__(
        self,
        *,
        catalogue: ViewCatalogueStore,
        repairer: ViewRepairer,
        database: CircuitBreaker,
        clock: Clock,
    ) -> None:
        self._catalogue = catalogue
        self._repairer = repairer
        self._database = database
        self._clock = clock

    async def __call__(self, found: CustomObject, report: Report) -> End:
        request = plan.read_request(found.spec)
        async with self._database:
            states = await self._catalogue.views()
        replays = plan.plan_views(request, states, found.status)
        chunks = [
            [] if replay.is_done else await self._plan_chunks(request, replay) for replay in replays
        ]
        first = (sum(replay.chunks_done for replay in replays), self._clock.now())
        left = sum(map(len, chunks))
        for index, replay in enumerate(replays):
            if replay.is_done:
                continue
            for chunk in chunks[index]:
                await self._tell(report, replays, left, first)
                changed = await self._rebuild(replays[index].view, chunk)
                replays[index] = replays[index].after(chunk, changed)
                left -= 1
            replays[index] = replays[index].finished()
        status = plan.status_of(replays, 0, first, self._clock.now())
        told = f"{status['chunksDone']} chunks rebuilt, {status['rowsChanged']} rows changed"
        return End(status, told)

    async def _tell(
        self, report: Report, replays: list[plan.ViewReplay], left: int, first: tuple[int, float]
    ) -> None:
        status = plan.status_of(replays, left, first, self._clock.now())
        await report(status, f"{status['chunksDone']} of {status['chunksTotal']} chunks")

    async def _plan_chunks(
        self, request: plan.ReplayRequest, replay: plan.ViewReplay
    ) -> list[Chunk]:
        async with self._database:
            internal = plan.internal_of(replay.view, await self._catalogue.views())
            start = plan.start_of(request, replay)
            return await self._repairer.plan_chunks(internal, start, request.end)

    async def _rebuild(self, view: str, chunk: Chunk) -> int:
        """Rebuild a chunk; of the view's successor where it was replaced meanwhile."""
        started_at = self._clock.monotonic()
        async with self._database:
            try:
                changed = await self._repairer.rebuild_chunk(chunk)
            except Rejected:
                internal = plan.internal_of(view, await self._catalogue.views())
                changed = await self._repairer.rebuild_chunk(
                    Chunk(internal, chunk.start, chunk.end)
                )
            except BadData as error:
                at = instant_text(chunk.start)
                raise Rejected(
                    "bad-data", f"{view} can't hold the chunk of {at}: {error}"
                ) from error
        await self._clock.sleep((self._clock.monotonic() - started_at) * PAUSE_SHARE)
        return changed
