"""Stores and logs that tell the world what goes through them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coffee_rt.domain.wire import order_id_of, split_batch
from coffee_rt.store.intake_contract import IntakeWrite, Known
from coffee_rt.store.memory_database import MemoryDatabase
from coffee_rt.store.memory_intake import MemoryIntake
from coffee_rt.streams.memory_groups import MemoryKeeper

if TYPE_CHECKING:
    from tests.simulation.world import World


class TraceLog:
    """A process's log: lines of the trace. An error that says conservation is violated is remembered."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name

    def _line(self, level: str, event: str, fields: dict[str, Any]) -> None:
        details = " ".join(f"{name}={value}" for name, value in fields.items())
        self._world.note(f"{self._name} {level}: {event} {details}")

    def info(self, event: str, **fields: Any) -> None:
        self._line("says", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._line("warns", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._line("errs", event, fields)
        if event == "conservation is violated":
            self._world.imbalances.append(f"{self._world.loop.now:.3f} {self._name} {fields}")
        elif event == "conservation of the intake is violated":
            self._world.fail(f"{event}: {fields}")


class WatchedKeeper(MemoryKeeper):
    """Tells the world what a trim removes, and when a group is set back."""

    def __init__(self, world: World) -> None:
        super().__init__(world.log)
        self._world = world

    async def follow_timeline(self, group: str, timeline: str, keep_seconds: float) -> list[int]:
        set_back = await super().follow_timeline(group, timeline, keep_seconds)
        self._world.happened["group set back"] += len(set_back)
        return set_back

    async def trim(self, shard: int, keep_seconds: float) -> int:
        before = dict(self._log.shards[shard].entries)
        removed = await super().trim(shard, keep_seconds)
        if removed:
            left = self._log.shards[shard].entries
            gone = {each: fields for each, fields in before.items() if each not in left}
            self._world.on_trimmed(shard, gone)
        return removed


class WatchedIntake(MemoryIntake):
    """Remembers every order that was taken into the intake."""

    def __init__(self, world: World) -> None:
        super().__init__(world.database, world.clock.now)
        self._world = world
        self.taken: set[bytes] = set()

    async def append(self, write: IntakeWrite) -> list[Known | None]:
        answers = await super().append(write)
        ids = _ids_waiting(self._world.database, write.batch_id)
        self.taken |= ids
        self._world.happened["record taken by the intake"] += len(ids)
        self._world.happened["key known to the intake"] += sum(map(bool, answers))
        return answers

    def is_waiting(self, order_id: bytes) -> bool:
        """Whether it is in the intake at this moment."""
        database = self._world.database
        return any(order_id in _ids_waiting(database, batch_id) for batch_id in database.intake)

    def lacking(self, standby: MemoryDatabase) -> set[bytes]:
        """Orders that waited here, or came from here, which a standby knows nothing of: no log has them."""
        known = set(standby.orders) | {letter.order_id for letter in standby.dead_letters}
        for batch_id in standby.intake:
            known |= _ids_waiting(standby, batch_id)
        return self.taken - known


def _ids_waiting(database: MemoryDatabase, batch_id: bytes) -> set[bytes]:
    batch = database.intake.get(batch_id)
    if batch is None:
        return set()
    return {order_id_of(record) for record in split_batch(batch.version, batch.data)}
