"""Settings of the aggregator: COFFEE_RT_AGGREGATOR_<FIELD>, beside those every process has."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from coffee_rt.runtime.settings import DatabaseSettings, ProcessSettings, RedisSettings, own


class AggregatorSettings(ProcessSettings):
    """Everything the aggregator can be told."""

    process: ClassVar[str] = "aggregator"

    redis: RedisSettings = RedisSettings()
    database: DatabaseSettings = DatabaseSettings()

    views_dir: Path | None = own(
        None, help="Folder of view definitions (YAML) beside the built-in ones; none: only those."
    )
    fold_interval_ms: int = own(
        # Below the distance of one worker's commits, so that each is folded when it comes; many workers'
        # commits are folded together.
        15,
        ge=0,
        le=10_000,
        help="Least milliseconds from one round of folds to the next. Larger: fewer rounds and less CPU when commits come faster, and older views.",
    )
    folds_max: int = own(
        4, ge=1, le=64, help="Views folded at once; each takes a database connection."
    )
    fold_deltas_max: int = own(
        5000,
        ge=1,
        le=100_000,
        help="Deltas of one fold. Larger: longer transactions after a backlog.",
    )
    fold_rows_max: int = own(
        500,
        ge=1,
        le=10_000,
        help="Changed rows that a publication carries; with more it says reload.",
    )
    poll_seconds: float = own(
        0.5,
        gt=0,
        le=10,
        help="Seconds between looks for deltas that no message told of (Redis away, a dead neighbour).",
    )
    beacon_seconds: float = own(
        1.0,
        gt=0,
        le=60,
        help="Seconds between messages of all lanes' versions, which repair lost ones.",
    )
    alive_seconds: float = own(
        2.0, gt=0, le=60, help="Silence after which another instance's lanes are shared out again."
    )
    steal_seconds: float = own(
        1.0,
        gt=0,
        le=60,
        help="Seconds that deltas wait in another's lane before they are folded here.",
    )
    backfill_pause_share: float = own(
        1.0,
        ge=0,
        le=100,
        help="Pause after each backfilled chunk as a multiple of the time it took; folds run meanwhile.",
    )
    expire_seconds: float = own(
        3600.0, gt=0, help="Seconds between removals of rows past their view's retention."
    )
