"""The set of views in PostgreSQL: made, replaced and dropped behind a barrier that no commit straddles.

Every commit holds the shared side of CATALOGUE_LOCK to its end and reads the generation under it. A change
takes the exclusive side: when it has it, no commit is under way, and every later one reads the new
generation and carries the new view's deltas; without the barrier those of a commit under way would be
missing for ever. The wait is short and repeated, because commits queue behind a waiting exclusive lock.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg

from coffee_rt.domain.views import ViewDefinition
from coffee_rt.errors import Rejected, Retryable
from coffee_rt.runtime.clock import Clock, SystemClock
from coffee_rt.store.contract import FEATURE_LEVEL, BadData
from coffee_rt.store.pool import Pool
from coffee_rt.store.view_changes import ViewChange, needs_refill, plan_change
from coffee_rt.store.view_contract import FILE_OWNER, NO_OWNER, ViewState
from coffee_rt.store.view_schema import create_view, drop_view, retain_view
from coffee_rt.store.view_tables import (
    CATALOGUE_LOCK,
    decode_definition,
    encode_definition,
    encode_filter,
    feature_level_of,
)

LOCK_MILLISECONDS = 200
"""How long commits may queue behind a change that waits. Shorter needs more tries under load."""
TRIES_MAX = 50
UNFOLDED_MAX = 1_000
"""Deltas of a lane folded while commits wait for a replacement to take over: some tens of milliseconds. What
waits between two folds is far less; more means that folds are behind, and the replacement waits for them."""
OLD_PROCESS_SECONDS = 30
"""A process silent for longer counts as gone when a view needs newer ones."""

_VIEWS = """
-- All views with their epochs, replacements before the view they replace.
SELECT c.internal, c.definition::text AS definition, c.filter::text AS filter, c.is_current,
       c.backfilled_to, c.is_refill, c.owner, c.generation || view_epoch_suffix() AS epoch
FROM view_catalogue c ORDER BY c.name, c.is_current, c.internal
"""


class _FoldsBehind(Retryable):
    """Too much waits to be folded to do it under the lock."""


class PostgresViewCatalogue:
    """ViewCatalogueStore. Shared by all tasks; holds nothing between calls."""

    def __init__(
        self,
        pool: Pool,
        *,
        clock: Clock | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._pool = pool
        self._clock = clock or SystemClock()
        self._uniform = uniform

    async def views(self) -> list[ViewState]:
        return [_state(row) for row in await self._pool.fetch(_VIEWS)]

    async def ensure_views(
        self,
        definitions: Sequence[ViewDefinition],
        owner: str = FILE_OWNER,
        *,
        is_adopting: bool = False,
    ) -> list[str]:
        """See ViewCatalogueStore; views to fill of an earlier call are among those told."""

        def plan(definition: ViewDefinition, known: Sequence[ViewState]) -> ViewChange:
            return plan_change(definition, known, owner, is_adopting=is_adopting)

        async def ensure(connection: Any) -> None:
            # Another process may have done it before we had the lock.
            known = [_state(row) for row in await connection.fetch(_VIEWS)]
            for definition in definitions:
                change = plan(definition, known)
                if change.is_needed:
                    await _apply(connection, definition, change, known, owner)

        known = await self.views()
        if any(plan(definition, known).is_needed for definition in definitions):
            await self._change(ensure)
            known = await self.views()
        return [state.internal for state in known if state.backfilled_to is not None]

    async def make_current(self, internal: str) -> None:
        """See ViewCatalogueStore; the view it replaces is dropped."""

        async def replace(connection: Any) -> None:
            known = [_state(row) for row in await connection.fetch(_VIEWS)]
            chosen = next((state for state in known if state.internal == internal), None)
            if chosen is None or chosen.is_current:
                return
            await _fold_all(connection, chosen)
            for state in known:
                if state.definition.name == chosen.definition.name and state.is_current:
                    await _drop(connection, state.internal)
            await connection.execute(
                "UPDATE view_catalogue SET is_current = true WHERE internal = $1", internal
            )
            await _raise_generation(connection)

        try:
            await self._change(replace)
        except BadData as error:
            # The aggregators meet it too, and put it away.
            raise Retryable(f"{internal} holds a delta that can't be folded: {error}") from error

    async def drop_view(self, name: str, owner: str | None = None) -> None:
        """See ViewCatalogueStore."""

        async def drop(connection: Any) -> None:
            known = [_state(row) for row in await connection.fetch(_VIEWS)]
            gone = [
                state.internal
                for state in known
                if state.definition.name == name and owner in (None, state.owner)
            ]
            if not gone:
                raise Rejected("unknown-view", f"there is no view {name}", status=404)
            for internal in gone:
                await _drop(connection, internal)
            await _raise_generation(connection)

        await self._change(drop)

    async def release_view(self, name: str, owner: str) -> bool:
        """See ViewCatalogueStore."""
        # No barrier: commits and folds don't ask whose a view is.
        status = await self._pool.execute(
            "UPDATE view_catalogue SET owner = $3 WHERE name = $1 AND owner = $2",
            name,
            owner,
            NO_OWNER,
        )
        return status != "UPDATE 0"

    async def _change(self, work: Callable[[Any], Awaitable[None]]) -> None:
        """Run `work` in a transaction that holds the exclusive lock; wholly again when a lock (also of
        a DROP TABLE in it) was not had in time, or folds are behind. Raises Retryable after TRIES_MAX."""
        begin = (
            "BEGIN; SET LOCAL synchronous_commit = on;"
            f" SET LOCAL lock_timeout = {LOCK_MILLISECONDS}"
        )
        for attempt in range(TRIES_MAX):
            try:
                async with self._pool.transaction(begin) as connection:
                    await connection.execute(f"SELECT pg_advisory_xact_lock({CATALOGUE_LOCK})")
                    await work(connection)
                return
            except Retryable as error:
                is_locked = isinstance(error.__cause__, asyncpg.LockNotAvailableError)
                is_busy = is_locked or isinstance(error, _FoldsBehind)
                if not is_busy or attempt == TRIES_MAX - 1:
                    raise
            await self._clock.sleep(self._uniform(0.02, 0.2))


def _state(row: Any) -> ViewState:
    is_filled = row["backfilled_to"] is None or row["is_refill"]
    return ViewState(
        definition=decode_definition(row["definition"], row["filter"]),
        internal=row["internal"],
        epoch=row["epoch"],
        is_live=is_filled and row["is_current"],
        backfilled_to=row["backfilled_to"],
        is_current=row["is_current"],
        owner=row["owner"],
    )


async def _apply(
    connection: Any,
    definition: ViewDefinition,
    change: ViewChange,
    known: Sequence[ViewState],
    owner: str,
) -> None:
    """Carry out a plan. The caller holds the exclusive lock."""
    if change.is_created:
        await _check_processes(connection, definition)
    for internal in change.dropped:
        await _drop(connection, internal)
    if change.is_adopted:
        await connection.execute(
            "UPDATE view_catalogue SET owner = $2 WHERE name = $1", definition.name, owner
        )
    if change.dropped or change.retained is not None or change.is_created:
        generation = await _raise_generation(connection)
    if change.retained is not None:
        await _retain(connection, definition, change.retained)
    if change.is_created:
        is_first = all(state.definition.name != definition.name for state in known)
        await _create(connection, definition, generation, owner, is_current=is_first)


async def _retain(connection: Any, definition: ViewDefinition, state: ViewState) -> None:
    """Another retention in place. A longer one is filled anew while readers keep the view: deltas of the
    days it adds were dropped until now."""
    await connection.execute(
        "UPDATE view_catalogue SET definition = $2 WHERE internal = $1",
        state.internal,
        encode_definition(definition),
    )
    await connection.execute(retain_view(definition, state.internal))
    if needs_refill(state, definition):
        await connection.execute(
            """
            UPDATE view_catalogue SET backfilled_to = 0, is_refill = (backfilled_to IS NULL OR is_refill)
            WHERE internal = $1
            """,
            state.internal,
        )


async def _create(
    connection: Any, definition: ViewDefinition, generation: int, owner: str, *, is_current: bool
) -> None:
    internal = f"{definition.name}_{generation}"
    await connection.execute(
        """
        INSERT INTO view_catalogue (internal, name, definition, filter, generation, feature_level,
                                    is_current, backfilled_to, owner)
        VALUES ($1, $2, $3, $4, $5, $6, $7, 0, $8)
        """,
        internal,
        definition.name,
        encode_definition(definition),
        encode_filter(definition),
        generation,
        feature_level_of(definition),
        is_current,
        owner,
    )
    await connection.execute(
        "INSERT INTO view_lanes (internal, lane) SELECT $1, generate_series(0, $2 - 1)",
        internal,
        definition.lanes,
    )
    for statement in create_view(definition, internal):
        await connection.execute(statement)


async def _check_processes(connection: Any, definition: ViewDefinition) -> None:
    level = feature_level_of(definition)
    if level > FEATURE_LEVEL:
        raise Rejected("view-too-new", f"view {definition.name} needs a newer release")
    older = await connection.fetchval(
        # Workers write deltas, aggregators fill histories; who only reads needs nothing of a definition.
        "SELECT min(process || ' ' || instance) FROM heartbeats WHERE feature_level < $1"
        " AND process IN ('worker', 'aggregator')"
        f" AND beat_at > now() - interval '{OLD_PROCESS_SECONDS} seconds'",
        level,
    )
    if older is not None:
        raise Retryable(f"{older} is too old for view {definition.name}")


async def _fold_all(connection: Any, state: ViewState) -> None:
    """Fold all that waits in a view. The caller holds the exclusive lock, so no commit is under way: what was told to
    be visible in the view that goes is visible in this one before anybody reads it."""
    # A fold passes over the lanes that another holds; these are waited for.
    await connection.execute(
        "SELECT FROM view_lanes WHERE internal = $1 ORDER BY lane FOR UPDATE", state.internal
    )
    behind: int = await connection.fetchval(
        f"SELECT count(*) FROM mv_{state.internal}_fold($1, $2, 0) WHERE NOT _is_drained",
        list(range(state.definition.lanes)),
        UNFOLDED_MAX,
    )
    if behind:
        raise _FoldsBehind(f"too many deltas of {state.internal} wait to be folded")


async def _drop(connection: Any, internal: str) -> None:
    await connection.execute("DELETE FROM view_catalogue WHERE internal = $1", internal)
    for statement in drop_view(internal):
        await connection.execute(statement)


async def _raise_generation(connection: Any) -> int:
    generation: int = await connection.fetchval(
        "UPDATE view_generation SET generation = generation + 1 RETURNING generation"
    )
    return generation
