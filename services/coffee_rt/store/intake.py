"""The intake in PostgreSQL: see intake_contract. Rows leave it only inside a worker's commit (`take_batches`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from coffee_rt.domain.ids import id_floor, id_time_ms
from coffee_rt.domain.wire import (
    INTAKE_SHARD,
    WIRE_VERSIONS_READABLE,
    batch_header,
    decode_record,
    order_id_of,
    split_batch,
)
from coffee_rt.errors import NotExecuted, Rejected, Retryable
from coffee_rt.store.intake_contract import (
    IntakeState,
    IntakeWrite,
    KeyHolder,
    Known,
    WaitingBatch,
)
from coffee_rt.store.intake_plan import id_claim, names_of, plan_append
from coffee_rt.store.order_keys import find_holders, insert_keys, sweep_keys, uuids
from coffee_rt.store.pool import Pool

CLIENT_AHEAD_MS = 360_000
"""A client's own id may be five minutes ahead of the batch that carries it; a minute to spare."""
RACES_MAX = 5
"""Looks at the keys of one flush; each lost race shows who won."""
KEYS_SINCE = "order_keys_since"
KEYS_SWEPT = "order_keys_swept"

# Synchronous, whatever the server's default: the answer says "on disk".
_BEGIN = """
    BEGIN ISOLATION LEVEL READ COMMITTED;
    SET LOCAL synchronous_commit = on;
    SET LOCAL lock_timeout = 3000;
    SET LOCAL statement_timeout = 5000;
    SET LOCAL idle_in_transaction_session_timeout = 5000
"""

_APPEND = """
WITH counted AS (INSERT INTO intake_accepted (batches, records) VALUES (1, $3))
INSERT INTO intake (batch_id, version, records, bytes, trace, order_ids, data)
VALUES ($1, $2, $3, $4, $5, $6::text::uuid[], $7)
"""

# Purpose: a write where all of a flush is known, so that it is only answered when what it repeats is wherever a commit
# waits to be: one whose wait for a standby was given up is visible all the same.
_REPEAT = "INSERT INTO intake_accepted (batches, records) VALUES (0, 0)"

# Purpose: how much waits, and whether all that was ever taken is accounted for, in one snapshot.
_STATE = """
WITH waiting AS (
    SELECT count(*) AS batches, coalesce(sum(records), 0) AS records,
           coalesce(sum(bytes), 0) AS bytes,
           coalesce(extract(epoch FROM clock_timestamp() - min(appended_at)), 0) AS seconds
    FROM intake
)
SELECT batches::int8, records::int8, bytes::int8, seconds::float8,
    (SELECT coalesce(sum(a.records), 0) FROM intake_accepted AS a)::int8 AS accepted,
    (SELECT coalesce(sum(s.stored + s.duplicates + s.dead), 0) FROM (
        SELECT stored, duplicates, dead FROM shard_sums WHERE shard = $1
        UNION ALL SELECT stored, duplicates, dead FROM shard_changes WHERE shard = $1
    ) AS s)::int8 AS accounted,
    (SELECT value FROM install WHERE name = $2) AS keys_since
FROM waiting
"""

# Purpose: the oldest batches, as many as fit.
_WAITING = """
SELECT batch_id, version, records, data, trace,
       extract(epoch FROM clock_timestamp() - appended_at)::float8 AS seconds
FROM (
    SELECT *, sum(bytes) OVER (ORDER BY batch_id) - bytes AS before
    FROM (
        SELECT * FROM intake WHERE version = ANY($1::int2[]) ORDER BY batch_id LIMIT $2
    ) AS oldest
) AS counted
WHERE before < $3 ORDER BY batch_id
"""

# Purpose: take batches out, leaving those that another worker is at.
_TAKE = """
WITH mine AS (
    SELECT batch_id FROM intake WHERE batch_id = ANY($1::text::uuid[])
    ORDER BY batch_id FOR UPDATE {skip}
)
DELETE FROM intake WHERE batch_id IN (SELECT batch_id FROM mine) RETURNING batch_id
"""
_TAKE_FREE = _TAKE.format(skip="SKIP LOCKED")
_TAKE_WAITING = _TAKE.format(skip="")

# Purpose: one order that waits, by its id or by one it also answers to.
_FIND = """
SELECT i.batch_id, i.version, i.data, w.order_id FROM (
    SELECT $1::uuid AS order_id
    UNION ALL SELECT target FROM order_aliases WHERE order_id = $1::uuid AND tenant = $2
) AS w JOIN intake AS i ON w.order_id = ANY(i.order_ids)
WHERE i.batch_id >= $3 LIMIT 1
"""

_ADD_UP = """
WITH gone AS (DELETE FROM intake_accepted RETURNING batches, records)
INSERT INTO intake_accepted SELECT sum(batches), sum(records) FROM gone HAVING count(*) > 0
"""

# Purpose: since when keys are noted. A worker that notes none ends it for all; the next that does begins anew.
_NOTE_KEYS = """
INSERT INTO install (name, value) VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE SET value = excluded.value, set_at = now()
WHERE install.value = 'off' OR excluded.value = 'off'
"""


# Purpose: one sweep of the whole table for all workers; who changes the row does it.
_CLAIM_SWEEP = """
INSERT INTO install AS i (name, value) VALUES ($1, 'begun')
ON CONFLICT (name) DO UPDATE SET set_at = now()
WHERE i.set_at <= now() - $2::float8 * interval '1 second'
RETURNING 1
"""

# Purpose: orders stored under ids that clients brought.
_STORED = """
SELECT order_id, tenant, body_hash, batch_id FROM orders WHERE order_id = ANY($1::text::uuid[])
"""


class _Raced(Exception):
    """Another transaction took a key of this flush between the look and the insert."""


class PostgresIntake:
    """Intake on PostgreSQL; give it a pool of the primary."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def state(self) -> IntakeState:
        """See Intake."""
        row = await self._pool.fetchrow(_STATE, INTAKE_SHARD, KEYS_SINCE)
        since = row["keys_since"]
        return IntakeState(
            batches=row["batches"],
            records=row["records"],
            size_bytes=row["bytes"],
            oldest_seconds=row["seconds"],
            accepted=row["accepted"],
            accounted=row["accounted"],
            keys_since=None if since in (None, "off") else float(since),
        )

    async def append(self, write: IntakeWrite) -> list[Known | None]:
        """See Intake."""
        for _ in range(RACES_MAX):
            try:
                return await self._append(write)
            except _Raced:
                continue
        raise NotExecuted("others keep taking the keys of this flush")

    async def _append(self, write: IntakeWrite) -> list[Known | None]:
        is_committing = False
        try:
            async with self._pool.transaction(_BEGIN) as connection:
                plan = plan_append(write, await _hold(connection, write) if write.keyed else {})
                claims = [(name, *holder) for name, holder in plan.claims.items()]
                if claims and not await insert_keys(connection, claims):
                    raise _Raced
                if plan.records:
                    await _insert(connection, write, plan.records)
                elif not claims:
                    await connection.execute(_REPEAT)
                is_committing = True
        except Retryable as error:
            if is_committing or isinstance(error, NotExecuted):
                raise
            # Without a COMMIT nothing of it can ever be.
            raise NotExecuted(str(error)) from error
        return plan.answers

    async def waiting(self, batches_max: int, bytes_max: int) -> list[WaitingBatch]:
        """See Intake."""
        versions = sorted(WIRE_VERSIONS_READABLE)
        return [
            WaitingBatch(
                row["batch_id"].bytes,
                row["version"],
                row["records"],
                row["data"],
                row["trace"],
                row["seconds"],
            )
            for row in await self._pool.fetch(_WAITING, versions, batches_max, bytes_max)
        ]

    async def find(self, tenant: int, order_id: bytes) -> tuple[bytes, bytes] | None:
        """See Intake."""
        oldest_ms = max(0, id_time_ms(order_id) - CLIENT_AHEAD_MS)
        row = await self._pool.fetchrow(_FIND, order_id.hex(), tenant, id_floor(oldest_ms).hex())
        if row is None:
            return None
        wanted = row["order_id"].bytes
        if row["version"] not in WIRE_VERSIONS_READABLE:
            return row["batch_id"].bytes, b""
        try:
            records = split_batch(row["version"], row["data"])
        except Rejected:
            return None
        record = next((each for each in records if order_id_of(each) == wanted), None)
        if record is None or decode_record(record).tenant != tenant:
            return None
        return row["batch_id"].bytes, record

    async def still_waiting(self, batch_ids: Sequence[bytes]) -> set[bytes]:
        """See Intake."""
        rows = await self._pool.fetch(
            "SELECT batch_id FROM intake WHERE batch_id = ANY($1::text::uuid[])", uuids(batch_ids)
        )
        return {row["batch_id"].bytes for row in rows}

    async def note_keys(self, is_kept: bool) -> None:
        """See Intake."""
        value = str(int(time.time()) + 1) if is_kept else "off"
        await self._pool.execute(_NOTE_KEYS, KEYS_SINCE, value)

    async def sweep(self, keep_seconds: float, pause_seconds: float = 0.0) -> int:
        """See Intake."""
        if await self._pool.fetchval(_CLAIM_SWEEP, KEYS_SWEPT, pause_seconds) is None:
            return 0
        swept = await sweep_keys(self._pool, int((time.time() - keep_seconds) * 1000))
        await self._pool.execute(_ADD_UP)
        return swept


async def _insert(connection: Any, write: IntakeWrite, records: list[bytes]) -> None:
    data = batch_header(len(records)) + b"".join(records)
    await connection.execute(
        _APPEND,
        write.batch_id.hex(),
        write.version,
        len(records),
        len(data),
        write.trace,
        uuids(map(order_id_of, records)),
        data,
    )


async def take_batches(
    connection: Any, batch_ids: Sequence[bytes], *, is_claimed: bool
) -> frozenset[bytes]:
    """Take batches out of the intake, inside the transaction that stores them; those that were there.
    `is_claimed`: wait for another worker that is at them instead of passing them over."""
    rows = await connection.fetch(
        _TAKE_WAITING if is_claimed else _TAKE_FREE,
        uuids(batch_ids),
    )
    return frozenset(row["batch_id"].bytes for row in rows)


async def _hold(connection: Any, write: IntakeWrite) -> dict[bytes, KeyHolder]:
    """Who holds the names of the flush's keyed records, orders stored under a client's id among them."""
    held = await find_holders(connection, names_of(write))
    ids = [each.order_id for each in write.keyed if each.is_client_id]
    for row in await connection.fetch(_STORED, uuids(ids)) if ids else ():
        claim = id_claim(row["tenant"], row["body_hash"])
        order_id = row["order_id"].bytes
        held.setdefault(order_id, KeyHolder(order_id, claim, row["batch_id"].bytes))
    return held
