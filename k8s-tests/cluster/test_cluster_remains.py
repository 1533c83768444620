"""Which files are a cluster's and which only what is left of one: pure, starts no program."""

from __future__ import annotations

from pathlib import Path

import pytest
from bare_cluster import cgroups, remains
from bare_cluster.places import CONTROL, NODES, Machine


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Machine, set[int]]:
    """Which processes each machine has, in place of the cgroups' files."""
    members: dict[Machine, set[int]] = {}
    monkeypatch.setattr(remains, "RUN", tmp_path / "run")
    monkeypatch.setattr(remains, "DATA", tmp_path / "data")
    monkeypatch.setattr(cgroups, "processes_of", lambda machine: members.get(machine, set()))
    return members


def test_machine_without_a_cluster_holds_no_dead_one(processes: dict[Machine, set[int]]) -> None:
    assert not remains.is_dead()


@pytest.mark.parametrize("folder", ["run", "data"])
def test_files_without_any_process_are_a_dead_cluster(
    processes: dict[Machine, set[int]], tmp_path: Path, folder: str
) -> None:
    (tmp_path / folder).mkdir()
    assert remains.is_dead()


@pytest.mark.parametrize("machine", [CONTROL, *NODES], ids=lambda machine: machine.name)
def test_one_machine_that_still_runs_keeps_the_cluster(
    processes: dict[Machine, set[int]], tmp_path: Path, machine: Machine
) -> None:
    (tmp_path / "run").mkdir()
    processes[machine] = {17}
    assert not remains.is_dead()
