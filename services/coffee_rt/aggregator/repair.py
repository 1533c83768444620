"""The commands `rebuild` and `drop-view`: recompute a view from the orders while they flow, or remove it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Console

from coffee_rt.domain.times import parse_seconds
from coffee_rt.errors import Rejected
from coffee_rt.runtime.bars import drawn_bars
from coffee_rt.runtime.settings import DatabaseSettings
from coffee_rt.store.pool import create_pool
from coffee_rt.store.view_catalogue import PostgresViewCatalogue
from coffee_rt.store.view_contract import Chunk, ViewRepairer, ViewState
from coffee_rt.store.view_repair import PostgresViewRepairer


@dataclass(frozen=True, slots=True)
class Repair:
    """A view to recompute: its chunks, and where its frozen history ends."""

    state: ViewState
    repairer: ViewRepairer
    chunks: list[Chunk]
    frozen_before: int


async def run_rebuild(
    view: str, start: str | None, end: str | None, database: DatabaseSettings
) -> int:
    """Recompute a view between two times (ISO 8601; none: all). Exit code 0; raises CoffeeRtError."""
    console = Console()
    async with _opened(view, start, end, database) as repair:
        _tell_frozen(console, repair)
        changed = 0
        with drawn_bars() as bars:
            for done, chunk in enumerate(repair.chunks):
                bars.show(f"rebuild {view}", done, len(repair.chunks))
                changed += await repair.repairer.rebuild_chunk(chunk)
            bars.show(f"rebuild {view}", len(repair.chunks), len(repair.chunks))
    console.print(f"{view}: {len(repair.chunks)} chunks recomputed, {changed} rows changed.")
    return 0


async def run_drop_view(view: str, database: DatabaseSettings) -> int:
    """Drop a view with its history; the orders stay. Exit code 0; raises CoffeeRtError."""
    pool = await create_pool(database, application_name="coffee-rt-repair")
    try:
        await PostgresViewCatalogue(pool).drop_view(view)
    finally:
        await pool.close()
    Console().print(
        f"{view} is dropped. An aggregator that still has a definition of it makes it anew at its start."
    )
    return 0


@asynccontextmanager
async def _opened(
    view: str, start: str | None, end: str | None, database: DatabaseSettings
) -> AsyncIterator[Repair]:
    start_s, end_s = _seconds(start, "from"), _seconds(end, "to")
    pool = await create_pool(database, application_name="coffee-rt-repair")
    try:
        states = await PostgresViewCatalogue(pool).views()
        state = next((s for s in states if s.definition.name == view and s.is_current), None)
        if state is None:
            known = ", ".join(sorted(s.definition.name for s in states if s.is_current))
            raise Rejected("unknown-view", f"there is no view {view}; known are: {known or 'none'}")
        repairer = PostgresViewRepairer(pool)
        chunks = await repairer.plan_chunks(state.internal, start_s, end_s)
        frozen_before = await repairer.recomputable_from(state.internal)
        yield Repair(state, repairer, chunks, frozen_before)
    finally:
        await pool.close()


def _seconds(text: str | None, option: str) -> int | None:
    """Unix seconds of an ISO 8601 instant; without an offset it is UTC."""
    if text is None:
        return None
    try:
        return parse_seconds(text)
    except ValueError:
        raise Rejected(
            "bad-time", f"--{option} must be a time such as 2026-01-31T08:00:00Z"
        ) from None


def _tell_frozen(console: Console, repair: Repair) -> None:
    if repair.frozen_before:
        at = datetime.fromtimestamp(repair.frozen_before, UTC).isoformat()
        console.print(f"Buckets before {at} are left as they are: their orders may be gone.")
