"""The row of *Are orders safe and fresh?* that shows whether what was accepted is kept and accounted for."""

from __future__ import annotations

from collections.abc import Sequence

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from grafana_foundation_sdk.builders.timeseries import Panel

from dashboards.grafana.parts import Look, Query, lines


def kept(board: Dashboard) -> None:
    """Append the row."""
    board.with_row(Row("Safe: kept and accounted for"))
    for panel in (*_accounted(), *_room(), *_set_aside(), *_groups()):
        board.with_panel(panel)


def _accounted() -> Sequence[Panel]:
    """Whether every record is where it should be."""
    return (
        lines(
            Look(
                "Conservation imbalance",
                "Accepted minus stored, duplicate, dead and lost records, by shard; above 0 records are missing, "
                "below 0 the log has counted fewer than are stored.",
                "0 on every shard, always.",
                alert="ConservationViolated",
            ),
            Query("max by (shard) (coffee_rt_conservation_imbalance_records{})", "shard {{shard}}"),
        ),
        lines(
            Look(
                "Entries vanished",
                "Entries deleted from the log while they were pending, in five minutes.",
                "0: nobody but the workers' own trim deletes, and it never takes a pending entry.",
                alert="EntriesVanished",
            ),
            Query(
                "sum by (shard) (increase(coffee_rt_log_entries_vanished_total{}[5m]))",
                "shard {{shard}}",
            ),
        ),
        lines(
            Look(
                "Records lost by failover",
                "Records that were answered and are no longer in the log, as told by its counters; in five minutes.",
                "0. A Redis without failover can't lose any this way.",
                alert="RecordsLost",
            ),
            Query(
                "sum by (shard) (increase(coffee_rt_log_gap_records_total{}[5m]))",
                "shard {{shard}}",
            ),
        ),
    )


def _room() -> Sequence[Panel]:
    """Whether the servers can keep what is to come."""
    return (
        lines(
            Look(
                "Redis may lose orders",
                "1 where the log's server is not set up, or not able, to keep what it answered, by reason.",
                "0 for all four: eviction, append-only, fsync, disk. A server that hides a setting lacks its line.",
                alert="RedisUnsafe",
                limits=(None, 1),
            ),
            Query("max by (reason) (coffee_rt_log_unsafe_ratio{})", "{{reason}}"),
        ),
        lines(
            Look(
                "Redis memory",
                "Memory in use, and its maximum.",
                "below 70 % of the maximum; new orders get 429 from 80 % on and 503 from 90 % on.",
                unit="bytes",
                alert="OrdersRefused",
            ),
            Query("max by (kind) (coffee_rt_log_memory_bytes{})", "{{kind}}"),
        ),
        lines(
            Look(
                "Partitions ahead",
                "How far from now on each day has a partition for its orders.",
                "as many days as COFFEE_RT_WORKER_PARTITION_DAYS_AHEAD says (7), never below 2.",
                unit="s",
                alert="PartitionsShort",
            ),
            Query(
                "max(coffee_rt_worker_partitions_end_timestamp_seconds{} > 0) - time()",
                "ahead",
            ),
        ),
    )


def _set_aside() -> Sequence[Panel]:
    """What is neither in the log nor stored as an order."""
    return (
        lines(
            Look(
                "Dead letters",
                "Accepted records that can't be stored, by reason, in five minutes.",
                "0. A steady trickle of one reason is a client, or somebody else who writes to the log.",
                alert="DeadLetters",
            ),
            Query(
                "sum by (code) (increase(coffee_rt_worker_dead_letters_total{}[5m]))", "{{code}}"
            ),
        ),
        lines(
            Look(
                "Intake",
                "Records waiting in the database's intake, and taken there in five minutes because Redis was away.",
                "0; what waits is gone seconds after a worker can commit.",
                alert="IntakeWaiting",
            ),
            Query("max(coffee_rt_intake_waiting_records{})", "waiting"),
            Query("sum(increase(coffee_rt_intake_accepted_records_total{}[5m]))", "taken"),
        ),
        lines(
            Look(
                "Intake: oldest",
                "Age of the oldest batch in the database's intake.",
                "0; some seconds while Redis is away.",
                unit="s",
                alert="IntakeWaiting",
            ),
            Query("max(coffee_rt_intake_oldest_seconds{})", "oldest"),
        ),
        lines(
            Look(
                "Intake: refused",
                "Records that neither the log nor the intake took, by reason, in five minutes.",
                "0. 'away': both stores are.",
                alert="OrdersRefused",
            ),
            Query(
                "sum by (reason) (increase(coffee_rt_intake_refused_records_total{}[5m]))",
                "{{reason}}",
            ),
        ),
    )


def _groups() -> Sequence[Panel]:
    """What holds the trim up, or goes back."""
    return (
        lines(
            Look(
                "Groups in the way of the trim",
                "Consumer groups that nobody registered: nothing they have not read is removed from the log.",
                "0.",
            ),
            Query("max(coffee_rt_log_foreign_groups{})", "unregistered groups"),
        ),
        lines(
            Look(
                "Groups lost and set back",
                "Groups found missing and made again, and groups set back after a promotion of PostgreSQL; in five "
                "minutes.",
                "0, but after a failover.",
            ),
            Query("sum(increase(coffee_rt_log_groups_recreated_total{}[5m]))", "made again"),
            Query("sum(increase(coffee_rt_worker_groups_set_back_total{}[5m]))", "set back"),
        ),
    )
