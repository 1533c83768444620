"""The `coffee-rt` command: `up` for a laptop, one command a process, and what an administrator needs.

Each command imports its part only when it runs, so that --help answers at once and a process loads nothing
of the others. Errors a person can mend are printed as a sentence, with exit code 2 for bad settings and 1
for everything else.
"""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Annotated

import typer

from coffee_rt.errors import CoffeeRtError

app = typer.Typer(
    name="coffee-rt",
    help=(
        "Streaming analytics for orders: accepted once, stored once, seen while it happens.\n\n"
        "New here? `coffee-rt up --simulate 50` starts everything on this machine, with a café chain "
        "posting 50 orders a second, and prints the dashboard's address."
    ),
    no_args_is_help=True,
    rich_markup_mode="markdown",
    # Locals in a traceback would show passwords.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys_app = typer.Typer(help="API keys: add, list, revoke.", no_args_is_help=True)

_START = "Start here"
_PROCESSES = "Processes (settings from the environment: coffee-rt settings PROCESS)"
_CARE = "Care"
app.add_typer(keys_app, name="keys", rich_help_panel=_CARE)

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Directory of a running `coffee-rt up`.  [default: ./data, when one runs there]",
        show_default=False,
    ),
]
RedisUrl = Annotated[
    str | None, typer.Option("--redis-url", help="Redis or Valkey, e.g. redis://localhost:6379/0")
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option("--database-url", help="PostgreSQL, e.g. postgresql://me:secret@localhost/coffee"),
]

ViewName = Annotated[str, typer.Argument(help="Name of the view, e.g. hourly.")]
Since = Annotated[str | None, typer.Option("--from", help="From this time (ISO 8601).")]
Until = Annotated[str | None, typer.Option("--to", help="Up to this time (ISO 8601).")]


@app.command(rich_help_panel=_START)
def up(
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
    warm = Warm(main)
    warm.begin()

    from coffee_rt.embedded.plan import UpOptions
    from coffee_rt.embedded.up import run_up

    options = UpOptions(data_dir, host, port, simulate, redis_url, database_url, views)
    raise typer.Exit(run_up(options, _say, warm))


@app.command(rich_help_panel=_START)
def doctor(
    data_dir: DataDir = None, redis_url: RedisUrl = None, database_url: DatabaseUrl = None
) -> None:
    """Check servers and settings, and say how to mend what is unsafe (exit code 1 then)."""
    from coffee_rt.embedded.doctor import run_doctor
    from coffee_rt.embedded.reach import reach

    raise typer.Exit(asyncio.run(run_doctor(reach(data_dir, redis_url, database_url))))


@app.command(rich_help_panel=_START)
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
    raise typer.Exit(asyncio.run(run_simulation(options, _say)))


@app.command(
    rich_help_panel=_START,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def bench(context: typer.Context) -> None:
    """Measure every path beside its ceiling and its baselines (see `bench --help`)."""
    from coffee_rt.bench.main import run

    raise typer.Exit(run(context.args))


def _add_process(name: str, help: str) -> None:  # noqa: A002
    def run_process() -> None:
        from coffee_rt.embedded.tables import settings_class
        from coffee_rt.runtime.settings import load

        run = import_module(f"coffee_rt.{name.replace('-', '_')}.main").run
        # An entry takes its settings, or loads them itself.
        arguments = [load(settings_class(name))] if signature(run).parameters else []
        raise typer.Exit(run(*arguments))

    app.command(name, help=help, rich_help_panel=_PROCESSES)(run_process)


for _name, _help in (
    ("order-api", "Accept orders over HTTP and append them to the log."),
    ("worker", "Move the log into PostgreSQL, exactly once."),
    ("aggregator", "Fold deltas into views and publish what changed."),
    ("fanout", "Push live updates to browsers and serve the dashboard."),
    ("query-api", "Answer reads of views and orders."),
    ("operator", "On Kubernetes: tend partitions, floors, views, redrives and replays."),
):
    _add_process(_name, _help)


@app.command(rich_help_panel=_CARE)
def migrate(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Bring the database to this release's schema. Safe to repeat, and from several at once."""
    from coffee_rt.embedded.migrate import MigrateSettings, run_migrate
    from coffee_rt.embedded.reach import reach_as

    target = reach_as(MigrateSettings, data_dir, database_url=database_url)
    asyncio.run(run_migrate(target, _say))


@app.command(rich_help_panel=_CARE)
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
    asyncio.run(run_smoke(SmokeOptions(orders, query, live, api_key, wait_seconds), _say))


@app.command(rich_help_panel=_CARE)
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


@app.command(rich_help_panel=_CARE)
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


@app.command(rich_help_panel=_CARE)
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
    raise typer.Exit(asyncio.run(run_redrive(request, target.database, _say)))


@app.command("drop-view", rich_help_panel=_CARE)
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


@app.command(rich_help_panel=_CARE)
def settings(
    process: Annotated[
        str, typer.Argument(help="order-api, worker, aggregator, fanout, query-api or operator")
    ],
) -> None:
    """List every setting of a process: its variable, its default, what it means."""
    from coffee_rt.embedded.tables import settings_table

    _print(settings_table(process))


@app.command(rich_help_panel=_CARE)
def version() -> None:
    """Print the version."""
    from coffee_rt import __version__

    _say(__version__)


@keys_app.command("add")
def keys_add(
    name: Annotated[str, typer.Argument(help="What the key is for, e.g. uptown-till-1.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="ingest, read or admin; may be repeated.  [default: ingest, read]"),
    ] = None,
    tenant: Annotated[int, typer.Option(min=0, help="Whose orders it posts and reads.")] = 0,
    per_minute: Annotated[
        int | None, typer.Option(min=1, help="Requests a minute.  [default: no limit of its own]")
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a key and print it, once: only its hash is stored."""
    from coffee_rt.embedded import keys
    from coffee_rt.embedded.reach import reach

    target = reach(data_dir, database_url=database_url)
    request = keys.KeyRequest(name, frozenset(scope or ("ingest", "read")), tenant, per_minute)
    _say(asyncio.run(keys.add_key(target.database, request)))


@keys_app.command("list")
def keys_list(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """List keys (never their secrets)."""
    from coffee_rt.embedded import keys
    from coffee_rt.embedded.reach import reach
    from coffee_rt.embedded.tables import keys_table

    target = reach(data_dir, database_url=database_url)
    _print(keys_table(asyncio.run(keys.list_keys(target.database))))


@keys_app.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="The id between crt_ and the second underscore.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Revoke a key; processes notice within seconds."""
    from coffee_rt.embedded import keys
    from coffee_rt.embedded.reach import reach

    target = reach(data_dir, database_url=database_url)
    if not asyncio.run(keys.revoke_key(target.database, key_id)):
        _fail(f"There is no key {key_id}, or it is revoked already. See: coffee-rt keys list")
    _say(f"Key {key_id} is revoked.")


def main() -> None:
    """Entry of the command; errors a person can mend become a sentence."""
    try:
        app()
    except SystemExit:
        raise
    except _told_plainly() as error:
        sys.stdout.flush()
        typer.echo(f"coffee-rt: {error}", err=True)
        sys.exit(1 if isinstance(error, CoffeeRtError) else 2)


def _told_plainly() -> tuple[type[Exception], ...]:
    # Evaluated only when something was raised: settings cost a third of a second to import.
    from coffee_rt.runtime.settings import SettingsError

    return (SettingsError, CoffeeRtError)


def _say(line: str) -> None:
    typer.echo(line)
    sys.stdout.flush()


def _print(table: object) -> None:
    from rich.console import Console

    Console().print(table)


def _fail(sentence: str) -> None:
    typer.echo(f"coffee-rt: {sentence}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    main()
