"""Adapters meet logic in one place of each process: its wiring."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "services" / "coffee_rt"
PROCESSES = ("order_api", "worker", "aggregator", "fanout", "query_api", "operator")
WIRINGS = {"wiring.py", "repair.py", "redrive_command.py"}
"""`repair` is the wiring of the commands rebuild and audit, `redrive_command` that of redrive."""
PURE = {
    "contract",
    "view_contract",
    "intake_contract",
    "messages",
    "admission",
    "redrives",
    "amending",
    "view_changes",
}
"""Modules of streams, store and channels that speak to nothing."""


def adapters_imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        parts = node.module.split(".")
        if (
            parts[:1] == ["coffee_rt"]
            and parts[1:2]
            and parts[1] in ("streams", "store", "channels")
        ):
            names = parts[2:3] or [alias.name for alias in node.names]
            found.update(f"{parts[1]}.{name}" for name in names if name not in PURE)
    return found


@pytest.mark.parametrize("process", PROCESSES)
def test_adapters_are_imported_only_by_the_wiring(process: str) -> None:
    modules = sorted((SOURCE / process).glob("*.py"))
    assert modules
    guilty = {path.name: adapters_imported(path) for path in modules if path.name not in WIRINGS}
    assert {name: imported for name, imported in guilty.items() if imported} == {}
