"""API keys: add, list, revoke."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from coffee_rt.commands.options import (
    CARE,
    INT4_MAX,
    DatabaseUrl,
    DataDir,
    refuse,
    say,
    show,
)

commands = typer.Typer()
keys_app = typer.Typer(help="API keys: add, list, revoke.", no_args_is_help=True)
commands.add_typer(keys_app, name="keys", rich_help_panel=CARE)


@keys_app.command("add")
def keys_add(
    name: Annotated[str, typer.Argument(help="What the key is for, e.g. uptown-till-1.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="ingest, read or admin; may be repeated.  [default: ingest, read]"),
    ] = None,
    tenant: Annotated[
        int, typer.Option(min=0, max=INT4_MAX, help="Whose orders it posts and reads.")
    ] = 0,
    per_minute: Annotated[
        int | None,
        typer.Option(
            min=1, max=INT4_MAX, help="Requests a minute.  [default: no limit of its own]"
        ),
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a key and print it, once: only its hash is stored."""
    from coffee_rt.embedded import keys
    from coffee_rt.embedded.reach import reach

    target = reach(data_dir, database_url=database_url)
    request = keys.KeyRequest(name, frozenset(scope or ("ingest", "read")), tenant, per_minute)
    say(asyncio.run(keys.add_key(target.database, request)))


@keys_app.command("list")
def keys_list(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """List keys (never their secrets)."""
    from coffee_rt.embedded import keys
    from coffee_rt.embedded.reach import reach
    from coffee_rt.embedded.tables import keys_table

    target = reach(data_dir, database_url=database_url)
    show(keys_table(asyncio.run(keys.list_keys(target.database))))


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
        refuse(f"There is no key {key_id}, or it is revoked already. See: coffee-rt keys list")
    say(f"Key {key_id} is revoked.")
