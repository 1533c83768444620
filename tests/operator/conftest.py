"""Tests of the operator against a real API server: those of this folder need the program that
`k8s-tests/cluster/cluster build` makes, and are there only where it was made."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.api_server import ApiServer, program

ROOT = Path(__file__).parents[2]
_numbers = itertools.count(1)

collect_ignore_glob = [] if program() else ["test_*.py"]


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A running API server that knows our definitions."""
    found = program()
    assert found is not None
    server = ApiServer(found, tmp_path_factory.mktemp("api-server"))
    try:
        server.start()
        for path in sorted((ROOT / "helm" / "coffee-rt" / "crds").glob("*.yaml")):
            for definition in yaml.safe_load_all(path.read_text()):
                server.define(definition)
        yield server
    finally:
        server.stop()


@pytest.fixture
def shop(api: ApiServer) -> str:
    """A namespace of this test's own."""
    name = f"shop-{next(_numbers)}"
    status, answer = api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    assert status == 201, answer
    return name
