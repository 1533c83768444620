"""The entry ledger in PostgreSQL: which stream entries are stored, and what their records became.

`record_entries` is the exactly-once check: it runs inside the orders' transaction, and a row that is
already there (or being written by somebody who then commits) means the entry is stored. Totals by shard
are kept beside the rows, so that the conservation sums stay exact when old rows go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from coffee_rt.domain.ids import id_time_ms
from coffee_rt.store.batches import BatchPlan, EntryPlan
from coffee_rt.store.contract import EntryKey
from coffee_rt.store.pool import Pool

# Purpose: claim the entries not stored yet, in the order that can't deadlock with another worker's; read
# the views' generation in a statement later than the catalogue lock's, whose snapshot
# may be older than a view that was just made, the transaction, and whose transaction ids these are.
_RECORD = """
WITH entry AS (
    SELECT * FROM unnest(
        $1::text::uuid[], $2::text::int2[], $3::text::int8[], $4::text::int8[], $5::text::int8[],
        $6::text::int4[], $7::text::int4[], $8::text::int4[], $9::text::int4[]
    ) AS e (batch_id, shard, entry_ms, entry_seq, counter, records, stored, duplicates, dead)
), fresh AS (
    INSERT INTO stream_entries
        (batch_id, shard, entry_ms, entry_seq, counter, records, stored, duplicates, dead)
    SELECT batch_id, shard, entry_ms, entry_seq, counter, records, stored, duplicates, dead
    FROM entry ORDER BY batch_id
    ON CONFLICT (batch_id) DO NOTHING
    RETURNING batch_id, shard, records, stored, duplicates, dead
), total AS (
    INSERT INTO shard_changes (shard, entries, records, stored, duplicates, dead)
    SELECT shard, count(*), sum(records), sum(stored), sum(duplicates), sum(dead)
    FROM fresh GROUP BY shard
)
SELECT (SELECT generation FROM view_generation) AS generation,
       pg_current_xact_id()::text::int8 AS xid, ltrim(view_epoch_suffix(), '.') AS timeline,
       CASE WHEN (SELECT count(*) FROM fresh) < $10
            THEN ARRAY(SELECT batch_id FROM fresh) END AS fresh
"""

# Purpose: a write, so that this commit is only answered when earlier ones are durable too.
_TOUCH = "UPDATE stream_entries SET redeliveries = redeliveries + 1 WHERE batch_id = $1"

# Purpose: the counts of entries whose orders turned out to be stored before, and the totals' difference.
_CORRECT = """
WITH changed AS (
    UPDATE stream_entries AS s SET stored = e.stored, duplicates = e.duplicates, dead = e.dead
    FROM unnest($1::uuid[], $2::int4[], $3::int4[], $4::int4[])
        AS e (batch_id, stored, duplicates, dead)
    JOIN stream_entries AS old ON old.batch_id = e.batch_id
    WHERE s.batch_id = e.batch_id
    RETURNING s.shard, s.stored - old.stored AS stored,
              s.duplicates - old.duplicates AS duplicates, s.dead - old.dead AS dead
)
INSERT INTO shard_changes (shard, entries, records, stored, duplicates, dead)
SELECT shard, 0, 0, sum(stored), sum(duplicates), sum(dead) FROM changed GROUP BY shard
"""

# Purpose: keep gaps. What compacted rows had of each, the table adds by itself.
_RECORD_GAPS = """
INSERT INTO gaps (batch_id, shard, entry_ms, entry_seq, counter_from, counter_to)
SELECT * FROM unnest($1::uuid[], $2::int2[], $3::int8[], $4::int8[], $5::int8[], $6::int8[])
ON CONFLICT DO NOTHING
"""

# Purpose: drop a shard's oldest rows below an entry; their sums are kept elsewhere, but what of them lies in
# a gap is remembered there. Their numbers the table keeps by itself, in shard_sums.
_COMPACT = """
WITH oldest AS (
    SELECT batch_id FROM stream_entries
    WHERE shard = $1 AND (entry_ms, entry_seq) < ($2::int8, $3::int8)
    ORDER BY entry_ms, entry_seq LIMIT $4
), moved AS (
    DELETE FROM stream_entries WHERE batch_id IN (SELECT batch_id FROM oldest)
    RETURNING batch_id, entry_ms, records, counter
), found AS (
    UPDATE gaps AS g SET records_found = g.records_found + f.records
    FROM (
        SELECT gap.batch_id, sum(m.records) AS records
        FROM gaps AS gap JOIN moved AS m ON m.counter > gap.counter_from
            AND m.counter <= gap.counter_to AND m.batch_id <> gap.batch_id
        WHERE gap.shard = $1 GROUP BY gap.batch_id
    ) AS f WHERE g.batch_id = f.batch_id
), marked AS (
    INSERT INTO shard_sums AS s (shard, through_ms)
    SELECT $1, max(entry_ms) FROM moved HAVING count(*) > 0
    ON CONFLICT (shard) DO UPDATE SET through_ms = greatest(s.through_ms, excluded.through_ms)
)
SELECT count(*) FROM moved
"""

# Purpose: fold the commits' changes of a shard's totals into one row.
_FOLD_TOTALS = """
WITH gone AS (
    DELETE FROM shard_changes WHERE shard = $1 RETURNING entries, records, stored, duplicates, dead
)
INSERT INTO shard_sums AS s (shard, entries, records, stored, duplicates, dead)
SELECT $1, sum(entries), sum(records), sum(stored), sum(duplicates), sum(dead)
FROM gone HAVING count(*) > 0
ON CONFLICT (shard) DO UPDATE SET
    entries = s.entries + excluded.entries, records = s.records + excluded.records,
    stored = s.stored + excluded.stored, duplicates = s.duplicates + excluded.duplicates,
    dead = s.dead + excluded.dead
"""

# Purpose: what a shard's records below an entry became: all of them, less those from it on. One statement:
# one moment.
SUMS = """
WITH row AS (
    SELECT coalesce(sum(entries), 0) AS entries, coalesce(sum(records), 0) AS records,
           coalesce(sum(stored), 0) AS stored, coalesce(sum(duplicates), 0) AS duplicates,
           coalesce(sum(dead), 0) AS dead
    FROM (
        SELECT entries, records, stored, duplicates, dead FROM shard_sums WHERE shard = $1
        UNION ALL
        SELECT entries, records, stored, duplicates, dead FROM shard_changes WHERE shard = $1
        UNION ALL
        SELECT -1, -records, -stored, -duplicates, -dead FROM stream_entries
        WHERE shard = $1 AND (entry_ms, entry_seq) >= ($2::int8, $3::int8)
    ) AS part
), gap AS (
    SELECT coalesce(sum(g.counter_to - g.counter_from), 0) AS gap_records,
           coalesce(sum(g.counter_to - g.counter_from - g.records_found - (
               SELECT coalesce(sum(e.records), 0) FROM stream_entries AS e
               WHERE e.shard = g.shard AND e.counter > g.counter_from AND e.counter <= g.counter_to
                 AND e.batch_id <> g.batch_id
           )), 0) AS lost
    FROM gaps AS g WHERE g.shard = $1 AND (g.entry_ms, g.entry_seq) < ($2::int8, $3::int8)
)
SELECT row.entries::int8 AS entries, row.records::int8 AS records, row.stored::int8 AS stored,
       row.duplicates::int8 AS duplicates, row.dead::int8 AS dead,
       gap.gap_records::int8 AS gap_records, gap.lost::int8 AS lost
FROM row CROSS JOIN gap
"""

# Purpose: the numbers up to $4 that neither a row below an entry nor a gap has, and the highest number of a
# record that was stored. $4 is below 0 where entries of strangers, in flight, claim more records than were
# counted. Reads the rows of an hour: for where the sums differ.
NUMBERS = """
WITH below AS (
    SELECT counter, records, stored FROM stream_entries
    WHERE shard = $1 AND (entry_ms, entry_seq) < ($2::int8, $3::int8)
      AND records > 0 AND counter >= records AND counter <= $5
), known AS (
    SELECT coalesce((SELECT numbers FROM shard_sums WHERE shard = $1), '{}')
         + coalesce((SELECT range_agg(int8range(counter - records, counter, '(]')) FROM below), '{}')
         + coalesce((
               SELECT range_agg(int8range(counter_from, counter_to, '(]')) FROM gaps
               WHERE shard = $1 AND (entry_ms, entry_seq) < ($2::int8, $3::int8)
                 AND counter_from <= counter_to AND counter_to <= $5
           ), '{}') AS numbers
)
SELECT coalesce((
           SELECT sum(upper(part) - lower(part))
           FROM known, unnest(
               int8multirange(int8range(0, greatest($4::int8, 0), '(]')) - known.numbers
           ) AS part
       ), 0)::int8 AS missing,
       greatest(
           (SELECT max(counter) FROM below WHERE stored > 0),
           (SELECT through_counter FROM shard_sums WHERE shard = $1),
           0
       ) AS highest
"""

# Purpose: whether a read's snapshot includes an entry; a compacted one was stored long before.
_IS_STORED = """
SELECT EXISTS (SELECT FROM stream_entries WHERE batch_id = $1)
    OR EXISTS (SELECT FROM shard_sums WHERE shard = $2 AND through_ms > $3::bigint + 60000)
"""

COMPACT_ROWS_MAX = 20_000
"""Ledger rows moved in one statement: larger holds a worker's redelivery up longer."""
_INT4_MAX = 2**31 - 1
_INT8_MAX = 2**63 - 1
NUMBER_MAX = 2**62 - 1
"""No log counts so far; a stranger's entry may claim it, and PostgreSQL's ranges need one more."""
_END: EntryKey = (_INT8_MAX, _INT8_MAX)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the ledger said: `fresh` are the ledger ids to store, None when all of them are."""

    generation: int
    xid: int
    timeline: str
    fresh: frozenset[bytes] | None


async def record_entries(connection: Any, entries: Sequence[EntryPlan]) -> Recorded:
    """Claim entries inside the transaction that will store them. Waits for another that is at it."""
    writes = [entry.write for entry in entries]
    row = await connection.fetchrow(
        _RECORD,
        "{" + ",".join([entry.ledger_id.hex() for entry in entries]) + "}",
        _literal([write.shard for write in writes]),
        _literal([write.entry[0] for write in writes]),
        _literal(_fitting([write.entry[1] for write in writes], _INT8_MAX)),
        _literal(_fitting([write.counter for write in writes], _INT8_MAX)),
        _literal(_fitting([write.records for write in writes], _INT4_MAX)),
        _literal([entry.stored for entry in entries]),
        _literal([entry.duplicates for entry in entries]),
        _literal(_fitting([entry.dead for entry in entries], _INT4_MAX)),
        len(entries),
    )
    fresh = row["fresh"]
    known = None if fresh is None else frozenset(ledger_id.bytes for ledger_id in fresh)
    return Recorded(row["generation"], row["xid"], row["timeline"], known)


async def touch_entry(connection: Any, ledger_id: bytes) -> None:
    """The small write of a batch that was stored before."""
    await connection.execute(_TOUCH, UUID(bytes=ledger_id))


async def correct_counts(connection: Any, entries: Sequence[EntryPlan]) -> None:
    """Give rows written in this transaction their final counts."""
    if not entries:
        return
    await connection.execute(
        _CORRECT,
        [entry.ledger_id.hex() for entry in entries],
        [entry.stored for entry in entries],
        [entry.duplicates for entry in entries],
        _fitting([entry.dead for entry in entries], _INT4_MAX),
    )


async def record_gaps(connection: Any, plan: BatchPlan) -> None:
    """Keep what gap entries say was lost."""
    gaps = [(each, each.write, each.write.gap) for each in plan.entries if each.write.gap]
    if not gaps:
        return
    await connection.execute(
        _RECORD_GAPS,
        [each.ledger_id.hex() for each, _, _ in gaps],
        [write.shard for _, write, _ in gaps],
        [write.entry[0] for _, write, _ in gaps],
        [write.entry[1] for _, write, _ in gaps],
        _fitting([gap[0] for _, _, gap in gaps if gap], _INT8_MAX),
        _fitting([gap[1] for _, _, gap in gaps if gap], _INT8_MAX),
    )


async def compact_ledger(pool: Pool, shard: int, below: EntryKey) -> int:
    """See StoreKeeper. In steps of bounded size, each whole in itself."""
    total = 0
    while True:
        moved = int(await pool.fetchval(_COMPACT, shard, *below, COMPACT_ROWS_MAX))
        total += moved
        if moved < COMPACT_ROWS_MAX:
            break
    await pool.execute(_FOLD_TOTALS, shard)
    return total


async def is_entry_stored(pool: Pool, shard: int, batch_id: bytes) -> bool:
    """See OrderReader."""
    return bool(await pool.fetchval(_IS_STORED, UUID(bytes=batch_id), shard, id_time_ms(batch_id)))


async def ledger_sums(pool: Pool, shard: int, below: EntryKey | None) -> dict[str, int]:
    """See StoreKeeper."""
    return dict(await pool.fetchrow(SUMS, shard, *(below or _END)))


async def uncounted_records(pool: Pool, shard: int, below: EntryKey, counter: int) -> int:
    """See StoreKeeper."""
    return uncounted_of(await pool.fetchrow(NUMBERS, shard, *below, counter, NUMBER_MAX), counter)


def uncounted_of(row: Any, counter: int) -> int:
    """What a row of NUMBERS says."""
    missing, highest = row["missing"], row["highest"]
    return int(missing or min(0, counter - highest))


def _fitting(values: list[int], largest: int) -> list[int]:
    """Numbers as a column can hold them: an entry written by a stranger may claim any."""
    if min(values) >= 0 and max(values) <= largest:
        return values
    return [min(max(value, 0), largest) for value in values]


def _literal(values: list[int]) -> str:
    """An array as PostgreSQL reads it from text."""
    return "{" + str(values)[1:-1] + "}"
