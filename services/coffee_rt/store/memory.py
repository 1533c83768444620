"""The write side of the store in memory: the same decisions as PostgreSQL's, for simulations and tests.

A commit changes the database without awaiting in between, so it is whole or not at all. Faults injected at
"commit" leave nothing, at "committed" leave everything: the two halves of an unknown outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coffee_rt.domain.ids import id_time_ms
from coffee_rt.domain.orders import Order, check_stored_order
from coffee_rt.domain.views import compute_deltas, lane_of
from coffee_rt.errors import Bug, Rejected
from coffee_rt.store.batches import (
    BatchPlan,
    plan_batch,
    settle_key_losers,
    settle_repetition,
    without_orders,
)
from coffee_rt.store.contract import (
    KEEP_DAYS_MIN,
    RECENT_ROWS_MAX,
    BadData,
    Committed,
    DeadLetter,
    EntryKey,
    EntryOutcome,
    EntryWrite,
    PartitionState,
    PreparedBatch,
    RetentionPolicy,
    StoredOrder,
    ViewsTooNew,
)
from coffee_rt.store.intake_contract import KeyHolder
from coffee_rt.store.keeper import check_shards
from coffee_rt.store.memory_database import GapRow, LedgerRow, MemoryDatabase
from coffee_rt.store.memory_intake import key_losers
from coffee_rt.store.memory_numbers import missing_count, shared_count
from coffee_rt.store.partitions import DAY_MS, day_of, partition_of, plan_days

_COUNTS = ("entries", "records", "stored", "duplicates", "dead")


@dataclass(slots=True)
class _Prepared:
    entries: Sequence[EntryWrite]


class MemoryOrderWriter:
    """OrderWriter on a MemoryDatabase."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    async def refresh_catalogue(self) -> None:
        """Nothing to load: the catalogue is here."""

    def prepare(self, entries: Sequence[EntryWrite]) -> PreparedBatch:
        """See OrderWriter. Raises BadData."""
        plan_batch(entries)
        return _Prepared(entries)

    async def commit(self, batch: PreparedBatch, *, is_claimed: bool = False) -> Committed:
        """See OrderWriter."""
        return self.finish(batch, self._database.begin())

    def finish(self, batch: PreparedBatch, xid: int) -> Committed:
        """The end of a transaction that began (see MemoryDatabase.begin) perhaps a while ago."""
        try:
            if not isinstance(batch, _Prepared):
                raise Bug("the batch was prepared by another store")
            self._database.reach("commit")
            committed = self._apply(batch.entries, xid)
            self._database.reach("committed")
            return committed
        finally:
            self._database.end(xid)

    async def store_single(self, entry: EntryWrite) -> Committed:
        """See OrderWriter."""
        return await self.commit(self.prepare_single(entry))

    def prepare_single(self, entry: EntryWrite) -> PreparedBatch:
        """The entry with its bad data as dead letters."""
        bad: dict[int, BadData] = {}
        for position, order in enumerate(entry.orders):
            try:
                self._check_order(order)
            except BadData as error:
                bad[position] = error
        return self.prepare([without_orders(entry, bad)])

    def _check_order(self, order: Order) -> None:
        """What PostgreSQL's types, checks and partitions refuse."""
        try:
            check_stored_order(order)
        except Rejected as error:
            raise BadData(str(error)) from error
        if id_time_ms(order.order_id) < self._database.retired_to_ms:
            raise BadData("the orders of its day have been retired")

    def _unseen(self, plan: BatchPlan) -> list[EntryWrite]:
        """The entries that the ledger does not have, and that nobody else took from the intake."""
        ledger = self._database.ledger
        missing = set(plan.intake_ids) - set(self._database.intake)
        return [
            each.write
            for each in plan.entries
            if each.ledger_id not in ledger and each.ledger_id not in missing
        ]

    def _apply(self, entries: Sequence[EntryWrite], xid: int) -> Committed:
        database = self._database
        if database.catalogue.views_too_new:
            raise ViewsTooNew("this release can't maintain a view")
        given = plan_batch(entries)
        plan = plan_batch(self._unseen(given))
        settle_key_losers(plan, key_losers(plan, database.order_keys))
        for order in plan.orders:
            self._check_order(order)
        # From here on nothing fails: it is one transaction.
        known = [each.ledger_id for each in given.entries if each.ledger_id in database.ledger]
        for ledger_id in known:
            database.ledger[ledger_id].redeliveries += 1
        for batch_id in given.intake_ids:
            database.intake.pop(batch_id, None)
        for key_hash, *holder in plan.claims():
            database.order_keys.setdefault(key_hash, KeyHolder(*holder))
        inserted = self._insert(plan)
        self._record(plan)
        touched = self._append_deltas(xid, inserted)
        outcomes = {id(each.write): each.outcome() for each in plan.entries}
        seen = [EntryOutcome(write.batch_id, seen_before=True) for write in entries]
        return Committed(
            xid=xid,
            outcomes=[
                outcomes.get(id(write), missing)
                for write, missing in zip(entries, seen, strict=True)
            ],
            touched_lanes=database.catalogue.lanes if known or plan.duplicate_ids else touched,
            dead_order_ids=plan.dead_ids,
            duplicate_order_ids=plan.duplicate_ids,
            timeline=database.epoch_of("").lstrip("."),
        )

    def _insert(self, plan: BatchPlan) -> list[Order]:
        inserted = []
        entries = plan.by_ledger_id()
        for order_id, order, ledger_id in plan.rows:
            known = self._database.orders.get(order_id)
            if known is not None:
                taken = known.order
                settle_repetition(plan, entries[ledger_id], order, taken.tenant, taken.body_hash)
                continue
            day = day_of(id_time_ms(order_id))
            self._database.partitions.setdefault(day, partition_of(day))
            self._database.orders[order_id] = StoredOrder(order, ledger_id)
            inserted.append(order)
        return inserted

    def _record(self, plan: BatchPlan) -> None:
        database = self._database
        for order_id, tenant, target in plan.aliases:
            database.aliases.setdefault(order_id, (tenant, target))
        for each in plan.entries:
            write = each.write
            database.ledger[each.ledger_id] = LedgerRow(
                write.shard, write.entry, write.counter, write.records, *each.counts
            )
            if write.gap is not None:
                gap = GapRow(write.shard, write.entry, *write.gap)
                compacted = database.numbers.get(write.shard, [])
                gap.found = shared_count([write.gap], compacted)
                database.gaps.setdefault(each.ledger_id, gap)
            for record in each.dead_letters:
                database.dead_letters.append(
                    DeadLetter(
                        id=len(database.dead_letters) + 1,
                        tenant=record.tenant,
                        shard=write.shard,
                        entry=write.entry,
                        batch_id=each.ledger_id,
                        index=record.index,
                        order_id=record.order_id,
                        code=record.code,
                        detail=record.detail,
                        raw=record.raw,
                        created_at_us=write.entry[0] * 1000,
                    )
                )

    def _append_deltas(self, xid: int, orders: list[Order]) -> dict[str, list[int]]:
        touched: dict[str, list[int]] = {}
        for view in self._database.catalogue.views:
            lanes = set()
            for group, delta in compute_deltas(view.definition, orders).items():
                lane = lane_of(group, view.definition.lanes)
                self._database.append_deltas(view.internal, xid, lane, [delta])
                lanes.add(lane)
            if lanes and view.is_current:
                touched[view.definition.name] = sorted(lanes)
        return touched


class MemoryOrderReader:
    """OrderReader on a MemoryDatabase."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    async def find_order(self, tenant: int, order_id: bytes) -> StoredOrder | None:
        """See OrderReader."""
        found = self._of_tenant(tenant, order_id)
        if found is None and order_id in self._database.aliases:
            owner, target = self._database.aliases[order_id]
            found = self._of_tenant(tenant, target) if owner == tenant else None
        return found

    def _of_tenant(self, tenant: int, order_id: bytes) -> StoredOrder | None:
        found = self._database.orders.get(order_id)
        return found if found is not None and found.order.tenant == tenant else None

    async def find_dead_letter(self, tenant: int, order_id: bytes) -> DeadLetter | None:
        """See OrderReader."""
        letters = await self.dead_letters(tenant, len(self._database.dead_letters), None)
        owner, target = self._database.aliases.get(order_id, (tenant, order_id))
        wanted = {order_id, target} if owner == tenant else {order_id}
        return next((letter for letter in letters if letter.order_id in wanted), None)

    async def recent_orders(
        self, tenant: int | None, limit: int, before: bytes | None = None, store: str | None = None
    ) -> list[StoredOrder]:
        """See OrderReader."""
        newest = [
            self._database.orders[order_id]
            for order_id in sorted(self._database.orders, reverse=True)
            if before is None or order_id < before
        ]
        mine = [each for each in newest if tenant is None or each.order.tenant == tenant]
        searched = mine[:RECENT_ROWS_MAX]
        return [each for each in searched if store is None or each.order.store == store][:limit]

    async def dead_letters(
        self, tenant: int | None, limit: int, before: int | None
    ) -> list[DeadLetter]:
        """See OrderReader."""
        found = [
            letter
            for letter in reversed(self._database.dead_letters)
            if letter.redriven_at_us is None
            and (before is None or letter.id < before)
            and (tenant is None or letter.tenant == tenant)
        ]
        return found[:limit]

    async def is_entry_stored(self, shard: int, batch_id: bytes) -> bool:
        """See OrderReader."""
        through_ms = self._database.sums.get(shard, {}).get("through_ms", 0)
        return batch_id in self._database.ledger or through_ms > id_time_ms(batch_id) + 60_000


class MemoryKeeper:
    """StoreKeeper on a MemoryDatabase."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    async def ensure_partitions(self, now_ms: int, days_ahead: int) -> list[str]:
        """See StoreKeeper."""
        made = []
        for day in plan_days(now_ms, days_ahead):
            if day not in self._database.partitions and day >= self._database.retired_to_ms:
                self._database.partitions[day] = partition_of(day)
                made.append(partition_of(day).name)
        return made

    async def partitions(self) -> list[PartitionState]:
        """See StoreKeeper."""
        return [state for _, state in sorted(self._database.partitions.items())]

    async def apply_retention(self, now_ms: int, keep_days: int) -> list[str]:
        """See StoreKeeper."""
        if keep_days < KEEP_DAYS_MIN:
            raise Rejected("keep-days", f"must be at least {KEEP_DAYS_MIN}", "/keep_days")
        database = self._database
        policy = database.retention_policy or RetentionPolicy(keep_days, is_dropped=True)
        done = []
        if policy.is_dropped:
            done = [f"dropped {state.name}" for state in database.detached.values()]
            database.detached.clear()
        before_ms = day_of(now_ms) - policy.keep_days * DAY_MS
        for day, state in sorted(database.partitions.items()):
            if state.end_ms <= before_ms:
                database.retired_to_ms = max(database.retired_to_ms, state.end_ms)
                database.detached[day] = database.partitions.pop(day)
                done.append(f"detached {state.name}")
        for order_id in [each for each in database.orders if self._is_retired(each)]:
            del database.orders[order_id]
        return done

    async def detached_partitions(self) -> list[PartitionState]:
        """See StoreKeeper."""
        return [state for _, state in sorted(self._database.detached.items())]

    async def set_retention_policy(self, policy: RetentionPolicy | None) -> None:
        """See StoreKeeper."""
        if policy is not None and policy.keep_days < KEEP_DAYS_MIN:
            raise Rejected("keep-days", f"must be at least {KEEP_DAYS_MIN}", "/keep_days")
        self._database.retention_policy = policy

    def _is_retired(self, order_id: bytes) -> bool:
        return id_time_ms(order_id) < self._database.retired_to_ms

    async def compact_ledger(self, shard: int, below: EntryKey) -> int:
        """See StoreKeeper."""
        database = self._database
        moved = {
            key: row
            for key, row in database.ledger.items()
            if row.shard == shard and row.entry < below
        }
        if not moved:
            return 0
        sums = database.sums.setdefault(
            shard, dict.fromkeys((*_COUNTS, "through_ms", "through_counter"), 0)
        )
        for key, gap in database.gaps.items():
            if gap.shard == shard:
                gap.found += _records_inside(gap, key, moved)
        for key, row in moved.items():
            _add(sums, row)
            database.numbers.setdefault(shard, []).append((row.counter - row.records, row.counter))
            sums["through_ms"] = max(sums["through_ms"], row.entry[0])
            if row.stored:
                sums["through_counter"] = max(sums["through_counter"], row.counter)
            del database.ledger[key]
        return len(moved)

    async def ledger_sums(self, shard: int, below: EntryKey | None) -> dict[str, int]:
        """See StoreKeeper."""
        database = self._database
        compacted = database.sums.get(shard, {})
        sums = {name: compacted.get(name, 0) for name in _COUNTS}
        for row in database.ledger.values():
            if row.shard == shard and (below is None or row.entry < below):
                _add(sums, row)
        sums |= {"gap_records": 0, "lost": 0}
        for key, gap in database.gaps.items():
            if gap.shard == shard and (below is None or gap.entry < below):
                size = gap.counter_to - gap.counter_from
                rows = {k: row for k, row in database.ledger.items() if row.shard == shard}
                sums["gap_records"] += size
                sums["lost"] += size - gap.found - _records_inside(gap, key, rows)
        return sums

    async def uncounted_records(self, shard: int, below: EntryKey, counter: int) -> int:
        """See StoreKeeper."""
        database = self._database
        compacted = database.numbers.get(shard, [])
        rows = [r for r in database.ledger.values() if r.shard == shard and r.entry < below]
        gaps = [g for g in database.gaps.values() if g.shard == shard and g.entry < below]
        known = [*compacted, *((gap.counter_from, gap.counter_to) for gap in gaps)]
        known += [(row.counter - row.records, row.counter) for row in rows]
        through = database.sums.get(shard, {}).get("through_counter", 0)
        highest = max([through, *(row.counter for row in rows if row.stored)])
        return missing_count(max(counter, 0), known) or min(0, counter - highest)

    async def heartbeat(self, process: str, instance: str, feature_level: int) -> None:
        """See StoreKeeper."""
        self._database.heartbeats[process, instance] = feature_level

    async def timeline(self) -> str:
        """See StoreKeeper."""
        return self._database.timeline

    async def ensure_shards(self, shards: int) -> None:
        """See StoreKeeper."""
        if self._database.shards is None:
            self._database.shards = shards
        check_shards(shards, self._database.shards)


def _records_inside(gap: GapRow, own: bytes, rows: dict[bytes, LedgerRow]) -> int:
    return sum(
        row.records
        for key, row in rows.items()
        if key != own and gap.counter_from < row.counter <= gap.counter_to
    )


def _add(sums: dict[str, int], row: LedgerRow) -> None:
    sums["entries"] += 1
    sums["records"] += row.records
    sums["stored"] += row.stored
    sums["duplicates"] += row.duplicates
    sums["dead"] += row.dead
