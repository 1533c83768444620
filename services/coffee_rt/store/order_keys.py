"""Which order an Idempotency-Key led to, in PostgreSQL: asked and told inside the transaction that takes it.

Whoever inserts first holds the key; the unique index makes everybody else wait and lose. Rows are inserted in
the order of the keys, so that two transactions can't wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from coffee_rt.domain.ids import id_floor
from coffee_rt.store.intake_contract import KeyHolder
from coffee_rt.store.pool import Pool

KeyClaim = tuple[bytes, bytes, bytes, bytes]
"""(key hash, order id, body hash, batch id), 16 bytes each."""

# Purpose: take keys nobody has. Counted, not listed: usually all of them were free.
_CLAIM = """
WITH claimed AS (
    INSERT INTO order_keys (key_hash, order_id, body_hash, batch_id)
    SELECT * FROM unnest(
        $1::text::uuid[], $2::text::uuid[], $3::text::uuid[], $4::text::uuid[]
    ) AS k (key_hash, order_id, body_hash, batch_id) ORDER BY key_hash
    ON CONFLICT (key_hash) DO NOTHING
    RETURNING 1
)
SELECT count(*) FROM claimed
"""

# Purpose: who holds keys. A later statement than the claim, so that it sees whom that waited for.
_HOLDERS = """
SELECT key_hash, order_id, body_hash, batch_id FROM order_keys
WHERE key_hash = ANY($1::text::uuid[])
"""

# Purpose: forget keys of a stretch of the table. By place, not by an index on time: that would cost the
# worker as much again as the key's own.
_SWEEP = """
DELETE FROM order_keys
WHERE ctid >= $1::text::tid AND ctid < $2::text::tid AND batch_id < $3
"""
_SWEEP_LOCK = 0x6B657973
_SWEEP_PAGES = 2048


async def insert_keys(connection: Any, claims: Sequence[KeyClaim]) -> bool:
    """Take those of these keys that are free; whether all of them were. Each key at most once."""
    columns = [uuids(column) for column in zip(*claims, strict=True)]
    return bool(await connection.fetchval(_CLAIM, *columns) == len(claims))


async def claim_keys(connection: Any, claims: Sequence[KeyClaim]) -> dict[bytes, KeyHolder]:
    """Take these keys; who holds those that another order has."""
    if not claims or await insert_keys(connection, claims):
        return {}
    own = {claim[0]: claim[1] for claim in claims}
    holders = await find_holders(connection, own)
    return {key: holder for key, holder in holders.items() if holder.order_id != own[key]}


async def find_holders(connection: Any, keys: Iterable[bytes]) -> dict[bytes, KeyHolder]:
    """Who holds these keys; those that nobody has are left out."""
    return {
        row["key_hash"].bytes: KeyHolder(
            row["order_id"].bytes, row["body_hash"].bytes, row["batch_id"].bytes
        )
        for row in await connection.fetch(_HOLDERS, uuids(keys))
    }


async def sweep_keys(pool: Pool, before_ms: int) -> int:
    """Forget keys of batches older than `before_ms` (Unix). In steps of bounded size; a step that another
    process is at is left to it."""
    pages = int(await pool.fetchval("SELECT pg_relation_size('order_keys') / 8192"))
    before = id_floor(max(before_ms, 0)).hex()
    swept = 0
    for start in range(0, pages, _SWEEP_PAGES):
        async with pool.transaction() as connection:
            if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", _SWEEP_LOCK):
                return swept
            status = await connection.execute(
                _SWEEP, f"({start},0)", f"({start + _SWEEP_PAGES},0)", before
            )
            swept += int(status.rpartition(" ")[2])
    return swept


def uuids(values: Iterable[bytes]) -> str:
    """An array of UUIDs as PostgreSQL reads it from text."""
    return "{" + ",".join([value.hex() for value in values]) + "}"
