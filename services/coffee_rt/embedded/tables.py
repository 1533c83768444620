"""Tables the commands print."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from rich.table import Table

from coffee_rt.embedded import plan
from coffee_rt.embedded.server_process import ServerProblem
from coffee_rt.runtime.environment import describe
from coffee_rt.runtime.settings import ProcessSettings

if TYPE_CHECKING:
    from coffee_rt.store.contract import ApiKey


PROCESSES = (*plan.PROCESSES, "operator")
"""All that have settings: those of `up`, and the one that only Kubernetes has."""


def settings_class(process: str) -> type[ProcessSettings]:
    """The settings class of a process by its command's name. Raises ServerProblem for another name."""
    if process not in PROCESSES:
        raise ServerProblem(f"{process!r} is no process; there are {', '.join(PROCESSES)}.")
    module = import_module(f"coffee_rt.{process.replace('-', '_')}.settings")
    for value in vars(module).values():
        if not isinstance(value, type) or not issubclass(value, ProcessSettings):
            continue
        if value.process.replace("_", "-") == process:
            return value
    raise ServerProblem(f"{process} has no settings class.")


def settings_table(process: str) -> Table:
    """Every setting of a process."""
    table = Table(
        "Variable", "Default", "Meaning", title=f"Settings of {process}", show_lines=False
    )
    table.columns[0].no_wrap = True
    for setting in describe(settings_class(process)):
        table.add_row(setting.name, setting.default, setting.help)
    return table


def keys_table(keys: Sequence[ApiKey]) -> Table:
    """API keys without anything secret."""
    table = Table("Key id", "Name", "Tenant", "Scopes", "Requests a minute", "State")
    for key in keys:
        limit = "-" if key.requests_per_minute is None else str(key.requests_per_minute)
        state = "revoked" if key.is_revoked else "works"
        scopes = ", ".join(sorted(key.scopes))
        table.add_row(key.key_id, key.name, str(key.tenant), scopes, limit, state)
    return table
