"""Which numbers of a shard's count are accounted for, and which are not: pure.

Every entry carries the count up to and with its own records, so the ledger's rows (and gaps, and entries
still in the log) are ranges of one line of numbers. A hole between two of them is an entry that is missing:
when it was written and how many records it had are known from its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from coffee_rt.store.contract import EntryKey


@dataclass(frozen=True, slots=True)
class Numbered:
    """An entry by its numbers: records (counter - records, counter]."""

    entry: EntryKey
    batch_id: bytes
    counter: int
    records: int

    @property
    def first(self) -> int:
        """The number just below its first record's."""
        return self.counter - self.records


@dataclass(frozen=True, slots=True)
class Hole:
    """Numbers (first, last] that no row accounts for, written between two entries."""

    first: int
    last: int
    after: EntryKey
    before: EntryKey

    @property
    def records(self) -> int:
        return self.last - self.first


@dataclass(slots=True)
class Line:
    """A shard's line of numbers, walked in the order of the entries. Owned by one audit."""

    gaps: Sequence[tuple[int, int]]
    """What gap entries say was lost: (from, to]."""
    holes: list[Hole]
    repeated: int = 0
    """Records whose numbers were given before: the log failed over and counted on from less."""
    start: int | None = None
    """The number just below the first row's: up to it the ledger is compacted."""
    reached: int = 0
    last: EntryKey = (0, 0)

    def walk(self, rows: Iterable[Numbered]) -> None:
        """Go on over rows, oldest first."""
        for row in rows:
            if row.records <= 0:
                continue
            if self.start is None:
                self.start = self.reached = row.first
            if row.first > self.reached:
                self._note(self.reached, row.first, row.entry)
            self.repeated += max(0, min(self.reached, row.counter) - row.first)
            self.reached = max(self.reached, row.counter)
            self.last = row.entry

    def end(self, counter: int, below: EntryKey) -> None:
        """All up to `counter` was acknowledged below that entry."""
        if self.start is None:
            self.start = self.reached = counter
        if counter > self.reached:
            self._note(self.reached, counter, below)
            self.reached = counter

    def _note(self, first: int, last: int, before: EntryKey) -> None:
        for low, high in without((first, last), self.gaps):
            self.holes.append(Hole(low, high, self.last, before))


def without(span: tuple[int, int], taken: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of (from, to] that are in none of the taken ranges."""
    left = [span]
    for low, high in taken:
        left = [
            part
            for first, last in left
            for part in ((first, min(last, low)), (max(first, high), last))
            if part[0] < part[1]
        ]
    return left
