"""What a newcomer runs first: up, doctor, simulate, bench."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from coffee_rt.commands.options import STARTING, DatabaseUrl, DataDir, RedisUrl, say

commands = typer.Typer()


@commands.command(rich_help_panel=STARTING)
def up(
    context: typer.Context,
    data_dir: Annotated[
        Path, typer.Option(help="Directory for the data, kept between runs; made when missing.")
    ] = Path("data"),
    host: Annotated[
        str,
        typer.Option(help="Address to listen on. Beyond this machine, API keys are required."),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the one address; 0 takes any free one.")
    ] = 8080,
    simulate: Annotated[
        float,
        typer.Option(min=0, metavar="N", help="Also play a café chain posting N orders a second."),
    ] = 0,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    views: Annotated[
        Path | None,
        typer.Option(help="Directory with YAML view definitions beside the two built in."),
    ] = None,
) -> None:
    """Start everything on this machine and print the dashboard's address.

    Brings its own PostgreSQL and Valkey unless addresses are given. Ctrl-C drains and stops all; the
    data stays for the next start. The address is also written to DATA_DIR/address, logs are in
    DATA_DIR/logs.
    """
    from coffee_rt.embedded.forks import Warm

    # Begun before our own imports: the processes' imports are the longest part of a start.
    warm = Warm(context.obj)
    warm.begin()

    from coffee_rt.embedded.plan import UpOptions
    from coffee_rt.embedded.up import run_up

    options = UpOptions(data_dir, host, port, simulate, redis_url, database_url, views)
    raise typer.Exit(run_up(options, say, warm))


@commands.command(rich_help_panel=STARTING)
def doctor(
    data_dir: DataDir = None, redis_url: RedisUrl = None, database_url: DatabaseUrl = None
) -> None:
    """Check servers and settings, and say how to mend what is unsafe (exit code 1 then)."""
    from coffee_rt.embedded.doctor import run_doctor
    from coffee_rt.embedded.reach import reach

    raise typer.Exit(asyncio.run(run_doctor(reach(data_dir, redis_url, database_url))))


@commands.command(rich_help_panel=STARTING)
def simulate(
    address: Annotated[
        str | None,
        typer.Argument(
            help="Where orders are posted.  [default: the running `up`, else http://127.0.0.1:8080]",
            show_default=False,
        ),
    ] = None,
    rate: Annotated[float, typer.Option(min=0.1, help="Orders a second, on average.")] = 50,
    seconds: Annotated[
        float, typer.Option(min=0, help="How long; 0 goes on until Ctrl-C.", show_default=True)
    ] = 0,
    seed: Annotated[int, typer.Option(help="The same seed plays the same orders.")] = 1,
    api_key: Annotated[
        str | None, typer.Option(envvar="COFFEE_RT_API_KEY", help="API key with the scope ingest.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Play a café chain: stores, drinks, a day's rhythm, late orders, retries, batches."""
    from coffee_rt.embedded.reach import reach_address
    from coffee_rt.embedded.simulate import SimulationOptions, run_simulation

    options = SimulationOptions(address or reach_address(data_dir), rate, seconds, seed, api_key)
    raise typer.Exit(asyncio.run(run_simulation(options, say)))


@commands.command(
    rich_help_panel=STARTING,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def bench(context: typer.Context) -> None:
    """Measure every path beside its ceiling and its baselines (see `bench --help`)."""
    from coffee_rt.bench.main import run

    raise typer.Exit(run(context.args))
