"""Snapshots made a moment ago, for others who want the same: many browsers connect at once. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coffee_rt.fanout.frames import Frame
from coffee_rt.fanout.protocol import Filter
from coffee_rt.fanout.subscriptions import Versions

SECONDS_MAX = 0.25
"""A snapshot made for one session serves others for so long: what came after follows as a delta."""
SNAPSHOTS_MAX = 64
BYTES_MAX = 64 << 20
"""Snapshots kept, and their bytes; beyond, all of them are forgotten. Whoever is being sent one keeps it."""

Key = tuple[int, Filter, int, int]
"""Tenant, filter, since, id."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`seq` and `versions` are where its channel was."""

    made_at: float
    seq: int
    versions: Versions
    frames: Sequence[Frame]
    size: int
    """Bytes of the frames."""


class SnapshotMemory:
    """Owned by one channel."""

    def __init__(self) -> None:
        self._kept: dict[Key, Snapshot] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, key: Key, now: float) -> Snapshot | None:
        """One that is still fresh."""
        known = self._kept.get(key)
        return known if known is not None and now - known.made_at < SECONDS_MAX else None

    def keep(self, key: Key, made: Snapshot) -> None:
        """For others; those that are too old for them go."""
        for known, snapshot in list(self._kept.items()):
            if made.made_at - snapshot.made_at >= SECONDS_MAX:
                del self._kept[known]
        size = made.size + sum(each.size for each in self._kept.values())
        if len(self._kept) >= SNAPSHOTS_MAX or size > BYTES_MAX:
            self._kept.clear()
        self._kept[key] = made

    def clear(self) -> None:
        self._kept.clear()
