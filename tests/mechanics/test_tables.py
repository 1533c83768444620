"""The tables stay true: every mutation still applies, every test it names exists, the page says the same.

That the tests fail under the mutations is seen by `python -m tests.mechanics`, which takes minutes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mechanics.mechanism import PACKAGE, ROOT, Mechanism
from tests.mechanics.tables import MECHANISMS, PAGE, mechanics_page


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda each: each.name)
def test_a_mutation_applies_to_the_code_as_it_is(mechanism: Mechanism, tmp_path: Path) -> None:
    for path in {edit.path for edit in mechanism.undo}:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text((PACKAGE / path).read_text())
    for edit in mechanism.undo:
        edit.apply(tmp_path)
        if edit.path.endswith(".py"):
            compile((tmp_path / edit.path).read_text(), edit.path, "exec")


def test_every_test_a_mechanism_names_exists() -> None:
    for mechanism in MECHANISMS:
        assert mechanism.tests
        for test in mechanism.tests:
            path, _, name = test.partition("::")
            assert f"def {name}(" in (ROOT / "tests" / path).read_text(), test


def test_no_two_mechanisms_have_one_name() -> None:
    names = [mechanism.name for mechanism in MECHANISMS]
    assert len(names) == len(set(names))


def test_the_page_lists_every_mechanism() -> None:
    assert PAGE.read_text() == mechanics_page(), (
        "docs/mechanics-tests.md is out of date: python -m tests.mechanics --write"
    )
