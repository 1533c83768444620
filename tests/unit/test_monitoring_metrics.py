"""Metrics that alerts rest on: what may never happen is there before it happens, and says the truth."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import SystemClock
from coffee_rt.runtime.logs import get_log
from coffee_rt.store.memory import MemoryKeeper as MemoryStoreKeeper
from coffee_rt.store.memory_database import MemoryDatabase
from coffee_rt.store.partitions import DAY_MS, partition_of
from coffee_rt.streams.memory import MemoryLog
from coffee_rt.streams.memory_groups import MemoryKeeper
from coffee_rt.streams.metrics import prepare_shards
from coffee_rt.streams.server_safety import judge_server, worst_of
from coffee_rt.worker import metrics as worker_metrics
from coffee_rt.worker.care import CareLimits, Caretaker, covered_to_ms

SAFE_INFO = b"# Memory\r\nmaxmemory_policy:noeviction\r\n# Persistence\r\naof_enabled:1\r\naof_last_write_status:ok\r\n"
ALWAYS = (b"appendfsync", b"always")
MIDNIGHT_MS = 20_000 * DAY_MS
NOON_MS = MIDNIGHT_MS + DAY_MS // 2


def test_a_server_set_up_as_it_should_be_is_safe() -> None:
    judged = judge_server(SAFE_INFO, ALWAYS)
    assert judged == {"eviction": False, "append-only": False, "fsync": False, "disk": False}


@pytest.mark.parametrize(
    ("info", "fsync", "reason"),
    [
        (SAFE_INFO.replace(b"noeviction", b"allkeys-lru"), ALWAYS, "eviction"),
        (SAFE_INFO.replace(b"aof_enabled:1", b"aof_enabled:0"), ALWAYS, "append-only"),
        (SAFE_INFO, (b"appendfsync", b"everysec"), "fsync"),
        (SAFE_INFO.replace(b"status:ok", b"status:err"), ALWAYS, "disk"),
        (SAFE_INFO + b"aof_last_bgrewrite_status:err\r\n", ALWAYS, "disk"),
    ],
)
def test_each_unsafe_setting_is_named(info: bytes, fsync: tuple[bytes, bytes], reason: str) -> None:
    assert [name for name, is_unsafe in judge_server(info, fsync).items() if is_unsafe] == [reason]


def test_what_a_server_does_not_say_is_no_reason() -> None:
    assert judge_server(b"", None) == {}
    assert "fsync" not in judge_server(SAFE_INFO, None)


def test_one_unsafe_server_of_several_makes_all_unsafe() -> None:
    one, other = {"eviction": False, "fsync": False}, {"eviction": True}
    assert worst_of([one, other]) == {"eviction": True, "fsync": False}


def test_days_with_partitions_are_counted_up_to_the_first_gap() -> None:
    days = [partition_of(MIDNIGHT_MS + offset * DAY_MS) for offset in (-1, 0, 1, 2, 4)]
    assert covered_to_ms(days, NOON_MS) == MIDNIGHT_MS + 3 * DAY_MS
    assert covered_to_ms(days[:1], NOON_MS) == NOON_MS
    assert covered_to_ms([], NOON_MS) == NOON_MS


async def test_the_chore_that_makes_partitions_says_how_far_they_reach() -> None:
    clock = SystemClock()
    care = Caretaker(
        log_keeper=MemoryKeeper(MemoryLog(clock, 1)),
        store_keeper=MemoryStoreKeeper(MemoryDatabase()),
        log_breaker=CircuitBreaker("redis", clock=clock),
        store_breaker=CircuitBreaker("postgresql", clock=clock),
        clock=clock,
        log=get_log("test"),
        limits=CareLimits(partition_days_ahead=7),
    )
    await care.ensure_partitions()
    ahead_seconds = worker_metrics.PARTITIONS_END._value.get() - clock.now()
    assert 7 * 86_400 < ahead_seconds <= 8 * 86_400


def test_counts_of_what_should_never_happen_begin_at_0() -> None:
    """Prometheus sees no rise in a series that begins at 1."""
    prepare_shards(2)
    for name in ("entries_vanished", "gap_records", "groups_recreated"):
        for shard in ("0", "1"):
            value = REGISTRY.get_sample_value(f"coffee_rt_log_{name}_total", {"shard": shard})
            assert value is not None
    dead = {"code": "unreadable-record"}
    assert REGISTRY.get_sample_value("coffee_rt_worker_dead_letters_total", dead) is not None
