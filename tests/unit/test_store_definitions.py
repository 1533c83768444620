"""View definitions as files: what is read, and how a mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from coffee_rt.domain.view_documents import parse_view
from coffee_rt.errors import Rejected
from coffee_rt.store.definitions import load_definitions
from coffee_rt.store.view_tables import decode_definition, encode_definition

CODE = Path(__file__).parents[2] / "services" / "coffee_rt"

GOOD = "name: daily\nbucket: day\nmeasures: {n: count}\n"


def test_built_in_views_are_valid_and_survive_the_catalogue() -> None:
    definitions = load_definitions()
    assert len(definitions) == 2
    for definition in definitions:
        assert decode_definition(encode_definition(definition)) == definition
        assert parse_view(definition.to_dict()) == definition


def test_no_code_knows_a_built_in_views_name() -> None:
    """Settings and pages may name a view; what stores, folds and pushes must not."""
    names = [definition.name for definition in load_definitions()]
    for package in ("domain", "store", "channels", "aggregator", "worker"):
        for path in (CODE / package).rglob("*.py"):
            lines = path.read_text().splitlines()
            found = [line for line in lines if any(f'"{name}"' in line for name in names)]
            assert found == [], path


def test_own_definitions_join_the_built_in_ones(tmp_path: Path) -> None:
    (tmp_path / "daily.yaml").write_text(GOOD)
    (tmp_path / "notes.txt").write_text("not a view")
    assert "daily" in [definition.name for definition in load_definitions(tmp_path)]


def test_an_own_file_replaces_a_built_in_view(tmp_path: Path) -> None:
    name = load_definitions()[0].name
    (tmp_path / "mine.yml").write_text(GOOD.replace("daily", name))
    definitions = {definition.name: definition for definition in load_definitions(tmp_path)}
    assert len(definitions) == 2
    assert definitions[name].bucket.value == "day"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (GOOD.replace("day", "week"), "bad.yaml at /bucket"),
        ("name: [", "bad.yaml, line"),
        ("- a list", "bad.yaml at /"),
        (GOOD + "lanes: 1000\n", "bad.yaml at /lanes"),
        (GOOD + "colour: red\n", "bad.yaml at /colour"),
        (GOOD.replace("count", "{avg: price}"), "bad.yaml at /measures/n"),
        ("\x00", "bad.yaml"),
        ("name: " + "x" * 70_000, "bad.yaml: is larger"),
        ("a: &a [*a]\n", "bad.yaml"),
        ("name: 2026-13-45\n", "bad.yaml: is not YAML"),
        ("lanes: " + "1" * 5000, "bad.yaml: is not YAML"),
        ("[" * 5000, "bad.yaml: is not YAML"),
    ],
)
def test_a_mistake_is_told_with_file_and_place(tmp_path: Path, source: str, told: str) -> None:
    (tmp_path / "bad.yaml").write_text(source)
    with pytest.raises(Rejected) as caught:
        load_definitions(tmp_path)
    assert told in caught.value.detail


def test_two_own_files_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yaml").write_text(GOOD)
    with pytest.raises(Rejected, match=r"a\.yaml already defines"):
        load_definitions(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="is not a folder"):
        load_definitions(tmp_path / "nowhere")
