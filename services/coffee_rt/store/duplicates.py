"""The slow way into `orders`, for batches in which some id is stored already.

Only the entries that hold such an id go through a temporary table and ON CONFLICT; the others of the
batch keep COPY, so that one client that repeats itself can't slow all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coffee_rt.store.batches import BatchPlan, settle_repetition
from coffee_rt.store.order_rows import COLUMNS, Row
from coffee_rt.store.pool import copy_into

_STORED = "SELECT order_id, tenant, body_hash FROM orders WHERE order_id = ANY($1::uuid[])"

_INSERT = f"""
INSERT INTO orders ({", ".join(COLUMNS)})
SELECT {", ".join(COLUMNS)} FROM suspects ORDER BY order_id
ON CONFLICT DO NOTHING
RETURNING order_id
"""


async def split_suspects(
    connection: Any, rows: Sequence[Row], *, is_all: bool
) -> tuple[list[Row], list[Row]]:
    """(rows to COPY, rows to insert slowly). Suspect are all rows of an entry that holds a stored id; a
    collision with a transaction under way shows only in the insert, so the last try suspects all."""
    if is_all:
        return [], list(rows)
    found = await connection.fetch(_STORED, [row[0].hex() for row in rows])
    stored = {each["order_id"].bytes for each in found}
    entries = {row[2] for row in rows if row[0] in stored}
    sure = [row for row in rows if row[2] not in entries]
    return sure, [row for row in rows if row[2] in entries]


async def insert_suspects(
    connection: Any, plan: BatchPlan, rows: Sequence[Row], payload: bytes
) -> list[Row]:
    """Insert rows whose ids may be stored; those really inserted. The others are settled in the plan."""
    if not rows:
        return []
    await connection.execute("CREATE TEMP TABLE suspects (LIKE orders) ON COMMIT DROP")
    await copy_into(connection, "suspects", COLUMNS, payload)
    inserted = {each["order_id"].bytes for each in await connection.fetch(_INSERT)}
    lost = [row for row in rows if row[0] not in inserted]
    # A later statement, so that it also sees orders committed while the insert waited for them.
    found = await connection.fetch(_STORED, [row[0].hex() for row in lost])
    stored = {each["order_id"].bytes: each for each in found}
    entries = plan.by_ledger_id()
    for row in lost:
        taken = stored[row[0]]
        settle_repetition(plan, entries[row[2]], row[1], taken["tenant"], taken["body_hash"])
    return [row for row in rows if row[0] in inserted]
