"""Whether what a position names is stored: of the log's asked there, of the intake's in the database.

Many requests wait at once, and the database is asked rarely and little: one question for all of them.
"""

from __future__ import annotations

import asyncio

from coffee_rt.domain.wire import INTAKE_SHARD
from coffee_rt.runtime.clock import Clock
from coffee_rt.store.intake_contract import Intake
from coffee_rt.streams.contract import STORE_GROUP, LogKeeper, Position

GATHER_SECONDS = 0.05
"""Questions of so long are asked together."""


class Settling:
    """One of a process; shared by all requests that wait for `stored`."""

    def __init__(self, keeper: LogKeeper, intake: Intake | None, clock: Clock) -> None:
        self._keeper = keeper
        self._intake = intake
        self._clock = clock
        self._asked: set[bytes] = set()
        self._question: asyncio.Task[set[bytes]] | None = None

    async def is_settled(self, position: Position) -> bool:
        """Raises Retryable while whoever knows is away."""
        if position.shard != INTAKE_SHARD:
            return await self._keeper.is_settled(STORE_GROUP, position)
        if self._intake is None:
            return False
        if self._question is None:
            self._asked = set()
            self._question = asyncio.create_task(self._ask(self._intake))
        self._asked.add(position.batch_id)
        # Shielded: one who gives up must not end the question of all.
        return position.batch_id not in await asyncio.shield(self._question)

    async def _ask(self, intake: Intake) -> set[bytes]:
        await self._clock.sleep(GATHER_SECONDS)
        asked, self._question = self._asked, None
        return await intake.still_waiting(list(asked))
