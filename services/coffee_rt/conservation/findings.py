"""What an audit found, as it is told: lines for people, a document for machines. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from coffee_rt.domain.times import format_instant


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, with the place of it."""

    kind: str
    """missing-entry, unstored-entry, missing-ledger-row, missing-orders, extra-orders, unlocated, view-group,
    intake-unaccounted."""
    records: int
    detail: str
    shard: int | None = None
    view: str | None = None
    batch_ids: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()
    """The entry, or the two between which it was."""
    numbers: tuple[int, int] | None = None
    """(from, to] of the shard's count of accepted records."""
    start: str | None = None
    end: str | None = None
    """When it was accepted (ISO 8601)."""
    order_ids: tuple[str, ...] = ()

    def line(self) -> str:
        """For a terminal."""
        place = f"shard {self.shard}" if self.view is None else f"view {self.view}"
        parts = [f"  {place}: {self.kind}, {self.records} records: {self.detail}"]
        if self.numbers:
            parts.append(f"numbers {self.numbers[0] + 1} to {self.numbers[1]}")
        if self.entries:
            parts.append("entry " + " .. ".join(self.entries))
        if self.batch_ids:
            parts.append("batch " + ", ".join(self.batch_ids))
        if self.start:
            parts.append(f"accepted {self.start}" + (f" to {self.end}" if self.end else ""))
        if self.order_ids:
            parts.append("orders " + ", ".join(self.order_ids))
        return "; ".join(parts)


@dataclass(slots=True)
class Report:
    """The result of one audit."""

    findings: list[Finding] = field(default_factory=list)
    shards: list[dict[str, Any]] = field(default_factory=list)
    views: list[dict[str, Any]] = field(default_factory=list)
    intake: dict[str, int] | None = None
    """Records the database's intake ever took, and what became of them."""

    def document(self) -> dict[str, Any]:
        """As --json writes it."""
        found = [
            {name: value for name, value in asdict(each).items() if value not in (None, ())}
            for each in self.findings
        ]
        return {
            "is_clean": not self.findings,
            "shards": self.shards,
            "intake": self.intake,
            "views": self.views,
            "findings": found,
        }


def instant(ms: int) -> str:
    """ISO 8601 of Unix milliseconds."""
    return format_instant(ms * 1000)
