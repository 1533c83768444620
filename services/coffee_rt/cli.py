"""The `coffee-rt` command: `up` for a laptop, one command a process, and what an administrator needs.

Each command imports its part only when it runs, so that --help answers at once and a process loads nothing
of the others. Errors a person can mend are printed as a sentence, with exit code 2 for bad settings and 1
for everything else.
"""

from __future__ import annotations

import sys

import typer

from coffee_rt.commands import care, keys, letters, processes, starting, views
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
for _subject in (starting, processes, care, views, letters, keys):
    # Without a name of its own: its commands stand beside the others.
    app.add_typer(_subject.commands)


def main() -> None:
    """Entry of the command; errors a person can mend become a sentence."""
    try:
        # Itself, for the processes that `up` forks.
        app(obj=main)
    except SystemExit:
        raise
    except _told_plainly() as error:
        sys.stdout.flush()
        typer.echo(f"coffee-rt: {error}", err=True)
        sys.exit(1 if isinstance(error, CoffeeRtError) else 2)


def _told_plainly() -> tuple[type[Exception], ...]:
    # Evaluated only when something was raised: settings cost a third of a second to import.
    from coffee_rt.runtime.settings import SettingsError
    from coffee_rt.store.contract import BadData

    # BadData: a word of the command line that PostgreSQL can't hold, such as half a character.
    return (SettingsError, CoffeeRtError, BadData)


if __name__ == "__main__":
    main()
