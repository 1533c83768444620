"""Ranges (first, last] of a shard's count, for the store in memory. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Range = tuple[int, int]


def count_of(ranges: Iterable[Range]) -> int:
    """How many numbers are in any of them. One that begins below 0 is a stranger's and has none."""
    total = reached = 0
    for first, last in sorted(ranges):
        if first >= 0:
            total += max(0, last - max(first, reached))
            reached = max(reached, last)
    return total


def shared_count(ranges: Sequence[Range], others: Sequence[Range]) -> int:
    """How many numbers are in both."""
    return count_of(ranges) + count_of(others) - count_of([*ranges, *others])


def missing_count(counter: int, ranges: Iterable[Range]) -> int:
    """How many numbers from 1 to `counter` are in none of them."""
    return counter - count_of(
        (first, min(last, counter)) for first, last in ranges if first < counter
    )
