"""What an installation needs now and then: migrate, smoke, settings, version."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from coffee_rt.commands.options import CARE, DatabaseUrl, DataDir, say, show

commands = typer.Typer()


@commands.command(rich_help_panel=CARE)
def migrate(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Bring the database to this release's schema. Safe to repeat, and from several at once."""
    from coffee_rt.embedded.migrate import MigrateSettings, run_migrate
    from coffee_rt.embedded.reach import reach_as

    target = reach_as(MigrateSettings, data_dir, database_url=database_url)
    asyncio.run(run_migrate(target, say))


@commands.command(rich_help_panel=CARE)
def smoke(
    address: Annotated[
        str | None,
        typer.Argument(
            help="Where orders are posted.  [default: the running `up`, else http://127.0.0.1:8080]",
            show_default=False,
        ),
    ] = None,
    query_address: Annotated[
        str | None, typer.Option(help="Where query-api answers.  [default: the same]")
    ] = None,
    live_address: Annotated[
        str | None, typer.Option(help="Where fanout takes sockets.  [default: the same]")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="COFFEE_RT_API_KEY", help="API key with the scopes ingest and read."),
    ] = None,
    wait_seconds: Annotated[float, typer.Option(min=1, help="How long each step may take.")] = 30,
    data_dir: DataDir = None,
) -> None:
    """Post one order (0.01, store smoke-test) and follow it to the view and a socket."""
    from coffee_rt.embedded.reach import reach_address
    from coffee_rt.embedded.smoke import SmokeOptions, run_smoke

    orders = (address or reach_address(data_dir)).rstrip("/")
    query, live = ((each or orders).rstrip("/") for each in (query_address, live_address))
    asyncio.run(run_smoke(SmokeOptions(orders, query, live, api_key, wait_seconds), say))


@commands.command(rich_help_panel=CARE)
def settings(
    process: Annotated[
        str, typer.Argument(help="order-api, worker, aggregator, fanout, query-api or operator")
    ],
) -> None:
    """List every setting of a process: its variable, its default, what it means."""
    from coffee_rt.embedded.tables import settings_table

    show(settings_table(process))


@commands.command(rich_help_panel=CARE)
def version() -> None:
    """Print the version."""
    from coffee_rt import __version__

    say(__version__)
