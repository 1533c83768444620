"""Care for views: rebuild, audit, drop-view."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from coffee_rt.commands.options import (
    CARE,
    DatabaseUrl,
    DataDir,
    RedisUrl,
    Since,
    Until,
    ViewName,
)
from coffee_rt.errors import Rejected

commands = typer.Typer()


@commands.command(rich_help_panel=CARE)
def rebuild(
    view: ViewName,
    start: Since = None,
    end: Until = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Recompute a view from the orders, exactly, while orders flow."""
    from coffee_rt.aggregator.repair import run_rebuild
    from coffee_rt.embedded.reach import reach

    target = reach(data_dir, database_url=database_url)
    raise typer.Exit(asyncio.run(run_rebuild(view, start, end, target.database)))


@commands.command(rich_help_panel=CARE)
def audit(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VIEW]...", help="Only these views (and not the log)."),
    ] = None,
    view: Annotated[
        list[str] | None, typer.Option("--view", help="The same as an option; may be repeated.")
    ] = None,
    is_log_only: Annotated[bool, typer.Option("--log-only", help="Leave the views out.")] = False,
    is_views_only: Annotated[bool, typer.Option("--views-only", help="Leave the log out.")] = False,
    start: Annotated[
        str | None,
        typer.Option("--since", "--from", help="From this time (ISO 8601), or 36h, 7d ago."),
    ] = None,
    views_start: Annotated[
        str | None,
        typer.Option("--views-since", help="The same of the views alone; the log stays whole."),
    ] = None,
    end: Until = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the result here.")
    ] = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Prove that no accepted order is missing or double, and that the views say what the orders say.

    Compares the log's count with the ledger, the ledger with the orders, and each view with a
    recomputation, while orders flow; it changes nothing. What is wrong is named: batch, entry, time,
    number of records.

    Exit code 0: all agrees. 1: something differs. 2: a server could not be asked, or an option is wrong.
    """
    from coffee_rt.conservation.audit import AuditRequest, Installation, read_instant, run_audit
    from coffee_rt.embedded.reach import reach

    if is_log_only and (is_views_only or names or view):
        raise typer.BadParameter("--log-only leaves the views out; give it alone, or name views")
    chosen = tuple(dict.fromkeys((*(names or ()), *(view or ()))))
    try:
        request = AuditRequest(
            is_log=not is_views_only and not chosen,
            is_views=not is_log_only,
            views=chosen,
            start=read_instant(start, "since"),
            end=read_instant(end, "to"),
            views_start=read_instant(views_start, "views-since"),
            json_file=json_file,
        )
    except Rejected as error:
        # Not 1: that one says that something differs.
        raise typer.BadParameter(error.detail) from None
    target = reach(data_dir, redis_url, database_url)
    installation = Installation(target.redis, target.database, target.namespace, target.shards)
    raise typer.Exit(asyncio.run(run_audit(request, installation)))


@commands.command("drop-view", rich_help_panel=CARE)
def drop_view(
    view: Annotated[str, typer.Argument(help="Name of the view, e.g. channels.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Drop a view and its history; the orders stay. Remove its definition first."""
    from coffee_rt.aggregator.repair import run_drop_view
    from coffee_rt.embedded.reach import reach

    target = reach(data_dir, database_url=database_url)
    raise typer.Exit(asyncio.run(run_drop_view(view, target.database)))
