"""Care for dead letters."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from coffee_rt.commands.options import CARE, DatabaseUrl, DataDir, Since, Until, say

commands = typer.Typer()


@commands.command(rich_help_panel=CARE)
def redrive(
    ids: Annotated[
        list[int] | None,
        typer.Option("--id", min=1, help="A dead letter's number; may be repeated."),
    ] = None,
    code: Annotated[
        str | None, typer.Option(help="Letters of one reason, e.g. unstorable-entry.")
    ] = None,
    tenant: Annotated[int | None, typer.Option(min=0, help="Letters of one tenant.")] = None,
    start: Since = None,
    end: Until = None,
    is_all: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Most letters tried, oldest first.")] = 10_000,
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Try all of it, count it, and take it back.")
    ] = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Send dead letters again: each is stored exactly once, or stays with its newest reason.

    Exit code 1 when some stay. --from and --to are times of burial.
    """
    from coffee_rt.embedded.reach import reach
    from coffee_rt.operator.redrive_command import run_redrive
    from coffee_rt.operator.redrive_plan import read_request

    letters = {
        "ids": ids,
        "code": code,
        "tenant": tenant,
        "from": start,
        "to": end,
        "all": is_all,
    }
    request = read_request({"letters": letters, "limit": limit, "dryRun": is_dry_run})
    target = reach(data_dir, database_url=database_url)
    raise typer.Exit(asyncio.run(run_redrive(request, target.database, say)))
