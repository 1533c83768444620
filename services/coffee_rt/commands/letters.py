"""Care for dead letters: list, show, edit, send again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from coffee_rt.commands.options import (
    CARE,
    INT4_MAX,
    INT8_MAX,
    DatabaseUrl,
    DataDir,
    Since,
    Until,
    say,
    show,
)

if TYPE_CHECKING:
    from coffee_rt.embedded.reach import ToolSettings
    from coffee_rt.store.letter_desk import PostgresLetterDesk

T = TypeVar("T")

commands = typer.Typer()
letters_app = typer.Typer(help="Dead letters: list, show, edit, send again.", no_args_is_help=True)
commands.add_typer(letters_app, name="dead-letters", rich_help_panel=CARE)

LetterId = Annotated[int, typer.Argument(min=1, max=INT8_MAX, help="The letter's number.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@letters_app.command("redrive")
@commands.command(rich_help_panel=CARE)
def redrive(
    ids: Annotated[
        list[int] | None,
        typer.Option("--id", min=1, max=INT8_MAX, help="A dead letter's number; may be repeated."),
    ] = None,
    code: Annotated[
        str | None, typer.Option(help="Letters of one reason, e.g. unstorable-entry.")
    ] = None,
    tenant: Annotated[
        int | None, typer.Option(min=0, max=INT4_MAX, help="Letters of one tenant.")
    ] = None,
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


@letters_app.command("list")
def list_letters(
    code: Annotated[str | None, typer.Option(help="Letters of one reason.")] = None,
    tenant: Annotated[
        int | None, typer.Option(min=0, max=INT4_MAX, help="Letters of one tenant.")
    ] = None,
    start: Since = None,
    end: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Most letters, newest first.")] = 50,
    before: Annotated[
        int | None, typer.Option(min=1, max=INT8_MAX, help="Only below this number.")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """List the letters that wait, newest first. --from and --to are times of burial."""
    from coffee_rt.operator.redrive_plan import read_request
    from coffee_rt.query_api.answers import dead_letter_body

    choice = {"code": code, "tenant": tenant, "from": start, "to": end, "all": True}
    selection = read_request({"letters": choice}).selection
    found = _at_desk(
        data_dir, database_url, lambda desk, settings: desk.page(selection, limit, before)
    )
    bodies = [dead_letter_body(letter) | {"tenant": letter.tenant} for letter in found]
    if as_json:
        _say_json(bodies)
    elif bodies:
        _show_list(bodies)
    else:
        say("No dead letter matches.")


@letters_app.command("show")
def show_letter(
    letter_id: LetterId,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Show a letter: its reason, its bytes, its order where it can be read, what became of it."""

    async def find(desk: PostgresLetterDesk, settings: ToolSettings) -> dict[str, Any]:
        return _whole(await desk.find(None, letter_id), settings)

    body = _at_desk(data_dir, database_url, find)
    if as_json:
        _say_json(body)
        return
    for name, value in body.items():
        say(f"{name:12} {'-' if value is None else _json(value)}")


@letters_app.command("edit")
def edit_letter(
    letter_id: LetterId,
    file: Annotated[
        typer.FileBinaryRead, typer.Argument(help="The order as JSON; - for standard input.")
    ],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Keep an amended order beside a letter's bytes: a redrive stores it in their place.

    It is written and checked like a posted order. What came stays as it is.
    """
    from time import time

    from coffee_rt.store.amending import ORDER_BYTES_MAX, LetterAmender

    # One byte more than is taken: a longer file is refused, and not read to its end.
    text = file.read(ORDER_BYTES_MAX + 1)

    async def amend(desk: PostgresLetterDesk, settings: ToolSettings) -> dict[str, Any]:
        amender = LetterAmender(settings.currency_decimals)
        letter = await desk.amend(
            None,
            letter_id,
            lambda letter: amender.order(letter, text, int(time() * 1000)),
            f"command:uid {os.getuid()}",
        )
        return _whole(letter, settings)

    order = _at_desk(data_dir, database_url, amend)["amended"]["order"]
    say(f"Letter {letter_id} is now the order {order['order_id']}. Send it:")
    say(f"  coffee-rt dead-letters redrive --id {letter_id}")


def _at_desk(
    data_dir: Any,
    database_url: str | None,
    work: Callable[[PostgresLetterDesk, ToolSettings], Awaitable[T]],
) -> T:
    from coffee_rt.embedded.reach import reach
    from coffee_rt.store.letter_desk import PostgresLetterDesk
    from coffee_rt.store.pool import create_pool

    settings = reach(data_dir, database_url=database_url)

    async def run() -> T:
        pool = await create_pool(settings.database, application_name="coffee-rt-letters")
        try:
            return await work(PostgresLetterDesk(pool), settings)
        finally:
            await pool.close()

    return asyncio.run(run())


def _whole(letter: Any, settings: ToolSettings) -> dict[str, Any]:
    from coffee_rt.query_api.answers import whole_letter_body

    body = whole_letter_body(letter, settings.currency_decimals)
    return {"id": body.pop("id"), "tenant": letter.tenant, **body}


def _show_list(bodies: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("id", "tenant", "code", "detail", "order", "buried")
    for body in bodies:
        # What bad data says of itself must not become colours, or anything else, of a terminal.
        cells = (body["code"], body["detail"], body["order_id"] or "", body["created_at"])
        plain = (escape("".join(c if c.isprintable() else "?" for c in cell)) for cell in cells)
        table.add_row(str(body["id"]), str(body["tenant"]), *plain)
    show(table)


def _say_json(body: Any) -> None:
    say(_json(body))


def _json(body: Any) -> str:
    import json

    # ASCII only, and no control characters, whatever a letter holds.
    return json.dumps(body, ensure_ascii=True)
