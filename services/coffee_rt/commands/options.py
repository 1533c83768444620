"""What several commands share: panels of --help, options, and how a command speaks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

STARTING = "Start here"
PROCESSES = "Processes (settings from the environment: coffee-rt settings PROCESS)"
CARE = "Care"

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

INT4_MAX = 2**31 - 1
INT8_MAX = 2**63 - 1
"""What PostgreSQL keeps tenants and rates in, and numbers of rows."""

ViewName = Annotated[str, typer.Argument(help="Name of the view, e.g. hourly.")]
Since = Annotated[str | None, typer.Option("--from", help="From this time (ISO 8601).")]
Until = Annotated[str | None, typer.Option("--to", help="Up to this time (ISO 8601).")]


def say(line: str) -> None:
    """A line for people and for pipes; flushed, because a reader may wait for it."""
    typer.echo(line)
    sys.stdout.flush()


def show(table: object) -> None:
    """A table, as wide as the terminal."""
    from rich.console import Console

    Console().print(table)


def refuse(sentence: str) -> NoReturn:
    """End with exit code 1 and what to do instead."""
    typer.echo(f"coffee-rt: {sentence}", err=True)
    raise typer.Exit(1)
