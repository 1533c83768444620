"""Reads what a child writes to its log, to show on the terminal what went wrong and only that.

Our processes write a JSON object a line; errors among them are shown as one plain line each, a few a
minute at most. Lines of other programs are left in their file.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

SHOWN_MAX = 5
"""Errors shown in a span; the rest only counts: a failing server must not flood the terminal."""

SPAN_SECONDS = 30.0
_READ_BYTES_MAX = 256 << 10


class LogTail:
    """A place in a log file, moving on with what was read. Starts at the end of the file."""

    def __init__(self, log: Path, *, from_start: bool = False) -> None:
        self._log = log
        self._offset = 0 if from_start else self._size()
        self._shown = 0
        self._hidden = 0
        self._span_start = time.monotonic()

    def new_errors(self) -> list[str]:
        """Errors written since the last call, in plain words."""
        lines = []
        for event in self._events():
            if event.get("level") not in ("error", "critical"):
                continue
            if self._shown < SHOWN_MAX:
                self._shown += 1
                lines.append(_describe(event))
            else:
                self._hidden += 1
        if time.monotonic() - self._span_start > SPAN_SECONDS:
            if self._hidden:
                lines.append(f"{self._hidden} more errors in its log: {self._log}")
            self._shown = self._hidden = 0
            self._span_start = time.monotonic()
        return lines

    def last_reason(self) -> str | None:
        """Why the process said it could not start, when it did."""
        reasons = [str(event["reason"]) for event in self._events() if "reason" in event]
        return reasons[-1] if reasons else None

    def _events(self) -> list[dict[str, Any]]:
        size = self._size()
        if size < self._offset:
            # The file was cut after it grew too long.
            self._offset = 0
        if size == self._offset:
            return []
        start = max(self._offset, size - _READ_BYTES_MAX)
        with self._log.open("rb") as file:
            file.seek(start)
            text = file.read(size - start)
        whole, _, _rest = text.rpartition(b"\n")
        self._offset = start + len(whole) + (1 if whole else 0)
        return [event for line in whole.splitlines() if (event := _parse(line)) is not None]

    def _size(self) -> int:
        try:
            return self._log.stat().st_size
        except OSError:
            return 0


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.startswith(b"{"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _describe(event: dict[str, Any]) -> str:
    detail = event.get("reason") or event.get("error") or ""
    if not detail and event.get("exception"):
        detail = str(event["exception"]).strip().rpartition("\n")[2]
    text = str(event.get("event", "error"))
    return f"{text}: {detail}" if detail else text
