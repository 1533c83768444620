"""The writer: stream entries into PostgreSQL, exactly once, one transaction a batch.

Enters: entries decoded and checked. Leaves: a commit that holds the ledger rows, the orders, the deltas of
every live view and the dead letters, or nothing. Its order of steps is the same in every worker, which is
what keeps workers from deadlocking: catalogue lock, intake and ledger by batch id, keys, orders by id, deltas.
Any task may commit at any time. Cancellation rolls back, or leaves it unknown: the ledger absorbs a repeat.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import asyncpg

from coffee_rt.domain.orders import Order
from coffee_rt.domain.views import compute_deltas
from coffee_rt.errors import Bug, Retryable
from coffee_rt.store.batches import (
    BatchPlan,
    EntryPlan,
    plan_batch,
    settle_key_losers,
    without_orders,
)
from coffee_rt.store.contract import (
    BadData,
    Committed,
    EntryOutcome,
    EntryWrite,
    PreparedBatch,
    ViewsTooNew,
)
from coffee_rt.store.dead_letters import insert_aliases, insert_dead_letters
from coffee_rt.store.duplicates import insert_suspects, split_suspects
from coffee_rt.store.faults import MissingPartition
from coffee_rt.store.intake import take_batches
from coffee_rt.store.ledger import correct_counts, record_entries, record_gaps, touch_entry
from coffee_rt.store.order_keys import claim_keys
from coffee_rt.store.order_rows import COLUMNS, RowEncoder
from coffee_rt.store.partitions import ensure_days_of
from coffee_rt.store.pool import Pool, copy_into
from coffee_rt.store.view_tables import (
    CATALOGUE_LOCK,
    Catalogue,
    LiveView,
    delta_copy_target,
    encode_deltas,
    lanes_touched,
    load_catalogue,
)

LOCK_SECONDS_MAX = 5.0
"""Longest wait of a batch for another's rows; then it is tried again."""
CLAIMED_LOCK_SECONDS_MAX = 1.0
STATEMENT_SECONDS_MAX = 30.0
BLOCKER_SECONDS_MAX = 30.0
"""A transaction older than this that holds a claimed entry belongs to a worker that hangs: its backend is
terminated. Smaller ends slow but living workers; larger delays the entries of a frozen one."""
_BLOCKER_POLL_SECONDS = 0.3
_UNKNOWN = Catalogue(-1, ())


class _Suspicion(IntEnum):
    """How much of a batch is inserted the slow way, which survives ids that are stored already."""

    NONE = 0
    KNOWN = 1
    """Entries that hold an id which is stored now."""
    ALL = 2


@dataclass(slots=True)
class ViewDeltas:
    """A view's deltas of some orders, as COPY takes them."""

    view: LiveView
    lanes: list[int]
    payload: bytes


@dataclass(slots=True)
class _Prepared:
    entries: Sequence[EntryWrite]
    plan: BatchPlan
    payload: bytes
    catalogue: Catalogue
    deltas: list[ViewDeltas]


class _ProbeDone(Exception):
    """Ends a transaction that was only tried out."""


class PostgresOrderWriter:
    """OrderWriter on PostgreSQL. Shared by the tasks of one worker."""

    def __init__(
        self,
        pool: Pool,
        *,
        blocker_seconds_max: float = BLOCKER_SECONDS_MAX,
        are_keys_noted: bool = True,
    ) -> None:
        """`are_keys_noted`: keep Idempotency-Keys of what is stored, so that the intake knows them."""
        self._pool = pool
        self._are_keys_noted = are_keys_noted
        self._catalogue = _UNKNOWN
        self._encoder = RowEncoder()
        self._blocker_seconds_max = blocker_seconds_max

    async def refresh_catalogue(self) -> None:
        """See OrderWriter."""
        async with self._pool.transaction() as connection:
            self._catalogue = await load_catalogue(connection)

    def prepare(self, entries: Sequence[EntryWrite]) -> PreparedBatch:
        """See OrderWriter. Raises BadData."""
        return self._prepare(entries, plan_batch(entries), self._catalogue)

    async def commit(self, batch: PreparedBatch, *, is_claimed: bool = False) -> Committed:
        """See OrderWriter."""
        return await self._commit(batch, is_claimed=is_claimed, is_probe=False)

    async def store_single(self, entry: EntryWrite) -> Committed:
        """See OrderWriter."""
        bad: dict[int, BadData] = {}
        await self._find_bad_orders(entry, 0, len(entry.orders), bad)
        return await self.commit(self.prepare([without_orders(entry, bad)]))

    async def _find_bad_orders(
        self, entry: EntryWrite, start: int, end: int, bad: dict[int, BadData]
    ) -> None:
        """Bisect by transactions that are rolled back: no savepoints, so no limit on their number."""
        if start == end:
            return
        try:
            part = replace(entry, orders=entry.orders[start:end], records=end - start, dead=())
            await self._commit(self.prepare([part]), is_claimed=False, is_probe=True)
        except BadData as error:
            if end - start == 1:
                bad[start] = error
                return
            middle = (start + end) // 2
            await self._find_bad_orders(entry, start, middle, bad)
            await self._find_bad_orders(entry, middle, end, bad)

    def _prepare(
        self, entries: Sequence[EntryWrite], plan: BatchPlan, catalogue: Catalogue
    ) -> _Prepared:
        payload = self._encoder.encode(plan.rows)
        return _Prepared(entries, plan, payload, catalogue, encode_views(catalogue, plan.orders))

    async def _commit(self, batch: PreparedBatch, *, is_claimed: bool, is_probe: bool) -> Committed:
        if not isinstance(batch, _Prepared):
            raise Bug("the batch was prepared by another store")
        suspicion, partitions_made = _Suspicion.NONE, False
        while True:
            try:
                return await self._store(batch, suspicion, is_claimed, is_probe)
            except asyncpg.UniqueViolationError as error:
                if suspicion is _Suspicion.ALL:
                    raise Retryable(f"ids keep colliding: {error}") from error
                suspicion = _Suspicion(suspicion + 1)
            except MissingPartition:
                if partitions_made:
                    raise
                await ensure_days_of(self._pool, [row[0] for row in batch.plan.rows])
                partitions_made = True

    async def _store(
        self, batch: _Prepared, suspicion: _Suspicion, is_claimed: bool, is_probe: bool
    ) -> Committed:
        committed: Committed | None = None
        try:
            async with self._pool.transaction(begin_commit(is_claimed)) as connection:
                committed = await self._fill(connection, batch, suspicion, is_claimed)
                if is_probe:
                    raise _ProbeDone
        except _ProbeDone:
            pass
        if committed is None:
            raise Bug("a transaction ended without a result")
        return committed

    async def _fill(
        self, connection: Any, batch: _Prepared, suspicion: _Suspicion, is_claimed: bool
    ) -> Committed:
        """Everything between BEGIN and COMMIT."""
        async with self._unblocked(connection, is_claimed):
            if batch.plan.intake_ids:
                batch = await self._take(connection, batch, is_claimed)
                if not batch.plan.entries:
                    return Committed(0, _outcomes(batch.entries, []), {})
            recorded = await record_entries(connection, batch.plan.entries)
        if recorded.generation != self._catalogue.generation:
            self._catalogue = await load_catalogue(connection)
        # Kept apart from the attribute: another task may replace that while this one waits.
        catalogue = self._catalogue
        if catalogue.views_too_new:
            names = ", ".join(view.definition.name for view in catalogue.views_too_new)
            raise ViewsTooNew(f"this release can't maintain the views {names}")
        if recorded.fresh is not None and not recorded.fresh:
            await touch_entry(connection, batch.plan.entries[0].ledger_id)
            return Committed(
                recorded.xid,
                _outcomes(batch.entries, []),
                catalogue.lanes,
                timeline=recorded.timeline,
            )
        planned = batch.plan
        batch = self._narrow(batch, recorded.fresh, catalogue, suspicion)
        if batch.plan.keyed and self._are_keys_noted:
            batch = await self._note_keys(connection, batch, catalogue, planned)
        if suspicion is _Suspicion.NONE:
            await _copy_orders(connection, batch.payload)
        else:
            batch = await self._insert_slowly(connection, batch, catalogue, suspicion)
        await copy_deltas(connection, batch.deltas)
        await self._settle(connection, batch.plan, planned)
        touched = {
            each.view.definition.name: each.lanes
            for each in batch.deltas
            if each.view.is_current and each.lanes
        }
        is_repeated = recorded.fresh is not None or bool(batch.plan.duplicate_ids)
        return Committed(
            xid=recorded.xid,
            outcomes=_outcomes(batch.entries, batch.plan.entries),
            touched_lanes=catalogue.lanes if is_repeated else touched,
            dead_order_ids=batch.plan.dead_ids,
            duplicate_order_ids=batch.plan.duplicate_ids,
            timeline=recorded.timeline,
        )

    async def _take(self, connection: Any, batch: _Prepared, is_claimed: bool) -> _Prepared:
        """The batch's entries that still waited in the intake; they are taken out of it here. The others are
        stored, or being stored, by another worker."""
        taken = await take_batches(connection, batch.plan.intake_ids, is_claimed=is_claimed)
        if len(taken) == len(batch.plan.entries):
            return batch
        writes = [each.write for each in batch.plan.entries if each.ledger_id in taken]
        prepared = self._prepare(writes, plan_batch(writes), batch.catalogue)
        return replace(prepared, entries=batch.entries)

    async def _note_keys(
        self, connection: Any, batch: _Prepared, catalogue: Catalogue, planned: BatchPlan
    ) -> _Prepared:
        """Take the keys of the batch's orders; those whose key another order holds are no rows any more."""
        holders = await claim_keys(connection, batch.plan.claims())
        if not holders:
            return batch
        plan = batch.plan
        if plan is planned:
            # The one that was prepared stays as it is: this batch may be tried again.
            plan = plan_batch([each.write for each in plan.entries])
        settle_key_losers(plan, holders)
        return replace(
            batch,
            plan=plan,
            payload=self._encoder.encode(plan.rows),
            deltas=encode_views(catalogue, plan.orders),
        )

    def _narrow(
        self,
        batch: _Prepared,
        fresh: frozenset[bytes] | None,
        catalogue: Catalogue,
        suspicion: _Suspicion,
    ) -> _Prepared:
        """The batch for the entries and views there really are; usually the one that was prepared."""
        if fresh is not None:
            writes = [each.write for each in batch.plan.entries if each.ledger_id in fresh]
            return replace(
                self._prepare(writes, plan_batch(writes), catalogue), entries=batch.entries
            )
        if suspicion is not _Suspicion.NONE:
            # A plan is changed by what the slow way finds, and this batch may be tried again.
            # Of the plan's entries: those given may hold some that another worker took from the intake.
            return replace(batch, plan=plan_batch([each.write for each in batch.plan.entries]))
        if catalogue.generation != batch.catalogue.generation:
            return replace(batch, deltas=encode_views(catalogue, batch.plan.orders))
        return batch

    async def _insert_slowly(
        self, connection: Any, batch: _Prepared, catalogue: Catalogue, suspicion: _Suspicion
    ) -> _Prepared:
        """Insert where some ids may be stored already; the deltas become those of the rows inserted."""
        plan = batch.plan
        is_all = suspicion is _Suspicion.ALL
        sure, suspects = await split_suspects(connection, plan.rows, is_all=is_all)
        if sure:
            await _copy_orders(connection, self._encoder.encode(sure))
        inserted = await insert_suspects(connection, plan, suspects, self._encoder.encode(suspects))
        orders = [row[1] for row in (*sure, *inserted)]
        return replace(batch, deltas=encode_views(catalogue, orders))

    async def _settle(self, connection: Any, plan: BatchPlan, planned: BatchPlan) -> None:
        await insert_dead_letters(connection, plan.entries)
        await insert_aliases(connection, plan.aliases)
        await record_gaps(connection, plan)
        if plan is not planned:
            written = planned.by_ledger_id()
            await correct_counts(
                connection,
                [each for each in plan.entries if each.counts != written[each.ledger_id].counts],
            )

    @asynccontextmanager
    async def _unblocked(self, connection: Any, is_claimed: bool) -> AsyncIterator[None]:
        """For claimed entries: while the block waits for a lock, terminate who has held it too long."""
        if not is_claimed:
            yield
            return
        # Not get_server_pid: behind a pooler that is the pooler's.
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        watch = asyncio.create_task(self._terminate_blockers(pid))
        try:
            yield
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError, Retryable):
                await watch

    async def _terminate_blockers(self, pid: int) -> None:
        while True:
            await asyncio.sleep(_BLOCKER_POLL_SECONDS)
            await self._pool.fetch(
                # Purpose: end workers that hang inside a transaction we wait for.
                """
                SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity AS a
                WHERE a.pid = ANY(pg_blocking_pids($1)) AND a.usename = current_user
                  AND a.xact_start < clock_timestamp() - $2::float8 * interval '1 second'
                """,
                pid,
                self._blocker_seconds_max,
            )


def begin_commit(is_claimed: bool) -> str:
    """BEGIN, the transaction's settings and the catalogue's lock in one round trip. SET LOCAL, because a
    pooler refuses such settings at start-up. Synchronous, and each statement with a snapshot of its own (the
    catalogue is read after its lock is held), whatever the server's defaults."""
    lock_seconds = CLAIMED_LOCK_SECONDS_MAX if is_claimed else LOCK_SECONDS_MAX
    return f"""
        BEGIN ISOLATION LEVEL READ COMMITTED;
        SET LOCAL synchronous_commit = on;
        SET LOCAL lock_timeout = {round(lock_seconds * 1000)};
        SET LOCAL statement_timeout = {round(STATEMENT_SECONDS_MAX * 1000)};
        SET LOCAL idle_in_transaction_session_timeout = {round(STATEMENT_SECONDS_MAX * 1000)};
        SELECT pg_advisory_xact_lock_shared({CATALOGUE_LOCK})
    """


def encode_views(catalogue: Catalogue, orders: list[Order]) -> list[ViewDeltas]:
    """Deltas of orders for every live view."""
    encoded = []
    for view in catalogue.views:
        deltas = compute_deltas(view.definition, orders)
        payload = encode_deltas(view, deltas) if deltas else b""
        encoded.append(ViewDeltas(view, lanes_touched(view, deltas), payload))
    return encoded


async def _copy_orders(connection: Any, payload: bytes) -> None:
    await copy_into(connection, "orders", COLUMNS, payload)


async def copy_deltas(connection: Any, deltas: list[ViewDeltas]) -> None:
    """Append them, inside the transaction that inserts their orders."""
    # By table, so that every worker takes them in one order.
    for each in sorted(deltas, key=lambda each: each.view.internal):
        if each.payload:
            table, columns = delta_copy_target(each.view)
            await copy_into(connection, table, columns, each.payload)


def _outcomes(entries: Sequence[EntryWrite], stored: Sequence[EntryPlan]) -> list[EntryOutcome]:
    """One outcome for each entry given. An entry given twice is stored by its first."""
    left = {id(plan.write): plan for plan in stored}
    return [
        left[id(write)].outcome()
        if id(write) in left
        else EntryOutcome(write.batch_id, seen_before=True)
        for write in entries
    ]
