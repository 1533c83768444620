"""LetterRedriver on a MemoryDatabase: the same decisions as PostgreSQL's, for simulations and tests.

A step changes the database without awaiting in between: it is whole or not at all. Faults are injected at
"redrive" (nothing happened) and "redriven" (all of it did).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from coffee_rt.domain.ids import id_time_ms
from coffee_rt.domain.orders import Order
from coffee_rt.domain.views import compute_deltas, lane_of
from coffee_rt.store.batches import (
    BatchPlan,
    plan_batch,
    settle_repetition,
)
from coffee_rt.store.contract import BadData, DeadLetter, StoredOrder
from coffee_rt.store.intake_contract import KeyHolder
from coffee_rt.store.memory_database import MemoryDatabase
from coffee_rt.store.redrives import (
    ID_AGE_DAYS_MAX,
    LETTERS_MAX,
    LedgerMove,
    LetterSelection,
    Outcome,
    Redriven,
    RedrivePlan,
    answered_aliases,
    key_claims,
    ledger_moves,
    plan_holders,
    plan_redrive,
    settle,
)

_RETIRED = "the orders of its day have been retired"


@dataclass(frozen=True, slots=True)
class _Sending:
    """What one call of `send` was asked for, and when."""

    redrive: str
    named: frozenset[int]
    now_ms: int
    is_dry_run: bool


class MemoryLetterRedriver:
    """See LetterRedriver."""

    def __init__(
        self,
        database: MemoryDatabase,
        now: Callable[[], float],
        *,
        id_age_days_max: int = ID_AGE_DAYS_MAX,
    ) -> None:
        self._database = database
        self._now = now
        self._id_age_days_max = id_age_days_max

    async def count(self, selection: LetterSelection, redrive: str) -> int:
        """See LetterRedriver."""
        return len(self._select(selection, redrive, 0))

    async def results(self, redrive: str) -> dict[Outcome, int]:
        """See LetterRedriver."""
        mine = [
            letter.outcome for letter in self._database.dead_letters if letter.redrive == redrive
        ]
        return {outcome: mine.count(outcome.value) for outcome in Outcome}

    async def send(
        self,
        selection: LetterSelection,
        redrive: str,
        *,
        letters_max: int = LETTERS_MAX,
        after: int = 0,
        is_dry_run: bool = False,
    ) -> list[Redriven]:
        """See LetterRedriver."""
        self._database.reach("redrive")
        letters = self._select(selection, redrive, after)[: min(letters_max, LETTERS_MAX)]
        sending = _Sending(redrive, frozenset(selection.ids), int(self._now() * 1000), is_dry_run)
        done = self._send(sending, letters) if letters else []
        self._database.reach("redriven")
        return done

    def _send(self, sending: _Sending, letters: Sequence[DeadLetter]) -> list[Redriven]:
        """Store letters; where one is bad data, in halves, until it is alone."""
        plan = plan_redrive(letters, sending.named, sending.now_ms, self._id_age_days_max)
        try:
            for _, order in plan.places.values():
                self._check_order(order)
        except BadData as error:
            if len(letters) > 1:
                middle = len(letters) // 2
                first = self._send(sending, letters[:middle])
                return [*first, *self._send(sending, letters[middle:])]
            done = [Redriven(letters[0].id, Outcome.STILL_BAD, "bad-data", str(error))]
        else:
            done = self._fill(sending, letters, plan)
        if not sending.is_dry_run:
            self._mark(sending.redrive, done, sending.now_ms)
        return done

    def _check_order(self, order: Order) -> None:
        """What PostgreSQL refuses though a letter's decoding does not. Raises BadData."""
        if id_time_ms(order.order_id) < self._database.retired_to_ms:
            raise BadData(_RETIRED)

    def _fill(
        self, sending: _Sending, letters: Sequence[DeadLetter], plan: RedrivePlan
    ) -> list[Redriven]:
        """Orders, keys, deltas and sums of letters."""
        held = self._database.order_keys
        claims = key_claims(plan, plan_batch(plan.entries))
        holders = {
            key: held[key]
            for key, order_id, *_ in claims
            if key in held and held[key].order_id != order_id
        }
        batch = plan_holders(plan, holders)
        inserted = self._insert(batch, sending.is_dry_run)
        done = settle(plan, batch, {id(order) for order in inserted})
        if not sending.is_dry_run:
            for key, *holder in claims:
                held.setdefault(key, KeyHolder(*holder))
            aliases = [*batch.aliases, *answered_aliases(plan, batch, done)]
            self._count(inserted, aliases, ledger_moves(letters, done))
        return done

    def _select(self, selection: LetterSelection, redrive: str, after: int) -> list[DeadLetter]:
        return [
            letter
            for letter in self._database.dead_letters
            if letter.redriven_at_us is None
            and letter.redrive != redrive
            and letter.id > after
            and selection.includes(letter)
        ]

    def _insert(self, batch: BatchPlan, is_dry_run: bool) -> list[Order]:
        entries = batch.by_ledger_id()
        inserted = []
        for order_id, order, ledger_id in batch.rows:
            known = self._database.orders.get(order_id)
            if known is not None:
                taken = known.order
                settle_repetition(batch, entries[ledger_id], order, taken.tenant, taken.body_hash)
            else:
                inserted.append(order)
                if not is_dry_run:
                    self._database.orders[order_id] = StoredOrder(order, ledger_id)
        return inserted

    def _count(
        self,
        inserted: list[Order],
        aliases: Sequence[tuple[bytes, int, bytes]],
        moves: Sequence[LedgerMove],
    ) -> None:
        database = self._database
        for order_id, tenant, target in aliases:
            database.aliases.setdefault(order_id, (tenant, target))
        xid = database.next_xid()
        for view in database.catalogue.views:
            for group, delta in compute_deltas(view.definition, inserted).items():
                lane = lane_of(group, view.definition.lanes)
                database.append_deltas(view.internal, xid, lane, [delta])
        for move in moves:
            row = database.ledger.get(move.batch_id)
            if row is not None:
                row.stored += move.stored
                row.duplicates += move.duplicates
                row.dead -= move.stored + move.duplicates
            else:
                sums = database.sums[move.shard]
                sums["stored"] += move.stored
                sums["duplicates"] += move.duplicates
                sums["dead"] -= move.stored + move.duplicates

    def _mark(self, redrive: str, done: Sequence[Redriven], now_ms: int) -> None:
        ends = {each.id: each for each in done}
        for index, letter in enumerate(self._database.dead_letters):
            end = ends.get(letter.id)
            if end is None:
                continue
            is_bad = end.outcome is Outcome.STILL_BAD
            is_dead = is_bad or end.outcome is Outcome.SKIPPED
            self._database.dead_letters[index] = replace(
                letter,
                redrive=redrive,
                outcome=end.outcome.value,
                redriven_at_us=None if is_dead else now_ms * 1000,
                code=end.code if is_bad else letter.code,
                detail=end.detail if is_bad else letter.detail,
            )
