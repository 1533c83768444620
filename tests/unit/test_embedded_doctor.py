"""The doctor calls unsafe what loses orders, and says how to mend it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coffee_rt.embedded.examine import (
    Finding,
    RedisFacts,
    Verdict,
    examine_database,
    examine_pools,
    examine_redis,
    examine_servers,
)
from coffee_rt.store.inspect import DatabaseFacts, IntakeFacts

NOW = 1_800_000_000.0

REDIS = RedisFacts(
    name="Valkey",
    version=(9, 1, 0),
    config={
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "always",
        "auto-aof-rewrite-min-size": str(512 << 20),
    },
    used_bytes=10 << 20,
    limit_bytes=1 << 30,
    last_write_failed=False,
    clock_offset_seconds=0.002,
)
DATABASE = DatabaseFacts(
    version=180004,
    connections_max=100,
    connections_reserved=3,
    connections=9,
    fsync="on",
    synchronous_commit="on",
    full_page_writes="on",
    standby_names="",
    is_replica=False,
    clock_offset_seconds=-0.001,
    missing_migrations=(),
    partitions_end_at=NOW + 3 * 86_400,
    intake=IntakeFacts(),
)


def _bad(findings: list[Finding]) -> dict[str, Finding]:
    return {each.subject: each for each in findings if each.verdict is not Verdict.FINE}


def test_sound_servers_have_no_findings() -> None:
    assert _bad(examine_redis(REDIS)) == {}
    assert _bad(examine_database(DATABASE, NOW)) == {}


@pytest.mark.parametrize(
    ("setting", "value", "subject"),
    [
        ("maxmemory-policy", "allkeys-lru", "Redis: eviction"),
        ("appendonly", "no", "Redis: append-only file"),
        ("appendfsync", "everysec", "Redis: fsync"),
    ],
)
def test_settings_that_lose_orders_are_unsafe(setting: str, value: str, subject: str) -> None:
    facts = replace(REDIS, config={**REDIS.config, setting: value})
    finding = _bad(examine_redis(facts))[subject]
    assert finding.verdict is Verdict.UNSAFE
    assert "CONFIG SET" in finding.mend


def test_hidden_redis_settings_are_doubtful() -> None:
    assert "Redis: settings" in _bad(examine_redis(replace(REDIS, config={})))


@pytest.mark.parametrize(
    ("facts", "subject", "verdict"),
    [
        (replace(REDIS, name="Redis", version=(6, 2, 1)), "Redis: version", Verdict.UNSAFE),
        (replace(REDIS, clock_offset_seconds=-9.0), "Redis: clock", Verdict.UNSAFE),
        (replace(REDIS, clock_offset_seconds=2.0), "Redis: clock", Verdict.DOUBTFUL),
        (replace(REDIS, limit_bytes=0), "Redis: memory", Verdict.DOUBTFUL),
        (replace(REDIS, used_bytes=1 << 30), "Redis: memory", Verdict.DOUBTFUL),
        (replace(REDIS, last_write_failed=True), "Redis: last write to disk", Verdict.UNSAFE),
    ],
)
def test_redis_verdicts(facts: RedisFacts, subject: str, verdict: Verdict) -> None:
    finding = _bad(examine_redis(facts))[subject]
    assert finding.verdict is verdict
    assert finding.mend


SAFE = {**REDIS.config, "min-replicas-to-write": "1"}
MASTER = replace(REDIS, mode="sentinel", place="a:1", replicas=1, config=SAFE)
REPLICA = replace(MASTER, place="b:1", replicas=0, is_replica=True)


def test_sound_masters_and_replicas_are_said_once() -> None:
    findings = examine_servers([MASTER, REPLICA])
    assert _bad(findings) == {}
    assert len(findings) == len(examine_redis(REDIS))
    assert [each.found for each in findings if each.subject == "Redis: eviction"] == [
        "noeviction (2 servers)"
    ]


def test_each_server_that_is_unsafe_is_named() -> None:
    careless = replace(REPLICA, config={**SAFE, "appendfsync": "everysec"})
    bad = _bad(examine_servers([MASTER, careless]))
    assert list(bad) == ["Redis: fsync, b:1"]
    assert bad["Redis: fsync, b:1"].verdict is Verdict.UNSAFE


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        (replace(MASTER, config=REDIS.config), Verdict.UNSAFE),
        (replace(MASTER, mode="cluster", config=REDIS.config), Verdict.DOUBTFUL),
        (replace(REDIS, is_replica=True), Verdict.UNSAFE),
        (replace(REDIS, is_clustered=True), Verdict.UNSAFE),
    ],
)
def test_a_server_that_is_not_what_the_address_takes_it_for(
    facts: RedisFacts, verdict: Verdict
) -> None:
    finding = _bad(examine_redis(facts))["Redis: role"]
    assert finding.verdict is verdict
    assert "COFFEE_RT_" in finding.mend


@pytest.mark.parametrize(
    ("facts", "subject", "verdict"),
    [
        (replace(DATABASE, version=140010), "PostgreSQL: version", Verdict.UNSAFE),
        (replace(DATABASE, fsync="off"), "PostgreSQL: fsync", Verdict.UNSAFE),
        (replace(DATABASE, full_page_writes="off"), "PostgreSQL: full_page_writes", Verdict.UNSAFE),
        (
            replace(DATABASE, synchronous_commit="off"),
            "PostgreSQL: synchronous_commit",
            Verdict.DOUBTFUL,
        ),
        (replace(DATABASE, is_replica=True), "PostgreSQL: role", Verdict.UNSAFE),
        (replace(DATABASE, missing_migrations=("0002",)), "PostgreSQL: schema", Verdict.UNSAFE),
        (replace(DATABASE, partitions_end_at=None), "PostgreSQL: partitions", Verdict.DOUBTFUL),
        (replace(DATABASE, partitions_end_at=NOW - 1), "PostgreSQL: partitions", Verdict.UNSAFE),
        (
            replace(DATABASE, partitions_end_at=NOW + 3600),
            "PostgreSQL: partitions",
            Verdict.DOUBTFUL,
        ),
    ],
)
def test_database_verdicts(facts: DatabaseFacts, subject: str, verdict: Verdict) -> None:
    finding = _bad(examine_database(facts, NOW))[subject]
    assert finding.verdict is verdict
    assert finding.mend


@pytest.mark.parametrize(
    ("size", "verdict"), [(10, Verdict.FINE), (80, Verdict.DOUBTFUL), (98, Verdict.UNSAFE)]
)
def test_pools_must_fit_into_max_connections(size: int, verdict: Verdict) -> None:
    assert examine_pools(DATABASE, {"worker": size - 2, "fanout": 2}).verdict is verdict


@pytest.mark.parametrize(
    ("intake", "verdict", "found"),
    [
        (IntakeFacts(), Verdict.FINE, "empty"),
        (IntakeFacts(40, 0.4), Verdict.FINE, "40 orders wait, the oldest for 0 s"),
        (IntakeFacts(40, 900.2), Verdict.DOUBTFUL, "40 orders wait, the oldest for 900 s"),
        (
            IntakeFacts(40, 2.0, unreadable=7),
            Verdict.DOUBTFUL,
            "40 orders wait, the oldest for 2 s; 7 of a newer release",
        ),
    ],
)
def test_what_waits_in_the_intake_is_said_with_its_age(
    intake: IntakeFacts, verdict: Verdict, found: str
) -> None:
    findings = examine_database(replace(DATABASE, intake=intake), NOW)
    [finding] = [each for each in findings if each.subject == "PostgreSQL: intake"]
    assert (finding.verdict, finding.found) == (verdict, found)
    assert ("Start a worker" in finding.mend) is (verdict is Verdict.DOUBTFUL)


def test_a_database_from_before_the_intake_is_only_told_to_migrate() -> None:
    facts = replace(DATABASE, intake=None, missing_migrations=("0005_intake",))
    assert list(_bad(examine_database(facts, NOW))) == ["PostgreSQL: schema"]
