"""The intake in memory: see intake_contract. Keys and batches live in the database's tables; commits of
MemoryOrderWriter take batches out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from coffee_rt.domain.ids import id_time_ms
from coffee_rt.domain.wire import (
    INTAKE_SHARD,
    WIRE_VERSIONS_READABLE,
    decode_record,
    join_records,
    order_id_of,
    split_batch,
)
from coffee_rt.store.batches import BatchPlan
from coffee_rt.store.intake_contract import (
    IntakeState,
    IntakeWrite,
    KeyHolder,
    Known,
    WaitingBatch,
)
from coffee_rt.store.intake_plan import id_claim, names_of, plan_append
from coffee_rt.store.memory_database import MemoryDatabase


class MemoryIntake:
    """Intake on a MemoryDatabase. `now`: Unix seconds."""

    def __init__(self, database: MemoryDatabase, now: Callable[[], float]) -> None:
        self._database = database
        self._now = now

    async def state(self) -> IntakeState:
        """See Intake."""
        database = self._database
        waiting = database.intake.values()
        rows = [row for row in database.ledger.values() if row.shard == INTAKE_SHARD]
        sums = database.sums.get(INTAKE_SHARD, {})
        return IntakeState(
            batches=len(waiting),
            records=sum(batch.records for batch in waiting),
            size_bytes=sum(len(batch.data) for batch in waiting),
            oldest_seconds=max((self._waited(batch.batch_id) for batch in waiting), default=0.0),
            accepted=database.intake_accepted,
            accounted=sum(row.stored + row.duplicates + row.dead for row in rows)
            + sum(sums.get(name, 0) for name in ("stored", "duplicates", "dead")),
            keys_since=database.keys_since,
        )

    async def append(self, write: IntakeWrite) -> list[Known | None]:
        """See Intake."""
        database = self._database
        database.reach("intake")
        plan = plan_append(write, self._held(write))
        database.order_keys.update(plan.claims)
        if plan.records:
            database.intake_accepted += len(plan.records)
            database.intake[write.batch_id] = WaitingBatch(
                write.batch_id,
                write.version,
                len(plan.records),
                join_records(plan.records),
                write.trace,
                0.0,
            )
        database.reach("intake appended")
        return plan.answers

    def _held(self, write: IntakeWrite) -> dict[bytes, KeyHolder]:
        database = self._database
        held = {
            name: database.order_keys[name]
            for name in names_of(write)
            if name in database.order_keys
        }
        for each in write.keyed:
            stored = database.orders.get(each.order_id) if each.is_client_id else None
            if stored is not None:
                claim = id_claim(stored.order.tenant, stored.order.body_hash)
                holder = KeyHolder(each.order_id, claim, stored.batch_id)
                held.setdefault(each.order_id, holder)
        return held

    async def waiting(self, batches_max: int, bytes_max: int) -> list[WaitingBatch]:
        """See Intake."""
        found: list[WaitingBatch] = []
        size = 0
        for batch_id, batch in sorted(self._database.intake.items()):
            if batch.version not in WIRE_VERSIONS_READABLE:
                continue
            if len(found) >= batches_max or size >= bytes_max:
                break
            size += len(batch.data)
            found.append(
                WaitingBatch(
                    batch_id,
                    batch.version,
                    batch.records,
                    batch.data,
                    batch.trace,
                    self._waited(batch_id),
                )
            )
        return found

    async def find(self, tenant: int, order_id: bytes) -> tuple[bytes, bytes] | None:
        """See Intake."""
        owner, target = self._database.aliases.get(order_id, (tenant, order_id))
        wanted = {order_id, target} if owner == tenant else {order_id}
        for batch in self._database.intake.values():
            if batch.version not in WIRE_VERSIONS_READABLE:
                if any(each in batch.data for each in wanted):
                    return batch.batch_id, b""
                continue
            for record in split_batch(batch.version, batch.data):
                if order_id_of(record) in wanted and decode_record(record).tenant == tenant:
                    return batch.batch_id, record
        return None

    async def still_waiting(self, batch_ids: Sequence[bytes]) -> set[bytes]:
        """See Intake."""
        return set(batch_ids) & set(self._database.intake)

    async def note_keys(self, is_kept: bool) -> None:
        """See Intake."""
        if not is_kept:
            self._database.keys_since = None
        elif self._database.keys_since is None:
            self._database.keys_since = self._now()

    async def sweep(self, keep_seconds: float, pause_seconds: float = 0.0) -> int:
        """See Intake."""
        if self._database.keys_swept_at > self._now() - pause_seconds:
            return 0
        self._database.keys_swept_at = self._now()
        before_ms = (self._now() - keep_seconds) * 1000
        keys = self._database.order_keys
        gone = [name for name, held in keys.items() if id_time_ms(held.batch_id) < before_ms]
        for name in gone:
            del keys[name]
        return len(gone)

    def _waited(self, batch_id: bytes) -> float:
        return max(0.0, self._now() - id_time_ms(batch_id) / 1000)


def key_losers(plan: BatchPlan, keys: Mapping[bytes, KeyHolder]) -> dict[bytes, KeyHolder]:
    """Who holds those of a batch's keys that another order has."""
    return {
        key_hash: keys[key_hash]
        for key_hash, order_id, *_ in plan.claims()
        if key_hash in keys and keys[key_hash].order_id != order_id
    }
