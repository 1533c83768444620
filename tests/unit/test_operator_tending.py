"""One turn of the tender after another: over a log, a store and a cluster in memory, in virtual time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coffee_rt.errors import Retryable
from coffee_rt.operator.sessions import SessionCounts, parse_sessions
from coffee_rt.store.contract import RetentionPolicy
from coffee_rt.streams.contract import STORE_GROUP
from coffee_rt.streams.memory_groups import MemoryReader
from tests.tender_bed import PLURAL, TenderBed, condition


@pytest.fixture
def bed() -> TenderBed:
    bed = TenderBed()
    bed.cluster.put_autoscaler("worker", 1, 6)
    bed.cluster.put_autoscaler("fanout", 2, 8)
    bed.pipeline()
    return bed


async def test_a_tended_pipeline_is_ready_and_has_partitions(bed: TenderBed) -> None:
    status = await bed.turn()
    assert condition(status, "Ready") == ("True", "Tended")
    assert condition(status, "Draining") == ("False", "BacklogYoung")
    assert condition(status, "Degraded") == ("False", "NothingWrong")
    assert status["partitions"]["aheadDays"] == 7
    assert status["observedGeneration"] == 1
    assert (status["backlogRecords"], status["conservationImbalance"]) == (0, 0)
    assert bed.reasons() == ["PartitionsMade"]


async def test_a_backlog_raises_the_workers_floor_and_its_end_lowers_it_slowly(
    bed: TenderBed,
) -> None:
    floor = {"targetSeconds": 5, "assumedRecordsPerSecond": 4}
    bed.pipeline(workers={"deployment": "worker", "autoscaler": "worker", "floor": floor})
    await bed.append(60)
    status = await bed.turn()
    assert bed.cluster.autoscalers["worker"].replicas_min == 3
    assert status["floors"]["workers"] == {
        "floor": 3,
        "base": 1,
        "needed": 3,
        "reason": "Raised",
    }
    assert condition(status, "Draining") == ("True", "FloorRaised")
    reader = MemoryReader(bed.log, STORE_GROUP, "w1")
    for shard in range(2):
        await reader.acknowledge(shard, await reader.read(shard, 100, 0))
    floors = []
    for _ in range(40):
        await bed.turn()
        floors.append(bed.cluster.autoscalers["worker"].replicas_min)
    assert floors[:20] == [3] * 20
    assert sorted(set(floors), reverse=True) == [3, 2, 1]
    last = bed.cluster.autoscalers["worker"]
    assert (last.floor, last.base) == (None, None)
    assert bed.reasons().count("FloorRaised") == 1
    assert bed.reasons().count("FloorLowered") == 2


async def test_the_fanouts_floor_follows_its_sessions_and_holds_while_a_pod_is_silent(
    bed: TenderBed,
) -> None:
    bed.sessions.counts = SessionCounts(26_000, 0)
    status = await bed.turn()
    assert bed.cluster.autoscalers["fanout"].replicas_min == 6
    assert status["sessions"] == 26_000
    bed.sessions.counts = SessionCounts(10, 1)
    for _ in range(100):
        status = await bed.turn()
    assert bed.cluster.autoscalers["fanout"].replicas_min == 6
    assert status["floors"]["fanout"]["reason"] == "Unknown"


async def test_a_measured_rate_is_in_the_status_and_outlives_a_restart(bed: TenderBed) -> None:
    await bed.append(1000)
    await bed.turn()
    reader = MemoryReader(bed.log, STORE_GROUP, "w1")
    for shard in range(2):
        await reader.acknowledge(shard, await reader.read(shard, 50, 0))
    await bed.turn(20)
    status = await bed.turn()
    assert status["drainRatePerPod"] == pytest.approx(5.0)
    bed.tender = bed.make_tender()
    status = await bed.turn(20)
    assert status["drainRatePerPod"] == pytest.approx(5.0)


async def test_a_database_that_is_away_is_told_of_and_stops_nothing_else(bed: TenderBed) -> None:
    await bed.turn()
    bed.store.is_away = True
    bed.sessions.counts = SessionCounts(26_000, 0)
    status = await bed.turn()
    assert condition(status, "Degraded") == ("True", "DatabaseUnavailable")
    assert condition(status, "Ready") == ("False", "DatabaseUnavailable")
    assert "partitions" not in status
    assert bed.cluster.autoscalers["fanout"].replicas_min == 6
    since = [one["lastTransitionTime"] for one in status["conditions"]]
    status = await bed.turn(60)
    assert [one["lastTransitionTime"] for one in status["conditions"]] == since
    bed.store.is_away = False
    status = await bed.turn()
    assert condition(status, "Ready") == ("True", "Tended")
    assert bed.reasons().count("DatabaseUnavailable") == 1
    assert bed.reasons().count("Recovered") == 1


async def test_nothing_new_is_nothing_written(bed: TenderBed) -> None:
    await bed.turn()
    written = bed.cluster.status_writes
    for _ in range(50):
        await bed.turn()
    assert bed.cluster.status_writes == written


async def test_numbers_alone_are_written_now_and_then(bed: TenderBed) -> None:
    await bed.turn()
    written = bed.cluster.status_writes
    for _ in range(12):
        await bed.append(100)
        await bed.turn(5)
    assert bed.cluster.status_writes - written <= 60 / 15 + 1


async def test_a_paused_pipeline_is_looked_at_and_not_touched(bed: TenderBed) -> None:
    bed.sessions.counts = SessionCounts(26_000, 0)
    await bed.turn()
    bed.pipeline(paused=True)
    bed.sessions.counts = SessionCounts(0, 0)
    bed.database.partitions.clear()
    for _ in range(100):
        status = await bed.turn()
    assert condition(status, "Ready") == ("False", "Paused")
    assert bed.cluster.autoscalers["fanout"].replicas_min == 6
    assert not bed.database.partitions
    assert status["sessions"] == 0


async def test_a_disabled_floor_gives_the_autoscaler_its_own_minimum_back(bed: TenderBed) -> None:
    bed.sessions.counts = SessionCounts(26_000, 0)
    await bed.turn()
    fanout = {"deployment": "fanout", "autoscaler": "fanout", "floor": {"enabled": False}}
    bed.pipeline(fanout=fanout)
    await bed.turn()
    found = bed.cluster.autoscalers["fanout"]
    assert (found.replicas_min, found.floor, found.base) == (2, None, None)


async def test_a_deleted_pipeline_leaves_no_floor_and_no_policy_behind(bed: TenderBed) -> None:
    bed.sessions.counts = SessionCounts(26_000, 0)
    await bed.turn()
    assert bed.database.retention_policy == RetentionPolicy(400, is_dropped=True)
    # Even where it went while no operator was there.
    bed.cluster.objects.clear()
    bed.tender = bed.make_tender()
    await bed.turn()
    assert bed.cluster.autoscalers["fanout"].replicas_min == 2
    assert bed.database.retention_policy is None


async def test_of_two_pipelines_the_older_is_tended_and_the_other_says_so(bed: TenderBed) -> None:
    younger = {"workers": {"deployment": "worker", "autoscaler": "other"}}
    bed.cluster.put_pipeline("second", younger, created_at="2026-02-01")
    await bed.turn()
    status = dict(bed.cluster.objects[PLURAL, "second"].status)
    assert condition(status, "Ready") == ("False", "Superseded")
    written = bed.cluster.status_writes
    await bed.turn()
    assert bed.cluster.status_writes == written


async def test_retention_of_the_spec_becomes_the_policy_of_all_processes(bed: TenderBed) -> None:
    bed.pipeline(partitions={"retentionDays": 30, "expired": "Keep", "daysAhead": 3})
    status = await bed.turn()
    assert bed.database.retention_policy == RetentionPolicy(30, is_dropped=False)
    assert status["partitions"]["aheadDays"] == 3


async def test_a_missing_autoscaler_is_named(bed: TenderBed) -> None:
    del bed.cluster.autoscalers["worker"]
    status = await bed.turn()
    assert condition(status, "Degraded") == ("True", "AutoscalerMissing")


async def test_lost_records_are_told_of_once_they_are_sure(bed: TenderBed) -> None:
    await bed.append(2)
    reader = MemoryReader(bed.log, STORE_GROUP, "w1")
    # Acknowledged and never stored.
    for shard in range(2):
        await reader.acknowledge(shard, await reader.read(shard, 10, 0))
    status = await bed.turn()
    assert condition(status, "Degraded") == ("False", "NothingWrong")
    status = await bed.turn()
    assert condition(status, "Degraded") == ("True", "RecordsMissing")
    assert status["conservationImbalance"] == 1


async def test_an_api_server_that_is_away_ends_a_turn_and_nothing_else(bed: TenderBed) -> None:
    bed.cluster.is_away = True
    with pytest.raises(Retryable):
        await bed.turn()
    bed.cluster.is_away = False
    status = await bed.turn()
    assert condition(status, "Ready") == ("True", "Tended")


async def test_two_tenders_at_once_do_no_harm(bed: TenderBed) -> None:
    other = bed.make_tender()
    bed.sessions.counts = SessionCounts(26_000, 0)
    for _ in range(3):
        await bed.turn()
        await other.turn()
    found = bed.cluster.autoscalers["fanout"]
    assert (found.replicas_min, found.floor, found.base) == (6, 6, 2)
    bed.cluster.autoscalers["fanout"] = replace(found, replicas_min=3)
    await bed.turn()
    await other.turn()
    found = bed.cluster.autoscalers["fanout"]
    assert (found.replicas_min, found.base) == (6, 3)


def test_sessions_of_all_kinds_are_added() -> None:
    text = (
        "# HELP coffee_rt_fanout_sessions_count Open\n"
        'coffee_rt_fanout_sessions_count{kind="websocket"} 120.0\n'
        'coffee_rt_fanout_sessions_count{kind="stream"} 1.5e+02\n'
        "coffee_rt_fanout_sessions_count_other 7\n"
    )
    assert parse_sessions(text) == 270
