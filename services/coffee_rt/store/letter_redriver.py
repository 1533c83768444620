"""LetterRedriver on PostgreSQL: a batch of dead letters a transaction, with everything a commit writes.

The steps keep the order of a worker's commit (catalogue lock, keys, orders by id, deltas), with the
letters' own rows first: whoever holds those is the only one to send them. The ledger's row of an entry may
be compacted already; the sums by shard are changed in either case, by as much.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from coffee_rt.domain import wire
from coffee_rt.domain.orders import Order
from coffee_rt.errors import Rejected
from coffee_rt.store.batches import plan_batch
from coffee_rt.store.contract import BadData, DeadLetter, ViewsTooNew
from coffee_rt.store.dead_letters import COLUMNS, insert_aliases, letter_of, storable
from coffee_rt.store.duplicates import insert_suspects
from coffee_rt.store.faults import MissingPartition
from coffee_rt.store.order_keys import claim_keys
from coffee_rt.store.order_rows import RowEncoder
from coffee_rt.store.orders import begin_commit, copy_deltas, encode_views
from coffee_rt.store.partitions import ensure_days_of
from coffee_rt.store.pool import Pool
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
from coffee_rt.store.view_tables import load_catalogue

_DEAD = "redriven_at IS NULL AND redrive IS DISTINCT FROM $1"

_SELECTED = f"""{_DEAD} AND id > $2 AND (cardinality($3::int8[]) = 0 OR id = ANY ($3))
    AND ($4::text IS NULL OR code = $4) AND ($5::int4 IS NULL OR tenant = $5)
    AND ($6::timestamptz IS NULL OR created_at >= $6) AND ($7::timestamptz IS NULL OR created_at < $7)"""

# Purpose: take letters for this transaction; those another sender finished meanwhile are left out.
_TAKE = f"""
SELECT {COLUMNS} FROM dead_letters WHERE id = ANY ($2::int8[]) AND {_DEAD} ORDER BY id FOR UPDATE
"""

# Purpose: move records from dead to stored or duplicate, in the entry's row (if it is not compacted) and in
# the totals by shard.
_MOVE = """
WITH move AS (
    SELECT * FROM unnest($1::uuid[], $2::int2[], $3::int4[], $4::int4[])
        AS m (batch_id, shard, stored, duplicates)
), row AS (
    UPDATE stream_entries AS s SET stored = s.stored + m.stored,
        duplicates = s.duplicates + m.duplicates, dead = s.dead - m.stored - m.duplicates
    FROM move AS m WHERE s.batch_id = m.batch_id
)
INSERT INTO shard_changes (shard, entries, records, stored, duplicates, dead)
SELECT shard, 0, 0, sum(stored), sum(duplicates), -sum(stored + duplicates)
FROM move GROUP BY shard ORDER BY shard
"""

# Purpose: say of each letter what became of it; one that is still bad gets its newest reason.
_MARK = """
UPDATE dead_letters AS d SET redrive = $1, outcome = m.outcome,
    redriven_at = CASE WHEN m.outcome IN ('stored', 'duplicate') THEN clock_timestamp() END,
    code = CASE WHEN m.outcome = 'still-bad' THEN m.code ELSE d.code END,
    detail = CASE WHEN m.outcome = 'still-bad' THEN m.detail ELSE d.detail END
FROM unnest($2::int8[], $3::text[], $4::text[], $5::text[]) AS m (id, outcome, code, detail)
WHERE d.id = m.id
"""


@dataclass(frozen=True, slots=True)
class _Sending:
    """What one call of `send` was asked for."""

    redrive: str
    named: frozenset[int]
    is_dry_run: bool


class _RolledBack(Exception):
    """Ends the transaction of a dry run."""


class PostgresLetterRedriver:
    """See LetterRedriver. Holds nothing between calls; any task may call it."""

    def __init__(self, pool: Pool, *, id_age_days_max: int = ID_AGE_DAYS_MAX) -> None:
        self._pool = pool
        self._id_age_days_max = id_age_days_max
        self._encoder = RowEncoder()

    async def count(self, selection: LetterSelection, redrive: str) -> int:
        """See LetterRedriver."""
        query = f"SELECT count(*) FROM dead_letters WHERE {_SELECTED}"
        return int(await self._pool.fetchval(query, redrive, 0, *selection_arguments(selection)))

    async def results(self, redrive: str) -> dict[Outcome, int]:
        """See LetterRedriver."""
        rows = await self._pool.fetch(
            "SELECT outcome, count(*) AS letters FROM dead_letters WHERE redrive = $1 GROUP BY outcome",
            redrive,
        )
        found = {Outcome(row["outcome"]): int(row["letters"]) for row in rows}
        return {outcome: found.get(outcome, 0) for outcome in Outcome}

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
        rows = await self._pool.fetch(
            f"SELECT id FROM dead_letters WHERE {_SELECTED} ORDER BY id LIMIT $8",
            redrive,
            after,
            *selection_arguments(selection),
            min(letters_max, LETTERS_MAX),
        )
        sending = _Sending(redrive, frozenset(selection.ids), is_dry_run)
        return await self._send(sending, [row["id"] for row in rows])

    async def _send(self, sending: _Sending, ids: list[int]) -> list[Redriven]:
        """Store letters; where one is bad data, in halves, until it is alone."""
        if not ids:
            return []
        try:
            return await self._store(sending, ids)
        except BadData as error:
            if len(ids) == 1:
                bad = Redriven(ids[0], Outcome.STILL_BAD, "bad-data", str(error))
                return await self._transact(sending, ids, bad)
        middle = len(ids) // 2
        first = await self._send(sending, ids[:middle])
        return [*first, *await self._send(sending, ids[middle:])]

    async def _store(self, sending: _Sending, ids: list[int]) -> list[Redriven]:
        try:
            return await self._transact(sending, ids)
        except MissingPartition:
            await ensure_days_of(self._pool, await self._order_ids(ids))
            return await self._transact(sending, ids)

    async def _transact(
        self, sending: _Sending, ids: list[int], known: Redriven | None = None
    ) -> list[Redriven]:
        """One transaction; `known` is a letter's end that needs no trying."""
        done: list[Redriven] = []
        try:
            async with self._pool.transaction(begin_commit(is_claimed=False)) as connection:
                rows = await connection.fetch(_TAKE, sending.redrive, ids)
                letters = [letter_of(row) for row in rows]
                if letters:
                    done = [known] if known else await self._fill(connection, letters, sending)
                    await _mark(connection, sending.redrive, done)
                if sending.is_dry_run:
                    raise _RolledBack
        except _RolledBack:
            pass
        return done

    async def _fill(
        self, connection: Any, letters: Sequence[DeadLetter], sending: _Sending
    ) -> list[Redriven]:
        """Orders, deltas and sums of letters, between BEGIN and COMMIT."""
        catalogue = await load_catalogue(connection)
        if catalogue.views_too_new:
            raise ViewsTooNew("this release can't maintain a view")
        plan = self._plan(letters, sending.named)
        claims = key_claims(plan, plan_batch(plan.entries))
        batch = plan_holders(plan, await claim_keys(connection, claims))
        payload = self._encoder.encode(batch.rows)
        inserted = await insert_suspects(connection, batch, batch.rows, payload)
        orders: list[Order] = [row[1] for row in inserted]
        await copy_deltas(connection, encode_views(catalogue, orders))
        done = settle(plan, batch, {id(order) for order in orders})
        await insert_aliases(connection, [*batch.aliases, *answered_aliases(plan, batch, done)])
        await _move(connection, ledger_moves(letters, done))
        return done

    def _plan(self, letters: Sequence[DeadLetter], named: frozenset[int]) -> RedrivePlan:
        return plan_redrive(letters, named, int(time.time() * 1000), self._id_age_days_max)

    async def _order_ids(self, ids: list[int]) -> list[bytes]:
        """Order ids of letters that can be read, whose days may lack a partition."""
        found = []
        for row in await self._pool.fetch(
            """SELECT coalesce(amended, raw) AS record FROM dead_letters
            WHERE id = ANY ($1::int8[])""",
            ids,
        ):
            try:
                found.append(wire.decode_record(row["record"]).order_id)
            except Rejected:
                continue
        return [order_id for order_id in found if len(order_id) == 16]


async def _move(connection: Any, moves: Sequence[LedgerMove]) -> None:
    if moves:
        await connection.execute(
            _MOVE,
            [move.batch_id.hex() for move in moves],
            [move.shard for move in moves],
            [move.stored for move in moves],
            [move.duplicates for move in moves],
        )


async def _mark(connection: Any, redrive: str, done: Sequence[Redriven]) -> None:
    await connection.execute(
        _MARK,
        redrive,
        [each.id for each in done],
        [each.outcome.value for each in done],
        [storable(each.code) for each in done],
        [storable(each.detail) for each in done],
    )


def selection_arguments(selection: LetterSelection) -> tuple[Any, ...]:
    """ids, code, tenant, start, end of a statement."""
    times = (
        None if second is None else datetime.fromtimestamp(second, UTC)
        for second in (selection.start, selection.end)
    )
    return (list(selection.ids), selection.code, selection.tenant, *times)
