"""One platform for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.running import Platform


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    running = Platform(tmp_path_factory.mktemp("platform") / "data")
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()
