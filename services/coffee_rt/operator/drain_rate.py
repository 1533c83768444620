"""How many records a worker pod stores in a second, measured while a backlog keeps the pods busy: pure.

From the log alone: what groups were handed, and what is settled, both counted by the log since ever. A pod
that waits for orders says nothing of what it could do, so a sample counts only when at its both ends more
was left undelivered than was done between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from coffee_rt.streams.contract import Backlog

HALF_LIFE_SECONDS = 60.0
"""Age at which a measurement counts half: long enough for a commit that took long, short enough for a
database that has become slow."""
SAMPLE_SECONDS_MIN = 1.0
SAMPLE_SECONDS_MAX = 120.0


@dataclass(frozen=True, slots=True)
class DrainSample:
    """The log and the pods at one moment. `at` on the caller's monotonic clock."""

    at: float
    delivered: int
    settled: int
    undelivered: int
    pods: int


def sample(at: float, backlogs: Sequence[Backlog], pods: int) -> DrainSample:
    undelivered = sum(backlog.undelivered_records for backlog in backlogs)
    counter = sum(backlog.counter for backlog in backlogs)
    settled = sum(backlog.settled_counter for backlog in backlogs)
    return DrainSample(at, counter - undelivered, settled, undelivered, pods)


def measure(before: DrainSample | None, after: DrainSample) -> float | None:
    """Records a second a pod between two samples; None where they say nothing of it."""
    if before is None or before.pods != after.pods or after.pods < 1:
        return None
    seconds = after.at - before.at
    if not SAMPLE_SECONDS_MIN <= seconds <= SAMPLE_SECONDS_MAX:
        return None
    # The smaller one: workers read ahead of what they store, and one stuck entry, once it is acknowledged,
    # settles everything after it in a moment.
    done = min(after.delivered - before.delivered, after.settled - before.settled)
    if done <= 0:
        return None  # An outage is no measurement, nor is a log that was set back.
    if min(before.undelivered, after.undelivered) < done:
        return None
    return done / seconds / after.pods


def smooth(rate: float | None, measured: float, seconds: float) -> float:
    """The rate with a measurement of so many seconds taken in."""
    if rate is None:
        return measured
    weight = 1.0 - math.pow(0.5, seconds / HALF_LIFE_SECONDS)
    return rate + weight * (measured - rate)
