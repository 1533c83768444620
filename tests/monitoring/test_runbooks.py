"""Each runbook has its five parts, names only what exists, and its queries run."""

from __future__ import annotations

import re
from pathlib import Path

import asyncpg
import pytest

from tests import documents
from tests.monitoring.rules import RUNBOOKS, rules

PARTS = [
    "What it means",
    "Is data at risk?",
    "Look",
    "Do",
    "It is over when",
]
OPERATIONS = documents.DOCS / "operations"
PAGES = [
    *sorted(RUNBOOKS.glob("*.md")),
    OPERATIONS / "monitoring.md",
    OPERATIONS / "what-to-do-when.md",
]


def blocks(page: Path, language: str) -> list[str]:
    """The page's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    written = {page.stem for page in RUNBOOKS.glob("*.md")} - {"README"}
    assert written == {rule["alert"] for rule in rules()}
    index = (RUNBOOKS / "README.md").read_text()
    assert [name for name in written if f"]({name}.md)" not in index] == []


@pytest.mark.parametrize("alert", sorted({rule["alert"] for rule in rules()}))
def test_a_runbook_has_all_its_parts(alert: str) -> None:
    text = (RUNBOOKS / f"{alert}.md").read_text()
    assert text.startswith(f"# {alert}\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == PARTS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_metrics_and_settings_named_exist(page: Path) -> None:
    declared = documents.metrics_page() + documents.settings_page()
    named = set(re.findall(r"\bcoffee_rt_\w+|\bCOFFEE_RT_\w+", page.read_text()))
    assert sorted(name for name in named if f"`{name}`" not in declared) == []


async def test_the_sql_of_the_runbooks_runs(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    ran = 0
    try:
        for page in PAGES:
            text = page.read_text()
            statements = [each for block in blocks(page, "sql") for each in block.split(";")]
            statements += re.findall(r"`(SELECT \* FROM \w+)`", text)
            for statement in filter(str.strip, statements):
                await connection.fetch(statement)
                ran += 1
    finally:
        await connection.close()
    assert ran > 6
