"""The command `audit`: the log beside the ledger beside the orders, and every view beside a recomputation.

Reads only, and exact while orders flow: the log's side up to the lowest unacknowledged entry, the ledger and
the orders in one snapshot, each chunk of a view in one statement. This is its wiring.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from coffee_rt.conservation.balance import read_settled
from coffee_rt.conservation.findings import Finding, Report, instant
from coffee_rt.conservation.log_audit import audit_shard
from coffee_rt.domain.times import parse_seconds
from coffee_rt.domain.wire import INTAKE_SHARD
from coffee_rt.errors import CoffeeRtError, Rejected, Retryable
from coffee_rt.runtime.bars import Bars, drawn_bars
from coffee_rt.runtime.settings import DatabaseSettings, RedisSettings
from coffee_rt.store.intake import PostgresIntake
from coffee_rt.store.ledger_rows import open_reading
from coffee_rt.store.migrations import pending_migrations
from coffee_rt.store.pool import Pool, create_pool
from coffee_rt.store.view_catalogue import PostgresViewCatalogue
from coffee_rt.store.view_contract import AuditDifference, ViewState
from coffee_rt.store.view_repair import PostgresViewRepairer
from coffee_rt.streams.contract import STORE_GROUP
from coffee_rt.streams.keeper import RedisKeeper
from coffee_rt.streams.redis_log import RedisLog

CLEAN, DIFFERENCES, UNSEEN = 0, 1, 2
"""Exit codes."""
LINES_MAX = 50
"""Findings printed; the document of --json has all of them."""
_SPAN = re.compile(r"(?P<count>[0-9]{1,6})(?P<unit>[mhd])")
_UNIT_SECONDS = {"m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class AuditRequest:
    """What to look at. Times are Unix seconds."""

    is_log: bool = True
    is_views: bool = True
    views: tuple[str, ...] = ()
    start: int | None = None
    end: int | None = None
    views_start: int | None = None
    """Of the views alone, where `start` says nothing: the log has little to look at, they may have years."""
    json_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Installation:
    """Where the servers are."""

    redis: RedisSettings
    database: DatabaseSettings
    namespace: str
    shards: int


async def run_audit(request: AuditRequest, installation: Installation) -> int:
    """Look, tell, and return the exit code: 0 clean, 1 differences, 2 could not look."""
    console = Console()
    report = Report()
    try:
        await _look(request, installation, report)
    except CoffeeRtError as error:
        told = f"The audit could not look at everything: {error}"
        console.print(told, markup=False, soft_wrap=True)
        return UNSEEN
    is_written = _write(console, request.json_file, report)
    for finding in report.findings[:LINES_MAX]:
        console.print(finding.line(), markup=False, soft_wrap=True)
    _tell(console, report)
    if report.findings:
        return DIFFERENCES
    return CLEAN if is_written else UNSEEN


def _write(console: Console, file: Path | None, report: Report) -> bool:
    """The result as JSON; whether it is where it was wanted."""
    if file is None:
        return True
    try:
        file.write_text(json.dumps(report.document(), indent=2) + "\n")
    except OSError as error:
        console.print(f"{file} can't be written: {error.strerror}", markup=False, soft_wrap=True)
        return False
    return True


def _tell(console: Console, report: Report) -> None:
    entries = sum(shard["entries"] for shard in report.shards)
    chunks = sum(view["chunks"] for view in report.views)
    looked = []
    if report.shards:
        looked.append(f"{len(report.shards)} shards with {entries} entries")
    if report.views:
        looked.append(f"{len(report.views)} views in {chunks} chunks")
    told = " and ".join(looked) or "nothing"
    if not report.findings:
        console.print(f"Compared {told}: nothing is missing, nothing is double.")
        return
    console.print(f"Compared {told}: {len(report.findings)} differences.")
    views = sorted({each.view for each in report.findings if each.view})
    for view in views:
        console.print(f"`coffee-rt rebuild {view}` mends the view.")
    if any(each.shard is not None for each in report.findings):
        console.print("What to do: docs/runbooks/ConservationViolated.md")


async def _look(request: AuditRequest, installation: Installation, report: Report) -> None:
    pool = await create_pool(installation.database, application_name="coffee-rt audit")
    log = RedisLog(installation.redis, installation.namespace, installation.shards)
    keeper = log.keeper()
    try:
        await _check_schema(pool)
        with drawn_bars() as bars:
            if request.is_log:
                await keeper.start()
                await _audit_log(request, keeper, pool, report, bars)
            if request.is_views:
                await _audit_views(request, pool, report, bars)
    finally:
        await keeper.close()
        await pool.close()


async def _check_schema(pool: Pool) -> None:
    """Raises Retryable where the database lacks what is looked at: that is no difference."""
    async with pool.connection() as connection:
        missing = await pending_migrations(connection)
    if missing:
        raise Retryable(f"the database lacks {', '.join(missing)}: run coffee-rt migrate")


async def _audit_log(
    request: AuditRequest, keeper: RedisKeeper, pool: Pool, report: Report, bars: Bars
) -> None:
    _, settled = await read_settled(keeper, STORE_GROUP)
    since_ms = None if request.start is None else request.start * 1000
    for each in settled:

        def show(done: int, total: int, label: str = f"shard {each.shard}") -> None:
            bars.show(label, done, total, "records")

        async with open_reading(pool) as reading:
            await audit_shard(keeper, reading, each, since_ms, report, show)
    await _audit_intake(pool, report)


async def _audit_intake(pool: Pool, report: Report) -> None:
    """What the intake ever took beside what the ledger made of it and what waits: one statement."""
    state = await PostgresIntake(pool).state()
    report.intake = {
        "accepted": state.accepted,
        "accounted": state.accounted,
        "waiting": state.records,
        "imbalance": state.imbalance,
    }
    if state.imbalance:
        is_lost = state.imbalance > 0
        became = "neither stored nor waiting" if is_lost else "accounted for twice"
        report.findings.append(
            Finding(
                kind="intake-unaccounted",
                records=abs(state.imbalance),
                detail=f"of {state.accepted} records that the intake took these are {became}",
                shard=INTAKE_SHARD,
            )
        )


async def _audit_views(request: AuditRequest, pool: Pool, report: Report, bars: Bars) -> None:
    states = [state for state in await PostgresViewCatalogue(pool).views() if state.is_current]
    known = {state.definition.name: state for state in states}
    for name in request.views:
        if name not in known:
            told = ", ".join(sorted(known)) or "none"
            raise Rejected("unknown-view", f"there is no view {name}; known are: {told}")
    repairer = PostgresViewRepairer(pool)
    for name in request.views or sorted(known):
        state = known[name]
        start = request.views_start if request.start is None else request.start
        chunks = await repairer.plan_chunks(state.internal, start, request.end)
        differences: list[AuditDifference] = []
        for done, chunk in enumerate(chunks):
            bars.show(name, done, len(chunks))
            differences += await repairer.audit_chunk(chunk)
        bars.show(name, len(chunks), len(chunks))
        report.views.append({"view": name, "chunks": len(chunks), "groups": len(differences)})
        report.findings += [_view_finding(state, each) for each in differences]


def _view_finding(state: ViewState, difference: AuditDifference) -> Finding:
    tenant, bucket, *dimensions = difference.group
    named = zip(state.definition.dimension_columns, dimensions, strict=True)
    group = " ".join(f"{name}={value}" for name, value in named)
    stored, orders = difference.stored or {}, difference.recomputed or {}
    counts = [abs(orders.get(name, 0) - stored.get(name, 0)) for name in {*stored, *orders}]
    return Finding(
        kind="view-group",
        records=min(counts, default=0),
        detail=f"tenant {tenant} {group}: the view has {stored or 'nothing'}, its orders "
        f"say {orders or 'nothing'}",
        view=state.definition.name,
        start=instant(int(bucket) * 1000),
    )


def read_instant(text: str | None, option: str, now: Callable[[], float] = time.time) -> int | None:
    """Unix seconds of an ISO 8601 instant (without an offset it is UTC), or of a span back from now: 36h, 7d.

    Raises Rejected.
    """
    if text is None:
        return None
    if span := _SPAN.fullmatch(text):
        return max(0, int(now()) - int(span["count"]) * _UNIT_SECONDS[span["unit"]])
    try:
        return parse_seconds(text)
    except ValueError:
        raise Rejected(
            "bad-time",
            f"--{option} must be a time such as 2026-01-31T08:00:00Z, or how long ago, such as 36h or 7d",
        ) from None
