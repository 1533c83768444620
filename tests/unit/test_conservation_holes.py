"""A shard's line of numbers: what no row accounts for is found, with its size and its place, and nothing else is."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from coffee_rt.conservation.holes import Hole, Line, Numbered, without

END = (10**6, 0)


def rows_of(sizes: Sequence[int], start: int = 0) -> list[Numbered]:
    """Entries of so many records, one after the other; at 1 ms each."""
    rows, counter = [], start
    for number, size in enumerate(sizes, start=1):
        counter += size
        rows.append(Numbered((number, 0), bytes([number]), counter, size))
    return rows


def walked(rows: Sequence[Numbered], *gaps: tuple[int, int], start: int | None = 0) -> Line:
    line = Line(gaps, [], start=start)
    line.walk(rows)
    return line


def test_rows_that_follow_each_other_have_no_hole() -> None:
    line = walked(rows_of([3, 1, 4]))
    line.end(8, END)
    assert (line.holes, line.repeated, line.reached) == ([], 0, 8)


def test_a_missing_row_is_a_hole_between_its_neighbours() -> None:
    first, _gone, third = rows_of([3, 5, 4])
    assert walked([first, third]).holes == [Hole(3, 8, first.entry, third.entry)]


def test_missing_rows_side_by_side_are_one_hole() -> None:
    rows = rows_of([1, 2, 3, 4])
    [hole] = walked([rows[0], rows[3]]).holes
    assert (hole.first, hole.last, hole.records) == (1, 6, 5)


def test_a_missing_first_row_is_seen_only_where_the_ledger_is_whole() -> None:
    rows = rows_of([2, 3])[1:]
    assert walked(rows).holes == [Hole(0, 2, (0, 0), rows[0].entry)]
    compacted = walked(rows, start=None)
    compacted.end(5, END)
    assert (compacted.holes, compacted.start) == ([], 2)


def test_a_missing_last_row_is_a_hole_up_to_what_was_acknowledged() -> None:
    line = walked(rows_of([2]))
    line.end(6, END)
    assert line.holes == [Hole(2, 6, (1, 0), END)]


def test_what_a_gap_entry_says_was_lost_is_no_hole() -> None:
    first, _gone, third = rows_of([3, 5, 4])
    assert walked([first, third], (3, 8)).holes == []
    [left] = walked([first, third], (3, 6)).holes
    assert (left.first, left.last) == (6, 8)
    assert [(hole.first, hole.last) for hole in walked([first, third], (4, 5)).holes] == [
        (3, 4),
        (5, 8),
    ]


def test_numbers_given_twice_are_counted_and_make_no_hole() -> None:
    """The log failed over to a counter of 4 and counted on from there."""
    rows = [*rows_of([3, 3]), Numbered((9, 0), b"again", 7, 3)]
    line = walked(rows)
    line.end(7, END)
    assert (line.repeated, line.holes, line.reached) == (2, [], 7)


def test_entries_without_records_are_passed_over() -> None:
    """Gap entries, and those of strangers."""
    stranger = Numbered((2, 0), b"stranger", 0, 0)
    first, second = rows_of([3, 4])
    line = walked([first, stranger, second])
    assert (line.holes, line.repeated, line.last) == ([], 0, second.entry)


def test_an_empty_ledger_that_is_whole_is_one_hole() -> None:
    line = walked([])
    line.end(5, END)
    assert line.holes == [Hole(0, 5, (0, 0), END)]


def test_an_empty_ledger_that_is_compacted_has_none() -> None:
    line = walked([], start=None)
    line.end(5, END)
    assert line.holes == []


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=30),
    st.sets(st.integers(0, 29)),
    st.integers(1, 7),
)
def test_holes_are_what_was_taken_away_however_the_rows_are_paged(
    sizes: list[int], gone: set[int], page: int
) -> None:
    rows = rows_of(sizes)
    left = [row for number, row in enumerate(rows) if number not in gone]
    line = Line([], [], start=0)
    for start in range(0, len(left), page):
        line.walk(left[start : start + page])
    line.end(rows[-1].counter, END)
    taken = {n for number in gone if number < len(rows) for n in _numbers(rows[number])}
    assert {n for hole in line.holes for n in range(hole.first + 1, hole.last + 1)} == taken
    assert line.repeated == 0


def test_parts_are_left_of_a_range() -> None:
    assert without((0, 10), []) == [(0, 10)]
    assert without((0, 10), [(0, 10)]) == []
    assert without((0, 10), [(-5, 3), (7, 20)]) == [(3, 7)]
    assert without((0, 10), [(2, 4), (3, 6)]) == [(0, 2), (6, 10)]
    assert without((0, 10), [(10, 12)]) == [(0, 10)]


@given(
    st.tuples(st.integers(0, 20), st.integers(0, 20)).filter(lambda span: span[0] < span[1]),
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 20)).map(lambda pair: tuple(sorted(pair)))
    ),
)
def test_a_range_without_others_is_their_difference(
    span: tuple[int, int], taken: list[tuple[int, int]]
) -> None:
    def numbers(ranges: Sequence[tuple[int, int]]) -> set[int]:
        return {number for low, high in ranges for number in range(low + 1, high + 1)}

    left = without(span, taken)
    assert numbers(left) == numbers([span]) - numbers(taken)
    assert len(numbers(left)) == sum(high - low for low, high in left)


def _numbers(row: Numbered) -> range:
    return range(row.first + 1, row.counter + 1)
