"""A seed of the chaos harness makes the same schedule again, and no scenario draws past it."""

from __future__ import annotations

import ast
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from tests.chaos.platform import SERVERS
from tests.chaos.running import seed_of
from tests.chaos.scenarios.random_schedule import SHAPE, Round, rounds

CHAOS = Path(__file__).parents[1] / "chaos"
LINKS = {(part, server) for part in SHAPE.parts for server in SERVERS}


def drawn(seed: int) -> list[Round]:
    return list(islice(rounds(Random(seed), LINKS, SHAPE.parts), 200))


def test_a_seed_draws_the_same_faults_again() -> None:
    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)


def test_a_scenarios_seed_does_not_depend_on_what_ran_before() -> None:
    assert seed_of(1, "kill-worker") == seed_of(1, "kill-worker")
    assert len({seed_of(1, "kill-worker"), seed_of(2, "kill-worker"), seed_of(1, "random")}) == 3


@pytest.mark.parametrize(
    "module", sorted(CHAOS.glob("scenarios/*.py")), ids=lambda module: str(module.stem)
)
def test_no_scenario_draws_past_its_seed(module: Path) -> None:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            assert not {name.name for name in node.names} & {"random", "secrets"}
        if isinstance(node, ast.ImportFrom):
            # The class is what `world.chance` is of; anything else is the generator of the whole process.
            drawing = node.module in ("random", "secrets")
            assert not drawing or {name.name for name in node.names} == {"Random"}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "Random", "a scenario draws from `world.chance`"
