"""The ledger read row by row beside the orders it tells of, for the audit. Reads only.

One LedgerReading is one snapshot: what is compared with each other was true in one moment, while orders flow.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from coffee_rt.store.contract import EntryKey
from coffee_rt.store.ledger import NUMBER_MAX, NUMBERS, SUMS, uncounted_of
from coffee_rt.store.partitions import retired_to_ms
from coffee_rt.store.pool import Pool

PAGE_ROWS = 5_000
QUERY_SECONDS_MAX = 300.0
_MINTED_BEFORE_MS = 60_000
_MINTED_AFTER_MS = 10_000
"""Ids made here are of the moments before their entry; those that clients bring may be a day off."""
_WIDE_MS = 25 * 3_600_000

_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

# Purpose: a shard's ledger rows in the order of the log, a page at a time.
_PAGE = """
SELECT batch_id, entry_ms, entry_seq, counter, records, stored FROM stream_entries
WHERE shard = $1 AND (entry_ms, entry_seq) > ($2::int8, $3::int8)
  AND (entry_ms, entry_seq) < ($4::int8, $5::int8)
ORDER BY entry_ms, entry_seq LIMIT $6
"""

# Purpose: how many orders each entry really has, by a range of the primary key.
_COUNT = """
SELECT batch_id, count(*) AS orders FROM orders
WHERE order_id >= $1 AND order_id < $2 AND batch_id = ANY ($3::uuid[]) GROUP BY batch_id
"""

# Purpose: entries that have orders but no row in the ledger, in a span of time.
_STRANGE = """
SELECT o.batch_id, count(*) AS orders FROM orders AS o
WHERE o.order_id >= $1 AND o.order_id < $2
  AND NOT EXISTS (SELECT FROM stream_entries AS s WHERE s.batch_id = o.batch_id)
GROUP BY o.batch_id ORDER BY count(*) DESC LIMIT 20
"""


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """What the ledger says of an entry, and how many orders it really has (None: not counted)."""

    batch_id: bytes
    entry: EntryKey
    counter: int
    records: int
    stored: int
    orders: int | None


class LedgerReading:
    """Made by `open_reading`; one snapshot, one connection, one task."""

    def __init__(self, connection: Any, retired_to: int) -> None:
        self._connection = connection
        self._retired_to = retired_to

    async def sums(self, shard: int, below: EntryKey) -> dict[str, int]:
        """As StoreKeeper.ledger_sums."""
        return dict((await self._fetch(SUMS, shard, *below))[0])

    async def uncounted_records(self, shard: int, below: EntryKey, counter: int) -> int:
        """As StoreKeeper.uncounted_records."""
        [row] = await self._fetch(NUMBERS, shard, *below, counter, NUMBER_MAX)
        return uncounted_of(row, counter)

    async def gaps(self, shard: int) -> list[tuple[int, int]]:
        """Numbers that a failover of the log lost, as it said itself."""
        rows = await self._fetch(
            "SELECT counter_from, counter_to FROM gaps WHERE shard = $1 ORDER BY counter_from",
            shard,
        )
        return [(row["counter_from"], row["counter_to"]) for row in rows]

    async def rows(self, shard: int, after: EntryKey, below: EntryKey) -> list[LedgerRow]:
        """The next page of a shard's rows, each with the number of its orders."""
        found = await self._fetch(_PAGE, shard, *after, *below, PAGE_ROWS)
        counts = await self._counts(found) if found else {}
        return [
            LedgerRow(
                row["batch_id"].bytes,
                (row["entry_ms"], row["entry_seq"]),
                row["counter"],
                row["records"],
                row["stored"],
                counts.get(row["batch_id"], 0) if row["entry_ms"] > self._retired_to else None,
            )
            for row in found
        ]

    async def is_whole(self, shard: int) -> bool:
        """Whether no row of the shard was ever compacted: the first one begins its count."""
        query = "SELECT coalesce(max(through_ms), 0) AS ms FROM shard_sums WHERE shard = $1"
        return not (await self._fetch(query, shard))[0]["ms"]

    async def unknown_batches(self, start_ms: int, end_ms: int) -> dict[bytes, int]:
        """Entries without a row that have orders of that time -> how many."""
        low, high = _ids(start_ms - _MINTED_BEFORE_MS, end_ms + _MINTED_AFTER_MS)
        rows = await self._fetch(_STRANGE, low, high)
        return {row["batch_id"].bytes: row["orders"] for row in rows}

    async def has_row(self, batch_id: bytes) -> bool:
        """Whether the ledger knows an entry."""
        query = "SELECT count(*) AS n FROM stream_entries WHERE batch_id = $1"
        return bool((await self._fetch(query, UUID(bytes=batch_id)))[0]["n"])

    async def orders_of(self, ids: Sequence[bytes]) -> set[bytes]:
        """Which of these order ids are stored, as orders or under another id."""
        query = """SELECT order_id FROM orders WHERE order_id = ANY ($1::uuid[])
            UNION SELECT order_id FROM order_aliases WHERE order_id = ANY ($1::uuid[])"""
        return {
            row["order_id"].bytes for row in await self._fetch(query, [each.hex() for each in ids])
        }

    async def _counts(self, rows: list[Any]) -> dict[UUID, int]:
        first, last = rows[0]["entry_ms"], rows[-1]["entry_ms"]
        batches = [row["batch_id"] for row in rows]
        near = _ids(first - _MINTED_BEFORE_MS, last + _MINTED_AFTER_MS)
        counts = {
            row["batch_id"]: row["orders"] for row in await self._fetch(_COUNT, *near, batches)
        }
        odd = [row["batch_id"] for row in rows if counts.get(row["batch_id"], 0) != row["stored"]]
        if odd:
            # Ids that clients brought, and redriven orders: looked for in days instead of seconds.
            wide = _ids(first - _WIDE_MS, last + _WIDE_MS)
            again = await self._fetch(_COUNT, *wide, odd)
            counts |= dict.fromkeys(odd, 0) | {row["batch_id"]: row["orders"] for row in again}
        return counts

    async def _fetch(self, query: str, *arguments: Any) -> list[Any]:
        return list(await self._connection.fetch(query, *arguments, timeout=QUERY_SECONDS_MAX))


@asynccontextmanager
async def open_reading(pool: Pool) -> AsyncIterator[LedgerReading]:
    """A snapshot of the ledger and the orders."""
    retired_to = await retired_to_ms(pool)
    async with pool.transaction(_BEGIN) as connection:
        yield LedgerReading(connection, retired_to)


def _ids(start_ms: int, end_ms: int) -> tuple[UUID, UUID]:
    """The least ids of two times (Unix ms)."""
    low, high = (max(0, at).to_bytes(6) + bytes(10) for at in (start_ms, end_ms))
    return UUID(bytes=low), UUID(bytes=high)
