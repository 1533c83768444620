"""The pages say what the code does: tests they name exist, generated pages are current, links lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests import documents
from tests.chaos.scenario import load_scenarios

ROOT = documents.ROOT
GUARANTEES = ROOT / "docs" / "guarantees.md"
NAMED_TEST = re.compile(r"`([\w./-]+\.(?:py|ts))::([^`]+)`")
NAMED_SCENARIO = re.compile(r"`chaos:([\w-]+)`")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if "node_modules" not in path.parts
)


def named_tests() -> list[tuple[str, str]]:
    """(file below tests/ or the repository, name of the test), as the page names them."""
    return NAMED_TEST.findall(GUARANTEES.read_text())


def names_a_test(bullet: str) -> bool:
    return bool(NAMED_TEST.search(bullet) or NAMED_SCENARIO.search(bullet))


def names_in(path: Path) -> set[str]:
    text = path.read_text()
    if path.suffix == ".ts":
        return set(re.findall(r'^\s*(?:test|it)\("([^"]*)"', text, re.MULTILINE))
    return {
        node.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


def test_every_test_a_promise_names_exists() -> None:
    named = named_tests()
    assert len(named) > 50
    missing = []
    for file, name in named:
        path = ROOT / (file if file.endswith(".ts") else f"tests/{file}")
        if not path.is_file() or name not in names_in(path):
            missing.append(f"{file}::{name}")
    assert missing == []


def test_every_scenario_a_promise_names_exists() -> None:
    named = NAMED_SCENARIO.findall(GUARANTEES.read_text())
    assert len(named) > 10
    assert sorted(set(named) - set(load_scenarios())) == []


def test_every_promise_names_a_test() -> None:
    """A line of the promises without a test's name would be a wish."""
    text = GUARANTEES.read_text()
    promises = text[text.index("## Accepting") : text.index("## We still lose data if")]
    bullets = re.split(r"^- ", promises, flags=re.MULTILINE)[1:]
    assert len(bullets) > 40
    assert [bullet.splitlines()[0] for bullet in bullets if not names_a_test(bullet)] == []


@pytest.mark.parametrize("name", documents.PAGES)
def test_pages_from_the_code_are_current(name: str) -> None:
    page = (documents.DOCS / name).read_text()
    assert page == documents.PAGES[name](), "run: python -m tests.documents --write"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    broken = []
    for match in LINK.finditer(CODE_BLOCK.sub("", page.read_text())):
        target = (match[1] or match[2]).partition("#")[0]
        if not target or "://" in target or target.startswith("mailto:"):
            continue
        if not (page.parent / target).exists():
            broken.append(target)
    assert broken == []


def test_operations_names_only_metrics_and_settings_that_exist() -> None:
    text = (documents.DOCS / "operations.md").read_text()
    declared = (documents.DOCS / "settings.md").read_text()
    declared += (documents.DOCS / "metrics.md").read_text()
    named = set(re.findall(r"`(coffee_rt_\w+|COFFEE_RT_\w+)`", text))
    assert len(named) > 20
    assert sorted(name for name in named if f"`{name}`" not in declared) == []
