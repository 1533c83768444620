"""One command a process; each loads nothing of the others."""

from __future__ import annotations

from importlib import import_module
from inspect import signature

import typer

from coffee_rt.commands.options import PROCESSES

commands = typer.Typer()


def _add_process(name: str, help: str) -> None:  # noqa: A002
    def run_process() -> None:
        from coffee_rt.embedded.tables import settings_class
        from coffee_rt.runtime.environment import load

        run = import_module(f"coffee_rt.{name.replace('-', '_')}.main").run
        # An entry takes its settings, or loads them itself.
        arguments = [load(settings_class(name))] if signature(run).parameters else []
        raise typer.Exit(run(*arguments))

    commands.command(name, help=help, rich_help_panel=PROCESSES)(run_process)


for _name, _help in (
    ("order-api", "Accept orders over HTTP and append them to the log."),
    ("worker", "Move the log into PostgreSQL, exactly once."),
    ("aggregator", "Fold deltas into views and publish what changed."),
    ("fanout", "Push live updates to browsers and serve the dashboard."),
    ("query-api", "Answer reads of views and orders."),
    ("operator", "On Kubernetes: tend partitions, floors, views, redrives and replays."),
):
    _add_process(_name, _help)
