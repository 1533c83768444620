"""Progress where nobody looks at a terminal: few lines, and the last one of each thing."""

from __future__ import annotations

import io

import pytest

from coffee_rt.runtime.bars import PlainLines, bar_of, drawn_bars


class Told:
    """Plain lines, with a clock that is turned by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._file = io.StringIO()
        self.bars = PlainLines(self._file, lambda: self.seconds)

    def lines(self) -> list[str]:
        return self._file.getvalue().splitlines()


def test_a_bar_shows_how_far_something_is() -> None:
    assert bar_of(0, 3, 6) == "[......] 0 of 3 chunks"
    assert bar_of(2, 3, 6) == "[####..] 2 of 3 chunks"
    assert bar_of(0, 0, 6, "records") == "[######] 0 of 0 records"


def test_what_is_quick_gets_one_line() -> None:
    told = Told()
    for done in range(4):
        told.bars.show("hourly", done, 3)
    told.bars.show("hourly", 3, 3)
    assert told.lines() == [f"hourly: {bar_of(3, 3)}"]


def test_what_takes_long_gets_a_line_every_few_seconds() -> None:
    told = Told()
    for done in range(120):
        told.seconds = done / 10
        told.bars.show("shard 0", done, 120, "records")
    told.bars.show("shard 0", 120, 120, "records")
    assert [line.rpartition("] ")[2] for line in told.lines()] == [
        "50 of 120 records",
        "100 of 120 records",
        "120 of 120 records",
    ]


def test_each_thing_has_lines_of_its_own() -> None:
    told = Told()
    for label in ("hourly", "minutely"):
        told.bars.show(label, 0, 1)
        told.bars.show(label, 1, 1)
    assert [line.partition(":")[0] for line in told.lines()] == ["hourly", "minutely"]


def test_lines_go_to_standard_error_where_it_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with drawn_bars() as bars:
        bars.show("hourly", 2, 2)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"hourly: {bar_of(2, 2)}\n")
