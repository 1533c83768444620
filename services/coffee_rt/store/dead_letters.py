"""Dead letters and aliases: what becomes of accepted ids that are no rows of `orders`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coffee_rt.domain.orders import DEFAULT_TENANT
from coffee_rt.store.batches import EntryPlan
from coffee_rt.store.contract import DeadLetter
from coffee_rt.store.order_rows import to_unix_us
from coffee_rt.store.pool import Pool

DETAIL_CHARACTERS_MAX = 2000

_INSERT = """
INSERT INTO dead_letters
    (tenant, shard, entry_ms, entry_seq, batch_id, record_index, order_id, code, detail, raw)
SELECT * FROM unnest(
    $1::int4[], $2::int2[], $3::int8[], $4::int8[], $5::uuid[],
    $6::int4[], $7::uuid[], $8::text[], $9::text[], $10::bytea[]
)
"""

_INSERT_ALIASES = """
INSERT INTO order_aliases (order_id, tenant, target)
SELECT * FROM unnest($1::uuid[], $2::int4[], $3::uuid[]) ORDER BY 1
ON CONFLICT DO NOTHING
"""

COLUMNS = """id, tenant, shard, entry_ms, entry_seq, batch_id, record_index, order_id,
    code, detail, raw, created_at, redrive, outcome, redriven_at, amended, amended_at, amended_by"""


async def insert_dead_letters(connection: Any, entries: Sequence[EntryPlan]) -> None:
    """Keep the dead records of entries, inside their transaction."""
    found = [(entry, record) for entry in entries for record in entry.dead_letters]
    if not found:
        return
    await connection.execute(
        _INSERT,
        [record.tenant if 0 <= record.tenant < 2**31 else DEFAULT_TENANT for _, record in found],
        [entry.write.shard for entry, _ in found],
        [entry.write.entry[0] for entry, _ in found],
        [entry.write.entry[1] for entry, _ in found],
        [entry.ledger_id.hex() for entry, _ in found],
        [record.index for _, record in found],
        [_uuid_text(record.order_id) for _, record in found],
        [storable(record.code) for _, record in found],
        [storable(record.detail) for _, record in found],
        [record.raw for _, record in found],
    )


async def insert_aliases(connection: Any, aliases: Sequence[tuple[bytes, int, bytes]]) -> None:
    """Let ids that were answered resolve to the orders stored in their place."""
    if aliases:
        await connection.execute(
            _INSERT_ALIASES,
            [order_id.hex() for order_id, _, _ in aliases],
            [tenant for _, tenant, _ in aliases],
            [target.hex() for _, _, target in aliases],
        )


async def find_dead_letter(pool: Pool, tenant: int, order_id: bytes) -> DeadLetter | None:
    """The newest dead letter of an order id, or of the order it is an alias of."""
    row = await pool.fetchrow(
        f"""SELECT {COLUMNS} FROM dead_letters
        WHERE order_id = ANY(ARRAY(
            SELECT $1::uuid
            UNION ALL SELECT target FROM order_aliases WHERE order_id = $1::uuid AND tenant = $2
        )) AND tenant = $2 AND redriven_at IS NULL ORDER BY id DESC LIMIT 1""",
        order_id.hex(),
        tenant,
    )
    return None if row is None else letter_of(row)


async def list_dead_letters(
    pool: Pool, tenant: int | None, limit: int, before: int | None
) -> list[DeadLetter]:
    """Newest first, below id `before`."""
    rows = await pool.fetch(
        f"""SELECT {COLUMNS} FROM dead_letters
        WHERE id < $1 AND ($2::int4 IS NULL OR tenant = $2) AND redriven_at IS NULL
        ORDER BY id DESC LIMIT $3""",
        2**63 - 1 if before is None else before,
        tenant,
        limit,
    )
    return [letter_of(row) for row in rows]


def letter_of(row: Any) -> DeadLetter:
    """A row of COLUMNS."""
    return DeadLetter(
        id=row["id"],
        tenant=row["tenant"],
        shard=row["shard"],
        entry=(row["entry_ms"], row["entry_seq"]),
        batch_id=row["batch_id"].bytes,
        index=row["record_index"],
        order_id=None if row["order_id"] is None else row["order_id"].bytes,
        code=row["code"],
        detail=row["detail"],
        raw=row["raw"],
        created_at_us=to_unix_us(row["created_at"]),
        redrive=row["redrive"],
        outcome=row["outcome"],
        redriven_at_us=None if row["redriven_at"] is None else to_unix_us(row["redriven_at"]),
        amended=row["amended"],
        amended_at_us=None if row["amended_at"] is None else to_unix_us(row["amended_at"]),
        amended_by=row["amended_by"],
    )


def _uuid_text(order_id: bytes | None) -> str | None:
    return order_id.hex() if order_id is not None and len(order_id) == 16 else None


def storable(text: str) -> str:
    """Text that PostgreSQL takes, whatever bad data it quotes."""
    short = text[:DETAIL_CHARACTERS_MAX].replace("\x00", "\\0")
    return short.encode("utf-8", "backslashreplace").decode()
