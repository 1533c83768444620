"""The benchmark's own arithmetic and outputs; its figures are never asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coffee_rt.bench.load import Job, run_job
from coffee_rt.bench.main import run
from coffee_rt.bench.report import write_html
from coffee_rt.bench.results import Figure, percentile, with_ratio, write_json, write_markdown


def figures() -> list[Figure]:
    return [
        with_ratio(Figure("post_single", "single POST", 700.0, "orders/s", ceiling=1000.0)),
        Figure("bytes", "bytes <of> an order", 88.8, "bytes", p50_ms=1.0, p99_ms=2.0),
    ]


def test_a_ratio_is_the_value_by_its_ceiling() -> None:
    assert figures()[0].ratio == 0.7
    assert with_ratio(Figure("x", "x", 1.0, "s")).ratio is None


def test_percentiles_are_values_that_occurred() -> None:
    assert percentile([], 0.5) == 0.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 3.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.99) == 4.0


def test_the_json_file_maps_names_to_figures(tmp_path: Path) -> None:
    write_json(figures(), tmp_path / "f.json")
    document = json.loads((tmp_path / "f.json").read_text())
    assert set(document) == {"post_single", "bytes"}
    assert document["post_single"]["value"] == 700.0
    assert document["post_single"]["ratio"] == 0.7
    assert document["bytes"]["p99_ms"] == 2.0


def test_reports_hold_every_figure_and_load_nothing(tmp_path: Path) -> None:
    write_html(figures(), tmp_path / "f.html", "two <cores>")
    page = (tmp_path / "f.html").read_text()
    assert "post_single" in page
    assert "bytes &lt;of&gt; an order" in page
    assert "<script" not in page
    assert "<svg" in page
    write_markdown(figures(), tmp_path / "f.md", "two cores")
    assert "| `bytes` |" in (tmp_path / "f.md").read_text()


def test_an_unknown_group_is_refused_with_those_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["nonsense"]) == 2
    assert "fanout_1000" in capsys.readouterr().err


async def test_load_is_sent_to_loopback_only() -> None:
    job = Job(port=80, path="/", connections=1, seconds=0.1, host="192.0.2.1", bodies=["{}"])
    with pytest.raises(ValueError, match="loopback"):
        await run_job(job)
