"""LightkubeCluster on a real API server: floors, leases, events, statuses, pods."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from coffee_rt.errors import Retryable
from coffee_rt.operator.cluster import LightkubeCluster
from coffee_rt.operator.contract import Lease, ObjectRef
from coffee_rt.operator.floors import base_of
from tests.api_server import ApiServer
from tests.operator.objects import autoscaler, deployment, make, pipeline, pod, set_status


@pytest.fixture
async def cluster(
    api: ApiServer, shop: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LightkubeCluster]:
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(shop)))
    cluster = LightkubeCluster()
    yield cluster
    await cluster.close()


async def test_the_namespace_is_that_of_the_account(cluster: LightkubeCluster, shop: str) -> None:
    assert cluster.namespace == shop


async def test_a_floor_is_noted_and_taken_back(
    api: ApiServer, cluster: LightkubeCluster, shop: str
) -> None:
    make(api, shop, autoscaler("worker", 1, 6))
    found = await cluster.autoscaler("worker")
    assert found is not None
    assert (found.replicas_min, found.replicas_max, found.floor) == (1, 6, None)
    assert await cluster.floored_autoscalers() == []
    await cluster.set_floor(found, 4, 1)
    (raised,) = await cluster.floored_autoscalers()
    assert (raised.replicas_min, raised.floor, raised.base, base_of(raised)) == (4, 4, 1, 1)
    with pytest.raises(Retryable, match="modified"):
        await cluster.set_floor(found, 5, 1)
    await cluster.set_floor(raised, 1, None)
    found = await cluster.autoscaler("worker")
    assert found is not None
    assert (found.replicas_min, found.floor, found.base) == (1, None, None)
    assert await cluster.autoscaler("nobody") is None


async def test_of_two_that_take_a_lease_one_gets_it(cluster: LightkubeCluster) -> None:
    made = await asyncio.gather(
        *(cluster.create_lease(Lease("lead", name, 12)) for name in ("one", "two"))
    )
    assert sorted(made) == [False, True]
    seen = await cluster.lease("lead")
    assert seen is not None
    taken = await asyncio.gather(
        *(
            cluster.replace_lease(Lease("lead", name, 12, seen.version), is_taken=True)
            for name in ("three", "four")
        )
    )
    assert sorted(taken) == [False, True]
    now = await cluster.lease("lead")
    assert now is not None
    assert (now.holder in {"three", "four"}, now.transitions) == (True, 1)
    assert now.version != seen.version


async def test_a_status_is_merged_and_what_is_unknown_goes(
    api: ApiServer, cluster: LightkubeCluster, shop: str
) -> None:
    make(api, shop, pipeline({}))
    await cluster.write_status("orderpipelines", "coffee", {"backlogRecords": 7, "sessions": 3})
    await cluster.write_status("orderpipelines", "coffee", {"backlogRecords": None})
    (found,) = await cluster.list_objects("orderpipelines")
    assert found.status == {"sessions": 3}
    assert found.generation == 1
    again = await cluster.read_object("orderpipelines", "coffee")
    assert again == found
    assert await cluster.read_object("orderpipelines", "nobody") is None


async def test_an_event_names_its_object(
    api: ApiServer, cluster: LightkubeCluster, shop: str
) -> None:
    await cluster.add_event(
        ObjectRef("OrderPipeline", "coffee", "uid-1"), "Normal", "FloorRaised", "at least 3"
    )
    _, answer = api.request("GET", f"/api/v1/namespaces/{shop}/events")
    (event,) = answer["items"]
    assert (event["reason"], event["type"], event["message"]) == (
        "FloorRaised",
        "Normal",
        "at least 3",
    )
    assert event["involvedObject"]["name"] == "coffee"


async def test_running_pods_are_found_with_their_port(
    api: ApiServer, cluster: LightkubeCluster, shop: str
) -> None:
    make(api, shop, deployment("fanout"))
    set_status(api, shop, "deployments", "fanout", {"replicas": 2, "readyReplicas": 2})
    for name, status in (
        ("a", {"phase": "Running", "podIP": "10.0.0.1"}),
        ("b", {"phase": "Pending"}),
        ("c", {"phase": "Succeeded", "podIP": "10.0.0.3"}),
    ):
        make(api, shop, pod(name, "fanout", 8000))
        set_status(api, shop, "pods", name, status)
    make(api, shop, pod("d", "worker", 8000))
    workload = await cluster.workload("fanout")
    assert workload is not None
    assert workload.pods_ready == 2
    running = await cluster.running_pods(workload)
    assert [(one.name, one.host, one.port) for one in running] == [("a", "10.0.0.1", 8000)]
    assert await cluster.workload("nobody") is None


async def test_a_kind_that_is_not_served_is_retryable(cluster: LightkubeCluster, shop: str) -> None:
    absent: Any = ObjectRef("OrderPipeline", "coffee", "uid-1")
    await cluster.delete_object("redrives", absent)
    with pytest.raises(Retryable):
        await cluster.write_status("orderpipelines", "nobody", {"sessions": 1})
