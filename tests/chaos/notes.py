"""What the recorder writes down: orders, and each attempt to place one with what came of it. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

Answer = Literal["ok", "refused", "away", "unknown", "denied"]
"""ok: 202. refused: a 4xx that is about the order. away: 429 or 503 that says nothing was done. unknown: no answer,
or one that says so. denied: 401, 403 or any status nobody may ever see."""


class Load(msgspec.Struct, frozen=True):
    """How much is sent. Open loop: the schedule waits for no answer."""

    rate: float = 100.0
    """Orders a second."""
    clients: int = 8
    """Each has connections of its own; client i begins at order_api i of n and repeats at the next."""
    under_way_max: int = 250
    """Requests without an answer; beyond, the schedule skips, and counts what it skipped."""
    timeout_seconds: float = 3.0
    batch_share: float = 0.1
    """Of requests: five orders in one batch under one key."""
    bad_share: float = 0.04
    """Of orders: with a price that is none."""
    again_share: float = 0.05
    """Of accepted requests: sent again at once under the same key."""


class Job(msgspec.Struct, frozen=True):
    """All that a recorder's process is told."""

    addresses: list[str]
    api_key: str
    prefix: str
    """Begins every name, key and store of this run, so that runs on one platform never meet."""
    notes: str
    load: Load
    seed: int


class Sent(msgspec.Struct, frozen=True, tag="order"):
    """An order, written down before it is first sent."""

    name: str
    store: str
    drink: str
    price_minor: int
    quantity: int
    ordered_at: int
    """Unix seconds."""
    is_bad: bool
    fate: Literal["retried", "later", "left"]
    """What becomes of it while unknown: repeated at once, after healing, or never."""


class Attempt(msgspec.Struct, frozen=True, tag="try"):
    """One sending of an order and what came of it. Times are of the machine's monotonic clock."""

    name: str
    began: float
    seconds: float
    answer: Answer
    order_id: str = ""
    code: str = ""
    is_duplicate: bool = False
    status: int = 0
    is_first: bool = True


class Skipped(msgspec.Struct, frozen=True, tag="skipped"):
    """At the end: requests that the schedule skipped because too many were under way."""

    requests: int


@dataclass
class Story:
    """One order and all its attempts, in order of their answers."""

    sent: Sent
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        """Every different id it was answered with, in order."""
        return list(dict.fromkeys(a.order_id for a in self.attempts if a.answer == "ok"))

    @property
    def is_accepted(self) -> bool:
        return any(attempt.answer == "ok" for attempt in self.attempts)

    @property
    def is_refused(self) -> bool:
        return any(attempt.answer == "refused" for attempt in self.attempts)

    @property
    def was_unknown(self) -> bool:
        return any(attempt.answer == "unknown" for attempt in self.attempts)

    @property
    def is_resolved(self) -> bool:
        """It was unknown once, and then known."""
        return self.was_unknown and (self.is_accepted or self.is_refused)

    @property
    def surely_nothing(self) -> bool:
        """Every answer said that nothing was done."""
        return all(attempt.answer == "away" for attempt in self.attempts)


@dataclass
class Notes:
    stories: dict[str, Story]
    skipped: int = 0

    @property
    def attempts(self) -> list[Attempt]:
        return [attempt for story in self.stories.values() for attempt in story.attempts]


_decoder = msgspec.json.Decoder(Sent | Attempt | Skipped)


def read_notes(path: Path) -> Notes:
    return collect_notes(_decoder.decode(line) for line in path.read_bytes().splitlines())


def collect_notes(items: Iterable[Sent | Attempt | Skipped]) -> Notes:
    stories: dict[str, Story] = {}
    attempts: defaultdict[str, list[Attempt]] = defaultdict(list)
    skipped = 0
    for item in items:
        if isinstance(item, Sent):
            stories[item.name] = Story(item)
        elif isinstance(item, Attempt):
            attempts[item.name].append(item)
        else:
            skipped += item.requests
    for name, story in stories.items():
        story.attempts = attempts[name]
    return Notes(stories, skipped)
