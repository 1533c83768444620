"""What is safe, what is not, and how to mend it: the doctor's judgement. Pure.

In come facts about Redis, PostgreSQL and the settings; out come findings, each with a verdict and, unless
it is fine, the command or setting that mends it. UNSAFE means that accepted orders can be lost, or that
the installation stops working; DOUBTFUL that it may under load or at the next outage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from coffee_rt.runtime.redis_address import Mode

if TYPE_CHECKING:
    from coffee_rt.store.inspect import DatabaseFacts

REDIS_VERSION_MIN = (7, 0)
POSTGRES_MAJOR_MIN = 15
POSTGRES_MAJOR_MAX = 18
CLOCK_SECONDS_MAX = 5.0
"""order_api is not ready above this: ids are minted on Redis's clock."""
CLOCK_SECONDS_DOUBTFUL = 1.0
HORIZON_DAYS_MIN = 1.0
"""A worker makes partitions days ahead; less than one means that no worker has run lately."""
AOF_REWRITE_BYTES_MIN = 256 << 20
MEMORY_SHARE_DOUBTFUL = 0.7
INTAKE_SECONDS_MAX = 60.0
"""Workers store what waits in the intake within a second or so; the alert IntakeWaiting says the same."""


class Verdict(Enum):
    FINE = "fine"
    DOUBTFUL = "doubtful"
    UNSAFE = "UNSAFE"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `mend` is empty when it is fine."""

    subject: str
    found: str
    verdict: Verdict
    mend: str = ""


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """A Redis or Valkey as it answered. `config` is empty where CONFIG isn't allowed."""

    name: str
    version: tuple[int, ...]
    config: Mapping[str, str]
    used_bytes: int
    limit_bytes: int
    last_write_failed: bool
    clock_offset_seconds: float
    place: str = ""
    """host:port where there are several servers."""
    mode: Mode = "single"
    """How the address says it is reached."""
    is_replica: bool = False
    replicas: int = 0
    """Connected to it."""
    is_clustered: bool = False


def examine_servers(servers: Sequence[RedisFacts]) -> list[Finding]:
    """Findings about the log's servers: a line for what is fine everywhere, and one for each that isn't."""
    found = [(facts.place, finding) for facts in servers for finding in examine_redis(facts)]
    if len(servers) == 1:
        return [finding for _place, finding in found]
    subjects: dict[str, list[tuple[str, Finding]]] = {}
    for place, finding in found:
        subjects.setdefault(finding.subject, []).append((place, finding))
    merged = []
    for subject, findings in subjects.items():
        bad = [each for each in findings if each[1].verdict is not Verdict.FINE]
        merged += [replace(finding, subject=f"{subject}, {place}") for place, finding in bad]
        if not bad:
            values = sorted({finding.found for _place, finding in findings})
            text = values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"
            merged.append(Finding(subject, f"{text} ({len(findings)} servers)", Verdict.FINE))
    return merged


def examine_redis(facts: RedisFacts) -> list[Finding]:
    """Findings about one of the log's servers."""
    return [
        _redis_version(facts),
        _redis_role(facts),
        *_redis_config(facts),
        _redis_memory(facts),
        _finding(
            "Redis: last write to disk",
            "failed" if facts.last_write_failed else "succeeded",
            Verdict.UNSAFE if facts.last_write_failed else Verdict.FINE,
            "Free space on the server's disk; its log says what failed.",
        ),
        _clock("Redis", facts.clock_offset_seconds),
    ]


def examine_database(facts: DatabaseFacts, now: float) -> list[Finding]:
    """Findings about the store's server. `now` in Unix seconds."""
    major = facts.version // 10_000
    is_known = POSTGRES_MAJOR_MIN <= major <= POSTGRES_MAJOR_MAX
    is_synced = facts.synchronous_commit not in ("off",)
    return [
        _finding(
            "PostgreSQL: version",
            f"{major}.{facts.version % 10_000}",
            Verdict.FINE if is_known else Verdict.UNSAFE,
            f"Use PostgreSQL {POSTGRES_MAJOR_MIN} to {POSTGRES_MAJOR_MAX}.",
        ),
        _switch("fsync", facts.fsync, Verdict.UNSAFE),
        _switch("full_page_writes", facts.full_page_writes, Verdict.UNSAFE),
        _finding(
            "PostgreSQL: synchronous_commit",
            facts.synchronous_commit,
            Verdict.FINE if is_synced else Verdict.DOUBTFUL,
            "The worker sets it for its own transactions. For everything else: "
            "ALTER SYSTEM SET synchronous_commit = on; SELECT pg_reload_conf();",
        ),
        _finding(
            "PostgreSQL: role",
            "replica" if facts.is_replica else "primary",
            Verdict.UNSAFE if facts.is_replica else Verdict.FINE,
            "COFFEE_RT_DATABASE_URL must name the primary; a replica goes to "
            "COFFEE_RT_DATABASE_REPLICA_URL.",
        ),
        _finding(
            "PostgreSQL: schema",
            f"lacks {', '.join(facts.missing_migrations)}"
            if facts.missing_migrations
            else "up to date",
            Verdict.UNSAFE if facts.missing_migrations else Verdict.FINE,
            "Run: coffee-rt migrate",
        ),
        _horizon(facts, now),
        *_intake(facts),
        _clock("PostgreSQL", facts.clock_offset_seconds),
    ]


def examine_pools(facts: DatabaseFacts, pools: Mapping[str, int]) -> Finding:
    """Whether one instance of each process fits into max_connections. `pools`: process -> most connections."""
    needed = sum(pools.values())
    usable = facts.connections_max - facts.connections_reserved
    each = ", ".join(f"{name} {size}" for name, size in pools.items())
    if needed > usable:
        verdict = Verdict.UNSAFE
    elif needed > usable * 0.8:
        verdict = Verdict.DOUBTFUL
    else:
        verdict = Verdict.FINE
    return _finding(
        "PostgreSQL: connections",
        f"one of each process takes up to {needed} of {usable} ({each}); {facts.connections} open now",
        verdict,
        "Raise max_connections (and restart PostgreSQL), lower COFFEE_RT_DATABASE_POOL_SIZE_MAX, or "
        "put PgBouncer in front with COFFEE_RT_DATABASE_STATEMENT_CACHE_SIZE=0.",
    )


def _redis_version(facts: RedisFacts) -> Finding:
    text = ".".join(map(str, facts.version))
    is_new = facts.version[:2] >= REDIS_VERSION_MIN
    return _finding(
        "Redis: version",
        f"{facts.name} {text}",
        Verdict.FINE if is_new else Verdict.UNSAFE,
        "Use Redis 7.0 or newer, or Valkey.",
    )


def _redis_role(facts: RedisFacts) -> Finding:
    """Whether it is what the address takes it for, and how much a failover may lose."""
    subject = "Redis: role"
    if facts.mode == "single":
        if facts.is_clustered:
            mend = "One node holds only its share of the keys: set COFFEE_RT_REDIS_URL=redis+cluster://..."
            return _finding(subject, "a node of a cluster", Verdict.UNSAFE, mend)
        if facts.is_replica:
            mend = "COFFEE_RT_REDIS_URL must name the master, or sentinels: redis+sentinel://..."
            return _finding(subject, "a replica", Verdict.UNSAFE, mend)
        return Finding(subject, "the only server", Verdict.FINE)
    if facts.is_replica:
        return Finding(subject, "replica", Verdict.FINE)
    wanted = int(facts.config.get("min-replicas-to-write", "0") or 0)
    found = f"master with {facts.replicas} replicas, {wanted} needed for a write"
    mend = (
        "Without a replica that has it, a write is lost when the master is: CONFIG SET "
        "min-replicas-to-write 1 (and in its configuration file), and "
        "COFFEE_RT_ORDER_API_REPLICAS_MIN=1."
    )
    if wanted:
        verdict = Verdict.FINE
    elif facts.mode == "sentinel":
        verdict = Verdict.UNSAFE
    else:
        # A cluster without replicas is what some want: a dead node's shards then wait for it.
        verdict = Verdict.DOUBTFUL
    return _finding(subject, found, verdict, mend)


def _redis_config(facts: RedisFacts) -> list[Finding]:
    if not facts.config:
        return [
            _finding(
                "Redis: settings",
                "not shown (CONFIG isn't allowed here)",
                Verdict.DOUBTFUL,
                "Ask whoever runs it for: maxmemory-policy noeviction, appendonly yes, "
                "appendfsync always.",
            )
        ]
    config = facts.config
    policy, is_logged = config.get("maxmemory-policy", ""), config.get("appendonly") == "yes"
    fsync = config.get("appendfsync", "")
    rewrite = int(config.get("auto-aof-rewrite-min-size", "0") or 0)
    return [
        _finding(
            "Redis: eviction",
            policy,
            Verdict.FINE if policy == "noeviction" else Verdict.UNSAFE,
            "Any other policy deletes accepted orders: CONFIG SET maxmemory-policy noeviction, "
            "and in its configuration file.",
        ),
        _finding(
            "Redis: append-only file",
            "on" if is_logged else "off",
            Verdict.FINE if is_logged else Verdict.UNSAFE,
            "Without it a restart loses the log: CONFIG SET appendonly yes, and in its "
            "configuration file.",
        ),
        _finding(
            "Redis: fsync",
            fsync,
            Verdict.FINE if fsync == "always" else Verdict.UNSAFE,
            "An answer should mean 'on disk'; with everysec a power cut loses the last seconds: "
            "CONFIG SET appendfsync always.",
        ),
        _finding(
            "Redis: rewrite of the file",
            f"from {rewrite >> 20} MB",
            Verdict.FINE if rewrite >= AOF_REWRITE_BYTES_MIN else Verdict.DOUBTFUL,
            "Small files are rewritten every second under load, with pauses: "
            "CONFIG SET auto-aof-rewrite-min-size 512mb.",
        ),
    ]


def _redis_memory(facts: RedisFacts) -> Finding:
    used = f"{facts.used_bytes >> 20} MB used"
    if not facts.limit_bytes:
        return _finding(
            "Redis: memory",
            f"{used}, no limit",
            Verdict.DOUBTFUL,
            "Without a limit the kernel decides when it is full, and kills: CONFIG SET maxmemory to "
            "about 60 % of the machine's; orders are refused before it is reached.",
        )
    share = facts.used_bytes / facts.limit_bytes
    return _finding(
        "Redis: memory",
        f"{used} of {facts.limit_bytes >> 20} MB",
        Verdict.DOUBTFUL if share > MEMORY_SHARE_DOUBTFUL else Verdict.FINE,
        "Something keeps entries in the log: see whether workers run (and no forgotten consumer "
        "group does), or raise maxmemory.",
    )


def _horizon(facts: DatabaseFacts, now: float) -> Finding:
    if facts.partitions_end_at is None:
        return _finding(
            "PostgreSQL: partitions",
            "none",
            Verdict.DOUBTFUL,
            "The worker makes them when it starts: start one.",
        )
    days = (facts.partitions_end_at - now) / 86_400
    verdict = Verdict.FINE
    if days < HORIZON_DAYS_MIN:
        verdict = Verdict.DOUBTFUL if days > 0 else Verdict.UNSAFE
    return _finding(
        "PostgreSQL: partitions",
        f"made {max(days, 0):.1f} days ahead",
        verdict,
        "The worker makes them ahead: start one, and read its log when one runs.",
    )


def _intake(facts: DatabaseFacts) -> list[Finding]:
    """Orders taken while Redis was away that no worker has stored yet. Nothing before its migration."""
    intake, subject = facts.intake, "PostgreSQL: intake"
    if intake is None:
        return []
    if not intake.records:
        return [Finding(subject, "empty", Verdict.FINE)]
    found = f"{intake.records} orders wait, the oldest for {intake.oldest_seconds:.0f} s"
    mend = (
        "They are safe there, and not stored yet. Start a worker (it needs only PostgreSQL for "
        "them), or read the log of one that runs; see docs/runbooks/IntakeWaiting.md. Delete no row."
    )
    if intake.unreadable:
        found += f"; {intake.unreadable} of a newer release"
        mend = f"Only workers of the release that took them can read some. {mend}"
    is_slow = bool(intake.unreadable) or intake.oldest_seconds > INTAKE_SECONDS_MAX
    return [_finding(subject, found, Verdict.DOUBTFUL if is_slow else Verdict.FINE, mend)]


def _clock(server: str, offset_seconds: float) -> Finding:
    size = abs(offset_seconds)
    if size > CLOCK_SECONDS_MAX:
        verdict = Verdict.UNSAFE
    elif size > CLOCK_SECONDS_DOUBTFUL:
        verdict = Verdict.DOUBTFUL
    else:
        verdict = Verdict.FINE
    return _finding(
        f"{server}: clock",
        f"{offset_seconds:+.3f} s from ours",
        verdict,
        "Run a time service (chrony, systemd-timesyncd) on both machines.",
    )


def _switch(name: str, value: str, bad: Verdict) -> Finding:
    return _finding(
        f"PostgreSQL: {name}",
        value,
        Verdict.FINE if value == "on" else bad,
        f"A power cut would corrupt the data: ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf();",
    )


def _finding(subject: str, found: str, verdict: Verdict, mend: str) -> Finding:
    return Finding(subject, found, verdict, "" if verdict is Verdict.FINE else mend)
