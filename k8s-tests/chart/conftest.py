"""Tests of the chart need helm and no cluster. They are run by name: `pytest k8s-tests/chart`."""

from __future__ import annotations

import pytest
from rendering import Chart, Rendered


@pytest.fixture(scope="session")
def chart(helm: str) -> Chart:
    return Chart(helm)


@pytest.fixture(scope="session")
def plain(chart: Chart) -> Rendered:
    """The chart with nothing but its defaults."""
    return chart.render()
