"""Dead letters sent again: the contract, and what becomes of each letter, decided without the database.

A letter is decoded by today's rules. Its order is stored in a transaction that also moves the record from
"dead" to "stored" (or "duplicate") in the sums and marks the letter, so a record is counted once, whatever
dies when and however many send it. What is still bad stays a dead letter, with the newest reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from coffee_rt.domain import wire
from coffee_rt.domain.ids import id_time_ms
from coffee_rt.domain.orders import Order, check_stored_order
from coffee_rt.errors import Rejected
from coffee_rt.store.batches import (
    KEY_CONFLICT,
    ORDER_ID_CONFLICT,
    BatchPlan,
    plan_batch,
    settle_key_losers,
)
from coffee_rt.store.contract import DeadLetter, EntryWrite
from coffee_rt.store.intake_contract import KeyHolder

LETTERS_MAX = 500
"""Letters of one transaction. More: longer locks, and more is done again after a crash."""
ID_AGE_DAYS_MAX = 400
"""An order whose id is older than that is retired, or soon: the workers' default retention."""
_AHEAD_MS = 2 * 86_400_000
_DAY_MS = 86_400_000


class Outcome(StrEnum):
    """What became of a letter."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    STILL_BAD = "still-bad"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class LetterSelection:
    """Which dead letters: all that match every field given. Times are Unix seconds, [start, end)."""

    ids: tuple[int, ...] = ()
    code: str | None = None
    tenant: int | None = None
    start: int | None = None
    end: int | None = None

    def includes(self, letter: DeadLetter) -> bool:
        """What the SQL of the selection says, for the store in memory."""
        second = letter.created_at_us / 1_000_000
        return (
            (not self.ids or letter.id in self.ids)
            and self.code in (None, letter.code)
            and self.tenant in (None, letter.tenant)
            and (self.start is None or second >= self.start)
            and (self.end is None or second < self.end)
        )


@dataclass(frozen=True, slots=True)
class Redriven:
    """A letter that was tried. `code` and `detail` say why it is still bad, or was skipped."""

    id: int
    outcome: Outcome
    code: str = ""
    detail: str = ""


class LetterRedriver(Protocol):
    """Sends dead letters again. Any number may be at it: a letter is taken by one transaction."""

    async def count(self, selection: LetterSelection, redrive: str) -> int:
        """Letters that `redrive` (a name of one sending) has still to try."""

    async def send(
        self,
        selection: LetterSelection,
        redrive: str,
        *,
        letters_max: int = LETTERS_MAX,
        after: int = 0,
        is_dry_run: bool = False,
    ) -> list[Redriven]:
        """Try the next letters above id `after`, oldest first; none left: nothing. Letters this redrive
        tried before are left out, so a repetition goes on. A dry run does it all and rolls it back."""

    async def results(self, redrive: str) -> dict[Outcome, int]:
        """What a redrive did so far, from the letters themselves."""


class LetterDesk(Protocol):
    """Looks after dead letters. `tenant` None: of any."""

    async def find(self, tenant: int | None, letter_id: int) -> DeadLetter:
        """A letter, sent or not. Raises Rejected (404)."""

    async def page(
        self, selection: LetterSelection, limit: int, before: int | None = None
    ) -> list[DeadLetter]:
        """Letters that wait, newest first, below id `before`."""

    async def amend(
        self,
        tenant: int | None,
        letter_id: int,
        make_order: Callable[[DeadLetter], Order],
        by: str,
    ) -> DeadLetter:
        """Keep the order that `make_order` makes of the letter, and who made it. Raises Rejected: 404, 409 where
        it was sent already, and what `make_order` raises."""


@dataclass(slots=True)
class RedrivePlan:
    """Letters taken in one transaction: entries to write, and those that end without the database."""

    entries: list[EntryWrite] = field(default_factory=list)
    places: dict[tuple[bytes, int], tuple[DeadLetter, Order]] = field(default_factory=dict)
    """(ledger id, position in its entry) -> letter and its order."""
    settled: list[Redriven] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LedgerMove:
    """How an entry's counts change: so many of its dead records are now stored, or duplicates."""

    batch_id: bytes
    shard: int
    stored: int
    duplicates: int


def plan_redrive(
    letters: Sequence[DeadLetter], named: Collection[int], now_ms: int, id_age_days_max: int
) -> RedrivePlan:
    """Decode letters; `named` are the ids chosen one by one."""
    plan = RedrivePlan()
    by_entry: dict[bytes, list[tuple[DeadLetter, Order]]] = {}
    for letter in letters:
        if letter.code == KEY_CONFLICT and letter.id not in named:
            # Its key already has an order. That both are meant, somebody has to say of this very letter.
            detail = "the other order of its Idempotency-Key is stored: name its id to store this one too"
            plan.settled.append(Redriven(letter.id, Outcome.SKIPPED, letter.code, detail))
            continue
        try:
            order = _decode(letter, now_ms, id_age_days_max)
        except Rejected as error:
            plan.settled.append(Redriven(letter.id, Outcome.STILL_BAD, error.code, str(error)))
        else:
            by_entry.setdefault(letter.batch_id, []).append((letter, order))
    for batch_id, members in by_entry.items():
        first = members[0][0]
        orders = [order for _, order in members]
        plan.entries.append(EntryWrite(first.shard, first.entry, batch_id, 0, len(orders), orders))
        plan.places |= {(batch_id, place): member for place, member in enumerate(members)}
    return plan


def _decode(letter: DeadLetter, now_ms: int, id_age_days_max: int) -> Order:
    """The letter's order, by the rules that a worker has for a record. Raises Rejected."""
    order = wire.decode_record(letter.record)
    check_stored_order(order)
    check_id_time(order.order_id, now_ms, id_age_days_max)
    return order


def check_id_time(order_id: bytes, now_ms: int, age_days_max: int = ID_AGE_DAYS_MAX) -> None:
    """Raises Rejected for an id whose day is retired, or soon, or lies ahead."""
    age_ms = now_ms - id_time_ms(order_id)
    if not -_AHEAD_MS <= age_ms <= age_days_max * _DAY_MS:
        raise Rejected("order-id-time", "is older than retention or in the future", "/order_id")


def key_claims(plan: RedrivePlan, batch: BatchPlan) -> list[tuple[bytes, bytes, bytes, bytes]]:
    """The keys that the letters' orders take, as those of any order: else a repetition would be another order. One
    that was named although its key has an order takes none."""
    taking = {
        order.order_id for letter, order in plan.places.values() if letter.code != KEY_CONFLICT
    }
    return [claim for claim in batch.claims() if claim[1] in taking]


def key_rivals(
    plan: RedrivePlan, batch: BatchPlan, holders: Mapping[bytes, KeyHolder]
) -> dict[bytes, KeyHolder]:
    """Those holders of keys that are other orders. Under the id that a letter's client was answered it is the letter
    itself, whatever id it is stored under now."""
    answered = {id(order): letter.order_id for letter, order in plan.places.values()}
    return {
        key: holders[key]
        for _, order, _ in batch.keyed
        if (key := order.key_hash) is not None
        and key in holders
        and holders[key].order_id != answered[id(order)]
    }


def plan_holders(plan: RedrivePlan, holders: Mapping[bytes, KeyHolder]) -> BatchPlan:
    """What the letters' orders write where these have their keys. A holder may be one of the letters itself: then it is
    stored, and whoever else of its key is sent with it stands for it."""
    held = {holder.order_id for holder in holders.values()}
    own = {
        order.order_id
        for letter, order in plan.places.values()
        if not held.isdisjoint((letter.order_id, order.order_id))
    }
    batch = plan_batch(plan.entries, own)
    settle_key_losers(batch, key_rivals(plan, batch, holders))
    return batch


def settle(plan: RedrivePlan, batch: BatchPlan, inserted: Collection[int]) -> list[Redriven]:
    """What became of each letter; `inserted` are the identities (`id`) of the orders that became rows."""
    buried = {
        (entry.ledger_id, record.index): record
        for entry in batch.entries
        for record in entry.dead_letters
    }
    done = list(plan.settled)
    for place, (letter, order) in plan.places.items():
        if id(order) in inserted:
            done.append(Redriven(letter.id, Outcome.STORED))
        elif (record := buried.get(place)) is not None:
            done.append(Redriven(letter.id, Outcome.STILL_BAD, record.code, record.detail))
        else:
            done.append(Redriven(letter.id, Outcome.DUPLICATE))
    return sorted(done, key=lambda each: each.id)


def answered_aliases(
    plan: RedrivePlan, batch: BatchPlan, done: Collection[Redriven]
) -> list[tuple[bytes, int, bytes]]:
    """(id, tenant, target): ids that were answered for letters whose amended order has another one. One that is
    another order's own stays that order's."""
    settled = {each.id for each in done if each.outcome in (Outcome.STORED, Outcome.DUPLICATE)}
    targets = {order_id: target for order_id, _, target in batch.aliases}
    return [
        (letter.order_id, letter.tenant, targets.get(order.order_id, order.order_id))
        for letter, order in plan.places.values()
        if letter.id in settled
        and letter.order_id not in (None, order.order_id)
        and letter.code != ORDER_ID_CONFLICT
    ]


def ledger_moves(letters: Sequence[DeadLetter], done: Sequence[Redriven]) -> list[LedgerMove]:
    """The change of the ledger's counts, by entry and in the order every worker takes them."""
    outcomes = {each.id: each.outcome for each in done}
    counts: dict[tuple[bytes, int], list[int]] = {}
    for letter in letters:
        outcome = outcomes.get(letter.id)
        if outcome in (Outcome.STORED, Outcome.DUPLICATE):
            count = counts.setdefault((letter.batch_id, letter.shard), [0, 0])
            count[outcome is Outcome.DUPLICATE] += 1
    return [LedgerMove(*key, *counts[key]) for key in sorted(counts)]
