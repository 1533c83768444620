"""The operator does what its objects ask for while orders flow, and orders flow without it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asking import Caller, Refused, an_order
from kube import Json, wait_until
from recording import Recorder
from release import NAME, Release
from tended import condition, make, refusal, remove, status_of, until_phase

MEASURES = [
    {"name": "orders", "aggregate": "count"},
    {"name": "revenue", "aggregate": "sum", "field": "revenue"},
]
HISTORY_HOURS = 600
"""Of one order each, long ago: as many chunks for a backfill or a replay."""


def view_spec(**changes: Any) -> Json:
    spec = {"bucket": "hour", "dimensions": ["store", "drink"], "measures": MEASURES}
    return {**spec, "deletionPolicy": "Drop", **changes}


@pytest.mark.smoke
def test_the_pipeline_is_ready_and_tells_how_it_is(tended: Release) -> None:
    def is_calm() -> bool:
        status = pipeline(tended)
        return condition(status, "Ready").get("status") == "True" and status["backlogRecords"] == 0

    wait_until(is_calm, "the pipeline is ready", 60, last_words=tended.kube.describe_trouble)
    status = pipeline(tended)
    assert status["conservationImbalance"] == 0
    assert status["partitions"]["aheadDays"] == 7
    assert {one["type"]: one["status"] for one in status["conditions"]} == {
        "Ready": "True",
        "Draining": "False",
        "Degraded": "False",
    }
    assert {status["floors"][process]["floor"] for process in ("workers", "fanout")} == {1}
    row = tended.kube.kubectl("get", "orp", NAME, "--no-headers").split()
    assert row[:4] == [NAME, "True", "Tended", "0"], row


@pytest.mark.smoke
def test_partitions_are_made_as_far_ahead_as_is_asked(tended: Release) -> None:
    before = attached_partitions(tended)
    wish_for_days(tended, 10)
    wait_until(
        lambda: pipeline(tended).get("partitions", {}).get("aheadDays") == 10,
        "ten days have a partition",
        60,
    )
    assert attached_partitions(tended) == before + 3
    wish_for_days(tended, 7)


@pytest.mark.smoke
def test_what_can_not_be_is_refused_with_a_sentence(tended: Release) -> None:
    kube = tended.kube

    def said(kind: str, **spec: Any) -> str:
        return refusal(kube, kind, **spec)

    count_of_price = {"name": "orders", "aggregate": "count", "field": "price"}
    wrong = view_spec(measures=[count_of_price])
    assert "a count has no field; sum, min and max have one" in said("MetricView", **wrong)
    wrong = view_spec(dimensions=["store", "attributes.store"])
    assert "two dimensions have the same name" in said("MetricView", **wrong)
    wrong = view_spec(measures=[{"name": "lane", "aggregate": "count"}])
    assert "the name is reserved" in said("MetricView", **wrong)
    assert 'supported values: "minute", "hour", "day"' in said(
        "MetricView", **view_spec(bucket="week")
    )
    assert "all stands alone" in said("Redrive", letters={"all": True, "code": "bad-data"})
    span = {"from": "2026-02-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}
    assert "to must be after from" in said("Replay", span=span)
    floor = {"min": 3, "max": 2}
    workers = {"deployment": "any", "floor": floor}
    assert "min must not be above max" in said("OrderPipeline", workers=workers)


@pytest.mark.smoke
def test_a_view_is_made_changed_and_dropped_while_orders_flow(
    tended: Release, caller: Caller
) -> None:
    kube = tended.kube
    with Recorder(tended, orders_per_second=30, sockets=2) as recorder:
        make(kube, "MetricView", "sales", **view_spec())
        until_phase(kube, "MetricView", "sales", "Live")
        recorder.run_on(30)
        # Another shape: a reader is never shown less than was there before, nor a view that is not there.
        shown = [caller.total("sales")]
        make(kube, "MetricView", "sales", **view_spec(dimensions=["drink"]))

        def is_changed() -> bool:
            shown.extend(caller.total("sales") for _ in range(10))
            return dimensions(caller, "sales") == ["drink"]

        wait_until(is_changed, "the view is swapped", every_seconds=0)
        shown.extend(caller.total("sales") for _ in range(10))
        assert shown == sorted(shown)
        status = until_phase(kube, "MetricView", "sales", "Live")
        assert condition(status, "Filled")["status"] == "True"
    assert recorder.result is not None
    wait_until(
        lambda: caller.total("sales") == tended.stored_orders(), "all orders are in the view"
    )
    tended.command("audit", "sales")
    remove(kube, "MetricView", "sales")
    with pytest.raises(Refused, match="404"):
        caller.total("sales")
    assert not view_tables(tended, "sales")


@pytest.mark.smoke
def test_a_dead_letter_is_sent_again_when_its_cause_is_gone(
    tended: Release, caller: Caller
) -> None:
    tended.sql("ALTER TABLE orders ADD CONSTRAINT no_maple CHECK (drink <> 'maple') NOT VALID")
    try:
        caller.post_orders([an_order("mended", drink="maple"), an_order("mended")], ack="stored")
    finally:
        tended.sql("ALTER TABLE orders DROP CONSTRAINT no_maple")
    [letter] = caller.get("query-api", "/api/v1/dead-letters")["dead_letters"]
    assert letter["code"] == "bad-data"
    assert tended.stored_orders("mended") == 1
    make(tended.kube, "Redrive", "rehearsal", letters={"code": "bad-data"}, dryRun=True)
    status = until_phase(tended.kube, "Redrive", "rehearsal", "Complete")
    assert (status["stored"], tended.stored_orders("mended")) == (1, 1)
    make(tended.kube, "Redrive", "mend", letters={"code": "bad-data"}, ttlSecondsAfterFinished=1)
    wait_until(lambda: tended.kube.find("rdr", "mend") is None, "done, and gone after its time", 60)
    remove(tended.kube, "Redrive", "rehearsal")
    assert tended.stored_orders("mended") == 2
    assert not caller.get("query-api", "/api/v1/dead-letters")["dead_letters"]
    wait_until(lambda: caller.total("hourly") == tended.stored_orders(), "it is in the views too")
    tended.command("audit", "hourly")
    wait_until(lambda: pipeline(tended)["conservationImbalance"] == 0, "the sums are right", 30)


def test_a_files_view_is_left_alone_and_a_kept_one_outlives_its_object(
    tended: Release, caller: Caller
) -> None:
    kube = tended.kube
    before = dimensions(caller, "hourly")
    make(kube, "MetricView", "hourly", **view_spec(dimensions=[]))
    status = until_phase(kube, "MetricView", "hourly", "Conflict")
    assert "`adopt: true` takes it over" in condition(status, "Ready")["message"]
    remove(kube, "MetricView", "hourly")
    assert dimensions(caller, "hourly") == before

    tea = [{"field": "drink", "values": ["tea"]}]
    make(kube, "MetricView", "teas", **view_spec(filter=tea, deletionPolicy="Keep"))
    until_phase(kube, "MetricView", "teas", "Live")
    remove(kube, "MetricView", "teas")
    known = caller.total("teas")
    caller.post_orders([an_order("kept", number) for number in range(8)])
    wait_until(lambda: caller.total("teas") == known + 2, "a view that nobody owns is maintained")
    # Whoever defines it next has it, whole, and may drop it.
    make(kube, "MetricView", "teas", **view_spec(filter=tea))
    until_phase(kube, "MetricView", "teas", "Live")
    assert caller.total("teas") == known + 2
    remove(kube, "MetricView", "teas")
    assert not view_tables(tended, "teas")


def test_a_backfill_and_a_replay_go_on_though_their_operator_is_killed(
    tended: Release, caller: Caller, history: int
) -> None:
    kube = tended.kube
    make(kube, "MetricView", "past", **view_spec(dimensions=["drink"], retentionDays=1000))
    wait_until(
        lambda: status_of(kube, "MetricView", "past").get("phase") == "Filling",
        "the view is being filled",
        every_seconds=0.1,
    )
    kill_operator(tended)
    until_phase(kube, "MetricView", "past", "Live", 180)
    total = caller.total("past", last="400d")
    assert total == tended.stored_orders() >= history

    [table] = view_tables(tended, "past")
    rows = int(tended.sql(f"SELECT count(*) FROM {table}")[0][0])
    tended.sql(f"UPDATE {table} SET orders = orders + 7")
    assert caller.total("past", last="400d") > total
    make(kube, "Replay", "mend", view="past")

    def is_half_way() -> bool:
        return bool(20 <= status_of(kube, "Replay", "mend").get("percent", 0) < 80)

    wait_until(is_half_way, "the replay is half-way", every_seconds=0.2)
    done = status_of(kube, "Replay", "mend")["chunksDone"]
    kill_operator(tended)
    status = until_phase(kube, "Replay", "mend", "Complete", 180)
    assert status["percent"] == 100
    assert status["chunksDone"] >= HISTORY_HOURS > done
    # What was rebuilt but not yet told when it was killed is looked at again, and found right.
    assert rows * 0.8 < status["rowsChanged"] <= rows
    assert caller.total("past", last="400d") == total
    tended.command("audit", "past")
    remove(kube, "Replay", "mend")
    remove(kube, "MetricView", "past")


def test_orders_flow_while_no_operator_runs(tended: Release, caller: Caller) -> None:
    kube = tended.kube
    kube.kubectl("scale", f"deployment/{NAME}-operator", "--replicas=0")
    wait_until(lambda: not kube.pods("operator"), "no operator runs")
    try:
        with Recorder(tended) as recorder:
            make(kube, "MetricView", "late", **view_spec())
            recorder.run_on(100)
            assert not status_of(kube, "MetricView", "late")
    finally:
        kube.kubectl("scale", f"deployment/{NAME}-operator", "--replicas=1")
    kube.wait_rolled_out(f"deployment/{NAME}-operator")
    until_phase(kube, "MetricView", "late", "Live")
    assert caller.total("late") == caller.total("hourly")
    remove(kube, "MetricView", "late")


@pytest.fixture(scope="module")
def caller(tended: Release) -> Any:
    with Caller(tended) as caller:
        yield caller


@pytest.fixture(scope="module")
def history(caller: Caller) -> int:
    """Orders of long ago, one an hour."""
    now = datetime.now(UTC)
    orders = [
        an_order("history", hour, ordered_at=(now - timedelta(days=5, hours=hour)).isoformat())
        for hour in range(HISTORY_HOURS)
    ]
    caller.post_orders(orders, ack="stored")
    return len(orders)


def pipeline(release: Release) -> Json:
    return status_of(release.kube, "OrderPipeline", NAME)


def wish_for_days(release: Release, days: int) -> None:
    release.kube.patch("orp", NAME, {"spec": {"partitions": {"daysAhead": days}}})


def attached_partitions(release: Release) -> int:
    query = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'orders'::regclass"
    return int(release.sql(query)[0][0])


def dimensions(caller: Caller, view: str) -> list[str]:
    views = caller.get("query-api", "/api/v1/views")["views"]
    found: list[str] = next(one["dimensions"] for one in views if one["name"] == view)
    return found


def view_tables(release: Release, view: str) -> list[str]:
    """Tables with the view's rows, by the catalogue."""
    query = f"SELECT 'mv_' || internal FROM view_catalogue WHERE definition ->> 'name' = '{view}'"
    return [row[0] for row in release.sql(query)]


def kill_operator(release: Release) -> None:
    """As when its node dies: nothing is given up, and its Lease has to run out."""
    [old] = release.kube.pods("operator")
    release.kube.kubectl("delete", "pod", old.name, "--grace-period=0", "--force", "--wait=false")
    is_new: Callable[[], bool] = lambda: any(  # noqa: E731
        pod.uid != old.uid for pod in release.kube.ready_pods("operator")
    )
    wait_until(is_new, "another operator", 120, last_words=release.kube.describe_trouble)
