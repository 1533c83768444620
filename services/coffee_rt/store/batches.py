"""What a batch of entries will write, decided before the database is asked. Pure; both stores use it.

Inside a batch the first order of an id (and of an idempotency key) wins, as it would across batches. A
later one with the same tenant and body is a duplicate; with another it is a dead letter, because its
client was told 202 and must be able to learn what became of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from operator import attrgetter, itemgetter

from coffee_rt.domain.orders import Order
from coffee_rt.domain.wire import INTAKE_SHARD, encode_record
from coffee_rt.store.contract import BadData, DeadRecord, EntryOutcome, EntryWrite
from coffee_rt.store.intake_contract import KeyHolder
from coffee_rt.store.order_rows import Row, check_widths

ORDER_ID_CONFLICT = "order-id-conflict"
KEY_CONFLICT = "idempotency-key-conflict"

_get_id = attrgetter("order_id")
_get_key = attrgetter("key_hash")
_first = itemgetter(0)


@dataclass(slots=True)
class EntryPlan:
    """What becomes of one entry's records; the counts are what its ledger row says."""

    write: EntryWrite
    ledger_id: bytes
    stored: int
    dead_letters: list[DeadRecord]
    unread: int
    """Dead records without a letter of their own: a frame that can't be read has one for all."""
    duplicates: int = 0

    @property
    def dead(self) -> int:
        return self.unread + len(self.dead_letters)

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.stored, self.duplicates, self.dead

    def outcome(self) -> EntryOutcome:
        return EntryOutcome(self.write.batch_id, False, *self.counts)


@dataclass(slots=True)
class BatchPlan:
    """Rows sorted by order id, each with its entry's ledger id, and what is not a row."""

    entries: list[EntryPlan]
    rows: list[Row]
    aliases: list[tuple[bytes, int, bytes]] = field(default_factory=list)
    """(id answered, tenant, id stored)."""
    duplicate_ids: list[bytes] = field(default_factory=list)
    dead_ids: list[bytes] = field(default_factory=list)

    keyed: list[Row] = field(default_factory=list)
    """Those of the rows that came under an Idempotency-Key."""

    @property
    def orders(self) -> list[Order]:
        return [row[1] for row in self.rows]

    @property
    def intake_ids(self) -> list[bytes]:
        """Batch ids of the entries that wait in the intake: all of a batch do, or none."""
        if not self.entries or self.entries[0].write.shard != INTAKE_SHARD:
            return []
        return [each.ledger_id for each in self.entries]

    def claims(self) -> list[tuple[bytes, bytes, bytes, bytes]]:
        """The keys of the rows, each once: (key hash, order id, body hash, batch id)."""
        return [
            (row[1].key_hash, row[0], row[1].body_hash, row[2])
            for row in self.keyed
            if row[1].key_hash is not None and len(row[1].key_hash) == 16
        ]

    def by_ledger_id(self) -> dict[bytes, EntryPlan]:
        return {entry.ledger_id: entry for entry in self.entries}


def ledger_id_of(write: EntryWrite) -> bytes:
    """The ledger's key of an entry: its batch id, or one made of its place where a stranger gave none."""
    if len(write.batch_id) == 16 and any(write.batch_id):
        return write.batch_id
    place = f"{write.shard}/{write.entry[0]}-{write.entry[1]}/{write.batch_id.hex()}"
    return blake2b(place.encode(), digest_size=16).digest()


def plan_batch(
    entries: Sequence[EntryWrite], preferred: Collection[bytes] = frozenset()
) -> BatchPlan:
    """The plan of entries, each of them once even if it is given twice. `preferred`: ids of orders that go before
    others of their key. Raises BadData."""
    plans: dict[bytes, EntryPlan] = {}
    rows: list[Row] = []
    for write in entries:
        ledger_id = ledger_id_of(write)
        if ledger_id not in plans:
            orders, dead = write.orders, list(write.dead)
            unread = max(write.records - len(orders) - len(dead), 0)
            plans[ledger_id] = EntryPlan(write, ledger_id, len(orders), dead, unread)
            rows += [(order.order_id, order, ledger_id) for order in orders]
    all_orders = [row[1] for row in rows]
    check_widths(all_orders)
    plan = BatchPlan(list(plans.values()), rows)
    plan.dead_ids.extend(
        dead.order_id
        for write in entries
        for dead in write.dead
        if dead.order_id is not None and len(dead.order_id) == 16
    )
    keys = [key for key in map(_get_key, all_orders) if key is not None]
    if len(set(keys)) < len(keys) or len(set(map(_get_id, all_orders))) < len(all_orders):
        plan.rows.sort(key=lambda row: row[0] not in preferred)
        _set_repetitions_aside(plan, plans)
    plan.rows.sort(key=_first)
    if keys:
        plan.keyed = [row for row in plan.rows if row[1].key_hash is not None]
    return plan


def settle_key_losers(plan: BatchPlan, holders: Mapping[bytes, KeyHolder]) -> None:
    """Drop the rows whose key another order holds: a repetition becomes an alias of that order, another body
    a dead letter."""
    if not holders:
        return
    entries = plan.by_ledger_id()
    lost = [row for row in plan.keyed if row[1].key_hash in holders]
    for _, order, ledger_id in lost:
        holder = holders[order.key_hash or b""]
        # What lost to the loser in this batch stands for the holder too.
        plan.aliases = [
            (alias, tenant, holder.order_id if target == order.order_id else target)
            for alias, tenant, target in plan.aliases
        ]
        _settle_key_race(plan, entries[ledger_id], order, holder)
    gone = {row[0] for row in lost}
    plan.rows = [row for row in plan.rows if row[0] not in gone]
    plan.keyed = [row for row in plan.keyed if row[0] not in gone]


def _set_repetitions_aside(plan: BatchPlan, plans: dict[bytes, EntryPlan]) -> None:
    by_id: dict[bytes, Order] = {}
    by_key: dict[bytes, Order] = {}
    kept: list[Row] = []
    for row in plan.rows:
        order, entry = row[1], plans[row[2]]
        first = by_id.get(order.order_id)
        by_same_key = None if order.key_hash is None else by_key.get(order.key_hash)
        if first is not None:
            settle_repetition(plan, entry, order, first.tenant, first.body_hash)
        elif by_same_key is not None:
            _settle_key_race(plan, entry, order, by_same_key)
        else:
            kept.append(row)
            by_id[order.order_id] = order
            if order.key_hash is not None:
                by_key[order.key_hash] = order
    plan.rows = kept


def settle_repetition(
    plan: BatchPlan, entry: EntryPlan, order: Order, tenant: int, body_hash: bytes
) -> None:
    """Count an order whose id is taken by one of `tenant` with `body_hash`. The caller drops its row."""
    entry.stored -= 1
    if order.tenant == tenant and order.body_hash == body_hash:
        entry.duplicates += 1
        plan.duplicate_ids.append(order.order_id)
    else:
        detail = "another order is stored under this id"
        _bury(plan, entry, order, ORDER_ID_CONFLICT, detail)


def _settle_key_race(
    plan: BatchPlan, entry: EntryPlan, order: Order, winner: Order | KeyHolder
) -> None:
    entry.stored -= 1
    if order.body_hash == winner.body_hash:
        entry.duplicates += 1
        plan.duplicate_ids.append(order.order_id)
        plan.aliases.append((order.order_id, order.tenant, winner.order_id))
    else:
        detail = "another order was sent under the same Idempotency-Key"
        _bury(plan, entry, order, KEY_CONFLICT, detail)


def _bury(plan: BatchPlan, entry: EntryPlan, order: Order, code: str, detail: str) -> None:
    entry.dead_letters.append(
        DeadRecord(
            index=_index_of(entry.write, order),
            raw=encode_record(order),
            code=code,
            detail=detail,
            tenant=order.tenant,
            order_id=order.order_id,
        )
    )
    plan.dead_ids.append(order.order_id)


def _index_of(write: EntryWrite, order: Order) -> int:
    """Where a record was in its entry, counting those that were dead on arrival."""
    dead = {record.index for record in write.dead}
    places = (index for index in range(len(write.orders) + len(dead)) if index not in dead)
    for index, each in zip(places, write.orders, strict=False):
        if each is order:
            return index
    return 0


def without_orders(write: EntryWrite, bad: dict[int, BadData]) -> EntryWrite:
    """An entry whose orders at these positions became dead letters."""
    dead = [
        DeadRecord(
            index=_index_of(write, write.orders[position]),
            raw=encode_record(write.orders[position]),
            code="bad-data",
            detail=str(error),
            tenant=write.orders[position].tenant,
            order_id=write.orders[position].order_id,
        )
        for position, error in bad.items()
    ]
    orders = [order for position, order in enumerate(write.orders) if position not in bad]
    return replace(write, orders=orders, dead=(*write.dead, *dead))
