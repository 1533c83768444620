"""An OrderProducer with two places: the log, and the database's intake for what never reached the log.

An append of which a byte may have reached the log is never sent to the intake: its outcome is unknown, and the
intake could not ask the log. Its client repeats it, with its key.
"""

from __future__ import annotations

from collections.abc import Sequence

from coffee_rt.errors import NotExecuted
from coffee_rt.order_api.intake_queue import IntakeQueue, position_of
from coffee_rt.store.intake_contract import Known
from coffee_rt.streams.contract import Append, Appended, Logged, OrderProducer, Outcome, Position


class IntakeProducer:
    """Shared by all requests, like the log's own producer, which the wiring still owns and closes."""

    def __init__(self, log: OrderProducer, queue: IntakeQueue) -> None:
        self._log = log
        self._queue = queue
        self.shards = log.shards
        self.choose_shard = log.choose_shard
        self.now_ms = log.now_ms

    @property
    def clock_offset_seconds(self) -> float:
        return self._log.clock_offset_seconds

    async def append(self, shard: int, append: Append) -> Appended:
        """See OrderProducer."""
        try:
            return await self._log.append(shard, append)
        except NotExecuted:
            return (await self._take_in([append]))[0]

    async def append_many(self, shard: int, appends: list[Append]) -> list[Appended]:
        """See OrderProducer."""
        try:
            return await self._log.append_many(shard, appends)
        except NotExecuted:
            return await self._take_in(appends)

    async def append_plain(
        self, shard: int, records: Sequence[bytes], trace: str = ""
    ) -> list[Logged]:
        """See OrderProducer."""
        try:
            return await self._log.append_plain(shard, records, trace)
        except NotExecuted:
            position, _ = await self._queue.append(records, (), trace)
            return [Logged(position)] * len(records)

    async def close(self) -> None:
        """See OrderProducer."""
        await self._log.close()

    async def _take_in(self, appends: Sequence[Append]) -> list[Appended]:
        keyed = [each for each in appends if each.key_hash is not None or each.is_client_id]
        plain = [each.record for each in appends if each.key_hash is None and not each.is_client_id]
        trace = next((each.trace for each in appends if each.trace), "")
        position, answers = await self._queue.append(plain, keyed, trace)
        known = {
            id(append): answer for append, answer in zip(keyed, answers, strict=True) if answer
        }
        return [_appended(each, known.get(id(each)), position) for each in appends]


def _appended(append: Append, known: Known | None, position: Position) -> Appended:
    if known is None:
        return Appended(Outcome.NEW, append.order_id, position)
    outcome = Outcome.DUPLICATE if known.is_same else Outcome.CONFLICT
    return Appended(outcome, known.order_id, position_of(known.batch_id))
