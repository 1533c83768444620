"""Pods come when there is more to do and go when it is done, and no order is lost on the way."""

from __future__ import annotations

import re
import time

import pytest
from kube import Json, wait_until
from recording import Recorder
from release import NAME, Release
from tended import FANOUT_MAX, SESSIONS_PER_POD, WORKERS_MAX, condition, status_of


def test_order_api_scales_out_on_cpu_and_back_in(tended: Release) -> None:
    with Recorder(tended, orders_per_second=60, sockets=1) as recorder:
        until_pods(tended, "order-api", 2)
        # Orders meet the new pods, and those that leave.
        recorder.run_on(200)
    until_pods_at_most(tended, "order-api", 1)
    assert recorder.result is not None


@pytest.mark.smoke
def test_workers_come_for_a_backlog_and_go_when_it_is_stored(tended: Release) -> None:
    """PostgreSQL is away for a while: what waits then is stored by more workers, each order once."""
    with Recorder(tended, orders_per_second=40, sockets=1) as recorder:
        tended.kube.kubectl("scale", f"statefulset/{NAME}-postgresql", "--replicas=0")
        wait_until(lambda: floor(tended, "worker") == WORKERS_MAX, "the floor is raised")
        assert notes(tended, "worker")["coffee-rt.dev/floor-base"] == "1"
        # They become ready when there is a database, and soon after that too many.
        until_pods(tended, "worker", WORKERS_MAX, is_ready=False)
        tended.kube.kubectl("scale", f"statefulset/{NAME}-postgresql", "--replicas=1")
        recorder.run_on(40)
    assert recorder.result is not None
    check_way_down(tended, "worker", "workers", WORKERS_MAX)
    until_pods_at_most(tended, "worker", 1)
    until_settled(tended)


@pytest.mark.smoke
def test_fanout_pods_come_for_sessions_and_go_after_them(tended: Release) -> None:
    sockets = SESSIONS_PER_POD * (FANOUT_MAX - 1) + 1
    with Recorder(tended, orders_per_second=10, sockets=sockets) as recorder:
        until_pods(tended, "fanout", FANOUT_MAX)
        recorder.run_on(20)
    assert recorder.result is not None
    check_way_down(tended, "fanout", "fanout", FANOUT_MAX)
    until_pods_at_most(tended, "fanout", 1)


def test_an_upgrade_does_not_lose_a_raised_floor(tended: Release) -> None:
    """helm writes its own minimum again; the operator's next look is seconds later."""
    wish = {"spec": {"fanout": {"floor": {"min": 2}}}}
    tended.kube.patch("orp", NAME, wish)
    try:
        until_pods(tended, "fanout", 2)
        tended.upgrade({"commonAnnotations": {"example.com/upgrade": "again"}})
        begun = time.monotonic()
        wait_until(lambda: floor(tended, "fanout") == 2, "the floor is back", every_seconds=0.1)
        assert time.monotonic() - begun < 10
        assert len(tended.kube.ready_pods("fanout")) >= 2
    finally:
        tended.kube.patch("orp", NAME, {"spec": {"fanout": {"floor": {"min": None}}}})
    wait_until(lambda: floor(tended, "fanout") == 1, "the floor goes with the wish")
    assert not notes(tended, "fanout")


def floor(release: Release, component: str) -> int:
    return int(release.autoscaler(component)["spec"]["minReplicas"])


def notes(release: Release, component: str) -> Json:
    """What the operator noted on the autoscaler; nothing while nothing is raised."""
    annotations = release.autoscaler(component)["metadata"].get("annotations", {})
    return {key: value for key, value in annotations.items() if key.startswith("coffee-rt.dev/")}


def until_pods(release: Release, component: str, count: int, *, is_ready: bool = True) -> None:
    pods = release.kube.ready_pods if is_ready else release.kube.pods
    wait_until(
        lambda: len(pods(component)) >= count,
        f"{count} {component} pods",
        180,
        last_words=lambda: release.kube.kubectl("get", "hpa,orp") + release.kube.describe_trouble(),
    )


def until_pods_at_most(release: Release, component: str, count: int) -> None:
    wait_until(
        lambda: len(release.kube.pods(component)) <= count,
        f"no more than {count} {component} pods",
        180,
        last_words=lambda: release.kube.kubectl("get", "hpa,orp"),
    )


def check_way_down(release: Release, component: str, called: str, most: int) -> None:
    """The floor comes down from the most pods to one, a pod at a time, by what the operator told in its events."""
    wait_until(lambda: floor(release, component) == 1, f"the floor of {component} is down", 120)
    told = [
        event["message"]
        for event in release.kube.objects("events")
        if event["reason"] == "FloorLowered"
    ]
    steps = [re.match(rf"at least (\d+) {called} pods \(before: (\d+)", text) for text in told]
    known = [(int(step[2]), int(step[1])) for step in steps if step]
    assert all(before - after == 1 for before, after in known), told
    assert {after for _, after in known} == set(range(1, most)), told


def until_settled(release: Release) -> None:
    """The pipeline says that all is well: nothing waits, nothing is missing, nothing is there twice."""

    def is_settled() -> bool:
        status = status_of(release.kube, "OrderPipeline", NAME)
        return (
            condition(status, "Ready").get("status") == "True"
            and condition(status, "Draining").get("status") == "False"
            and (status["backlogRecords"], status["conservationImbalance"]) == (0, 0)
        )

    wait_until(
        is_settled,
        "the pipeline is settled",
        60,
        last_words=lambda: release.kube.kubectl("describe", "orp", NAME),
    )
