"""Care for views: rebuild, audit, drop-view."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from coffee_rt.commands.options import CARE, DatabaseUrl, DataDir, Since, Until, ViewName

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
    view: ViewName,
    start: Since = None,
    end: Until = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Compare a view with the orders; exit code 1 when anything differs."""
    from coffee_rt.aggregator.repair import run_audit
    from coffee_rt.embedded.reach import reach

    target = reach(data_dir, database_url=database_url)
    raise typer.Exit(asyncio.run(run_audit(view, start, end, target.database)))


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
