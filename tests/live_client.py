"""A client of docs/protocol.md in Python, as small as the protocol allows: what tests hold the server to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Row = list[Any]


class WentBack(AssertionError):
    """A version fell within an epoch."""


@dataclass
class LiveView:
    """What one subscription to a view knows. `apply` takes the server's messages in order."""

    id: int = 1
    epoch: str = ""
    versions: list[int] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: dict[tuple[Any, ...], Row] = field(default_factory=dict)
    is_reset: bool = True
    needs_resume: bool = False
    """A gap was seen: subscribe again with `resume`."""
    _parts: list[Row] = field(default_factory=list)

    def subscribe(self, channel: str, **options: Any) -> dict[str, Any]:
        """The message that begins or resumes."""
        self.needs_resume = False
        self._parts = []
        resume = {"epoch": self.epoch, "versions": self.versions}
        known = {} if self.is_reset else {"resume": resume}
        return {"type": "subscribe", "id": self.id, "channel": channel, **options, **known}

    def apply(self, message: dict[str, Any]) -> None:
        if message.get("id") != self.id:
            return
        kind = message["type"]
        if kind == "reset":
            self.is_reset = True
        elif kind == "snapshot":
            self._snapshot(message)
        elif kind == "versions" and not self.is_reset:
            self._raise(enumerate(message["versions"]))
        elif kind == "delta" and not self.is_reset:
            if any(previous > self.versions[lane] for lane, _, previous in message["lanes"]):
                self.needs_resume = True
                return
            self._merge(message["rows"])
            self._raise((lane, version) for lane, version, _ in message["lanes"])

    def _snapshot(self, message: dict[str, Any]) -> None:
        if message["part"] == 1:
            self._parts = []
        self._parts += message["rows"]
        if message["part"] < message["parts"]:
            return
        self.columns = message["columns"]
        is_same = not self.is_reset and self.epoch == message["epoch"]
        if is_same and any(
            theirs < ours for theirs, ours in zip(message["versions"], self.versions, strict=True)
        ):
            raise WentBack(f"snapshot at {message['versions']}, known {self.versions}")
        self.rows = {}
        self.epoch = message["epoch"]
        self.versions = list(message["versions"])
        self.is_reset = False
        self._merge(self._parts)
        self._parts = []

    def _merge(self, rows: list[Row]) -> None:
        version = self.columns.index("version")
        for row in rows:
            key = (*(cell for cell in row if isinstance(cell, str)), row[0])
            known = self.rows.get(key)
            if known is None or row[version] > known[version]:
                self.rows[key] = row

    def _raise(self, versions: Any) -> None:
        for lane, version in versions:
            self.versions[lane] = max(self.versions[lane], version)

    def values(self) -> dict[tuple[Any, ...], Row]:
        """(dimensions, bucket) -> measures."""
        return {key: row[1 + len(key) - 1 : -3] for key, row in self.rows.items()}
