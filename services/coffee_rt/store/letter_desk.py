"""Dead letters for whoever looks after them: found, listed, amended.

Amending holds the letter's row, as a redrive does: whichever comes first is seen by the other. A letter that
was sent is amended no more; one that is amended is sent as it then is.
"""

from __future__ import annotations

from collections.abc import Callable

from coffee_rt.domain.orders import Order
from coffee_rt.domain.wire import encode_record
from coffee_rt.errors import Rejected
from coffee_rt.store.contract import DeadLetter
from coffee_rt.store.dead_letters import COLUMNS, letter_of
from coffee_rt.store.letter_redriver import selection_arguments
from coffee_rt.store.pool import Pool
from coffee_rt.store.redrives import LetterSelection

_LOCK_SECONDS_MAX = 10
_BEGIN = f"""
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL synchronous_commit = on;
SET LOCAL lock_timeout = {_LOCK_SECONDS_MAX * 1000};
SET LOCAL idle_in_transaction_session_timeout = {_LOCK_SECONDS_MAX * 1000}
"""
_ONE = f"SELECT {COLUMNS} FROM dead_letters WHERE id = $1 AND ($2::int4 IS NULL OR tenant = $2)"

# Purpose: a page of letters that wait, newest first.
_PAGE = f"""
SELECT {COLUMNS} FROM dead_letters WHERE id < $1 AND redriven_at IS NULL
    AND (cardinality($2::int8[]) = 0 OR id = ANY ($2)) AND ($3::text IS NULL OR code = $3)
    AND ($4::int4 IS NULL OR tenant = $4) AND ($5::timestamptz IS NULL OR created_at >= $5)
    AND ($6::timestamptz IS NULL OR created_at < $6)
ORDER BY id DESC LIMIT $7
"""
_AMEND = f"""
UPDATE dead_letters SET amended = $2, amended_at = clock_timestamp(), amended_by = $3,
    order_id = coalesce(order_id, $4::uuid)
WHERE id = $1 RETURNING {COLUMNS}
"""
_ID_MAX = 2**63 - 1


class PostgresLetterDesk:
    """LetterDesk; give it a pool of the primary. Holds nothing between calls; any task may call it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def find(self, tenant: int | None, letter_id: int) -> DeadLetter:
        """See LetterDesk."""
        row = await self._pool.fetchrow(_ONE, letter_id, tenant)
        if row is None:
            raise _no_letter()
        return letter_of(row)

    async def page(
        self, selection: LetterSelection, limit: int, before: int | None = None
    ) -> list[DeadLetter]:
        """See LetterDesk."""
        arguments = selection_arguments(selection)
        below = _ID_MAX if before is None else before
        return [letter_of(row) for row in await self._pool.fetch(_PAGE, below, *arguments, limit)]

    async def amend(
        self,
        tenant: int | None,
        letter_id: int,
        make_order: Callable[[DeadLetter], Order],
        by: str,
    ) -> DeadLetter:
        """See LetterDesk."""
        async with self._pool.transaction(_BEGIN) as connection:
            row = await connection.fetchrow(f"{_ONE} FOR UPDATE", letter_id, tenant)
            if row is None:
                raise _no_letter()
            letter = letter_of(row)
            if letter.redriven_at_us is not None:
                detail = (
                    f"was sent already ({letter.outcome}): nothing of it can be changed any more"
                )
                raise Rejected("letter-redriven", detail, "/id", 409)
            order = make_order(letter)
            amended = encode_record(order)
            return letter_of(
                await connection.fetchrow(_AMEND, letter_id, amended, by, order.order_id.hex())
            )


def _no_letter() -> Rejected:
    return Rejected("no-such-letter", "no dead letter has this id", "/id", 404)
