"""Which lanes an instance folds: pure knowledge of members, marks and waits.

Each lane belongs to one of the live instances by rendezvous hashing: when one comes or goes, only its own
lanes move. Ownership is about not disturbing each other, never about correctness: a lane's row lock keeps
two folds apart, so a lane that its owner leaves waiting is simply folded by whoever notices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import md5

from coffee_rt.store.view_contract import LaneKey, LaneWork


def owner_of(subject: str, members: Sequence[str]) -> str | None:
    """The member that a thing belongs to; None without members."""
    return max(members, key=lambda member: _weight(subject, member), default=None)


def _weight(subject: str, member: str) -> bytes:
    return md5(f"{subject}\x1f{member}".encode(), usedforsecurity=False).digest()


class LaneShare:
    """An instance's share of the lanes. Owned by its fold loop."""

    def __init__(self, instance: str, steal_seconds: float) -> None:
        self._instance = instance
        self._steal_seconds = steal_seconds
        self._members: tuple[str, ...] = (instance,)
        self._waiting: dict[LaneKey, tuple[int, float]] = {}
        self._owners: dict[str, str | None] = {}

    @property
    def members(self) -> tuple[str, ...]:
        return self._members

    def set_members(self, members: Iterable[str]) -> None:
        chosen = tuple(sorted({self._instance, *members}))
        if chosen != self._members:
            self._members = chosen
            self._owners.clear()

    def is_mine(self, subject: str) -> bool:
        if subject not in self._owners:
            self._owners[subject] = owner_of(subject, self._members)
        return self._owners[subject] == self._instance

    def is_my_lane(self, key: LaneKey) -> bool:
        return self.is_mine(f"{key.view}/{key.lane}")

    def choose(self, works: Iterable[LaneWork], now: float) -> tuple[set[LaneKey], set[LaneKey]]:
        """(own lanes, lanes to steal) of those that wait. A lane is stolen when its version has not moved
        for `steal_seconds` while deltas waited, measured here: no clock is compared with another."""
        mine: set[LaneKey] = set()
        stolen: set[LaneKey] = set()
        waiting: dict[LaneKey, tuple[int, float]] = {}
        for work in works:
            version, since = self._waiting.get(work.key, (-1, now))
            if version != work.version:
                since = now
            waiting[work.key] = (work.version, since)
            if self.is_my_lane(work.key):
                mine.add(work.key)
            elif now - since >= self._steal_seconds:
                stolen.add(work.key)
        self._waiting = waiting
        return mine, stolen
