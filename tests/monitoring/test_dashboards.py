"""The dashboards' JSON is what the code says, and each panel says what good looks like."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from coffee_rt.runtime.metrics import catalogue
from dashboards.grafana.__main__ import DASHBOARDS, FOLDER, text_of
from dashboards.grafana.parts import NARROWING, narrow
from tests import documents
from tests.monitoring.rules import RUNBOOKS, rules


def panels(name: str) -> list[dict[str, Any]]:
    """All but the headings of rows."""
    board = json.loads((FOLDER / name).read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_committed_json_is_current(name: str) -> None:
    current = (FOLDER / name).read_text()
    assert current == text_of(name), "run: python -m dashboards.grafana --write"


def test_no_other_json_is_shipped() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(DASHBOARDS)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_say_what_good_is_and_lie_on_the_grid_without_gaps(name: str) -> None:
    board = json.loads((FOLDER / name).read_text())
    filled: dict[int, int] = {}
    for panel in board["panels"]:
        place = panel["gridPos"]
        for row in range(place["y"], place["y"] + place["h"]):
            filled[row] = filled.get(row, 0) + place["w"]
    assert set(filled.values()) == {24}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert [panel["title"] for panel in panels(name) if "Good: " not in panel["description"]] == []


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_ask_only_for_metrics_that_exist(name: str) -> None:
    documents.import_metrics()
    known = {metric.name for metric in catalogue()}
    for panel in panels(name):
        for target in panel["targets"]:
            for asked in re.findall(r"\bcoffee_rt_\w+", target["expr"]):
                plain = re.sub(r"_(bucket|count|sum)$", "", asked)
                assert asked in known or plain in known, (panel["title"], asked)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_each_query_is_narrowed_to_the_release_chosen(name: str) -> None:
    for panel in panels(name):
        for target in panel["targets"]:
            selectors = re.findall(r"\b(?:coffee_rt_\w+|up)\b(.?)", target["expr"])
            assert selectors
            assert set(selectors) == {"{"}
            assert target["expr"].count(NARROWING) == len(selectors)


def test_narrowing_keeps_what_a_selector_has() -> None:
    assert narrow("up{}") == f"up{{{NARROWING}}}"
    assert narrow('up{a="b"}') == f'up{{{NARROWING}, a="b"}}'


@pytest.mark.parametrize("name", DASHBOARDS)
def test_each_alert_is_linked_from_a_panel_to_its_runbook(name: str) -> None:
    linked = {
        link["url"].rpartition("/")[2].removesuffix(".md")
        for panel in panels(name)
        for link in panel.get("links", ())
    }
    assert linked == {rule["alert"] for rule in rules()}
    assert all((RUNBOOKS / f"{alert}.md").is_file() for alert in linked)
