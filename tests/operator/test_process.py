"""The operator as it runs: with a real API server, a real log and a real database."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from coffee_rt.runtime.settings import RedisSettings
from coffee_rt.streams.contract import STORE_GROUP
from coffee_rt.streams.redis_log import RedisLog
from tests.api_server import ApiServer
from tests.operator.objects import (
    autoscaler,
    deployment,
    make,
    path_of,
    pipeline,
    pod,
    read,
    set_status,
)
from tests.operator.running import Operators, condition, eventually, operators
from tests.streams_bed import an_append

pytestmark = pytest.mark.timeout(180)

WORKERS = {
    "deployment": "worker",
    "autoscaler": "worker",
    "floor": {
        "targetSeconds": 5,
        "assumedRecordsPerSecond": 10,
        "lowerAfterSeconds": 1,
        "lowerEverySeconds": 1,
    },
}
FANOUT = {"deployment": "fanout", "autoscaler": "fanout", "floor": {"sessionsPerPod": 100}}


class World:
    """One namespace with stores of its own and the operators in it."""

    def __init__(self, api: ApiServer, shop: str, running: Operators, log: RedisLog) -> None:
        self.api, self.shop, self.running, self.log = api, shop, running, log

    def pipeline(self) -> dict[str, Any]:
        return read(self.api, self.shop, "OrderPipeline", "coffee")

    def ready(self) -> bool:
        return condition(self.pipeline(), "Ready") == ("True", "Tended")

    def floor(self, name: str) -> int:
        found = read(self.api, self.shop, "HorizontalPodAutoscaler", name)
        return int(found["spec"]["minReplicas"])

    def holder(self) -> str:
        path = f"/apis/coordination.k8s.io/v1/namespaces/{self.shop}/leases/coffee-rt-operator"
        status, answer = self.api.request("GET", path)
        return str(answer["spec"]["holderIdentity"]) if status == 200 else ""

    def reasons(self) -> list[str]:
        _, answer = self.api.request("GET", f"/api/v1/namespaces/{self.shop}/events")
        return [event["reason"] for event in answer["items"]]

    async def eventually(self, ask: Any, seconds_max: float = 30.0) -> Any:
        return await eventually(ask, seconds_max, self.running.tell)


@pytest.fixture
async def world(
    api: ApiServer,
    shop: str,
    tmp_path: Path,
    database_url: str,
    valkey_url: str,
    redis_namespace: str,
) -> AsyncIterator[World]:
    environ = {
        "KUBECONFIG": str(api.kubeconfig(shop, name=shop)),
        "COFFEE_RT_REDIS_URL": valkey_url,
        "COFFEE_RT_DATABASE_URL": database_url,
        "COFFEE_RT_NAMESPACE": redis_namespace,
        "COFFEE_RT_SHARDS": "2",
        "COFFEE_RT_HTTP_PORT": "0",
        "COFFEE_RT_BREAKER_OPEN_SECONDS": "1",
        "COFFEE_RT_OPERATOR_TEND_SECONDS": "0.5",
        "COFFEE_RT_OPERATOR_LEASE_SECONDS": "4",
        "COFFEE_RT_OPERATOR_BACKOFF_SECONDS_MAX": "1",
    }
    for name in ("worker", "fanout"):
        make(api, shop, autoscaler(name, 1, 6))
        make(api, shop, deployment(name))
    make(api, shop, pipeline({"workers": WORKERS, "fanout": FANOUT}))
    log = RedisLog(RedisSettings(url=valkey_url), redis_namespace, 2)
    with operators(tmp_path, environ) as running:
        yield World(api, shop, running, log)


async def test_it_makes_partitions_tells_the_status_and_ends_with_0(
    world: World, database_url: str
) -> None:
    operator = world.running.start()
    await world.eventually(world.ready)
    status = world.pipeline()["status"]
    assert status["partitions"]["aheadDays"] == 7
    assert status["conservationImbalance"] == 0
    assert status["floors"]["workers"]["reason"] == "AtLeast"
    connection = await asyncpg.connect(database_url)
    try:
        policy = await connection.fetchval(
            "SELECT value FROM install WHERE name = 'retention_policy'"
        )
    finally:
        await connection.close()
    assert policy == "400 drop"
    assert "finalizers" not in world.pipeline()["metadata"]
    assert operator.end() == 0
    assert world.holder() == ""


async def test_a_backlog_raises_the_floor_and_its_end_lowers_it(world: World) -> None:
    world.running.start()
    await world.eventually(world.ready)
    producer = world.log.producer()
    await producer.start()
    keeper, reader = world.log.keeper(), world.log.reader(STORE_GROUP, "w1")
    try:
        await keeper.ensure_group(STORE_GROUP)
        await producer.append_many(0, [an_append(producer) for _ in range(120)])
        await world.eventually(lambda: world.floor("worker") == 3)
        await world.eventually(lambda: condition(world.pipeline(), "Draining")[0] == "True")
        while deliveries := await reader.read(0, 100, 0.1):
            await reader.acknowledge(0, deliveries)
        await world.eventually(lambda: world.floor("worker") == 1)
    finally:
        await reader.leave()
        await keeper.close()
        await producer.close()
    notes = read(world.api, world.shop, "HorizontalPodAutoscaler", "worker")["metadata"]
    assert "coffee-rt.dev/floor" not in notes.get("annotations", {})
    assert {"FloorRaised", "FloorLowered", "PartitionsMade"} <= set(world.reasons())


async def test_the_fanouts_floor_follows_what_its_pods_say(world: World, pod_port: int) -> None:
    world.running.start()
    make(world.api, world.shop, pod("fanout-1", "fanout", pod_port))
    running = {"phase": "Running", "podIP": "127.0.0.1"}
    set_status(world.api, world.shop, "pods", "fanout-1", running)
    await world.eventually(lambda: world.floor("fanout") == 4)
    await world.eventually(lambda: world.pipeline().get("status", {}).get("sessions") == 350)


async def test_of_two_operators_one_works_and_a_killed_one_is_replaced(world: World) -> None:
    first = world.running.start("one")
    await world.eventually(world.ready)
    second = world.running.start("two")
    await asyncio.sleep(0)
    await world.eventually(lambda: "listening" in second.text())
    assert world.holder() == "one"
    first.kill()
    await world.eventually(lambda: world.holder() == "two", 15)
    assert second.is_running
    # And it works.
    make(world.api, world.shop, pipeline({}, name="later"))
    later = f"{path_of('OrderPipeline', world.shop)}/later"
    await world.eventually(
        lambda: condition(world.api.request("GET", later)[1], "Ready") == ("False", "Superseded")
    )


async def test_it_goes_on_after_the_api_server_was_away(world: World) -> None:
    operator = world.running.start()
    await world.eventually(world.ready)
    world.api.stop_server()
    try:
        await world.eventually(lambda: "the lease is lost" in operator.text(), 30)
    finally:
        world.api.start_server()
    path = f"{path_of('OrderPipeline', world.shop)}/coffee"
    patch = {"spec": {"partitions": {"daysAhead": 3}}}
    code, answer = world.api.request("PATCH", path, patch, kind="application/merge-patch+json")
    assert code == 200, answer
    await world.eventually(
        lambda: world.pipeline().get("status", {}).get("observedGeneration") == 2
    )
    assert operator.is_running
    assert operator.end() == 0


async def test_a_deleted_pipeline_leaves_at_once_and_takes_its_floors_along(
    world: World, pod_port: int
) -> None:
    operator = world.running.start()
    make(world.api, world.shop, pod("fanout-1", "fanout", pod_port))
    running = {"phase": "Running", "podIP": "127.0.0.1"}
    set_status(world.api, world.shop, "pods", "fanout-1", running)
    await world.eventually(lambda: world.floor("fanout") == 4)
    assert operator.end(signal.SIGTERM) == 0
    # The operator is gone: the object must go all the same, and the next one tidies up.
    path = f"{path_of('OrderPipeline', world.shop)}/coffee"
    assert world.api.request("DELETE", path)[0] == 200
    assert world.api.request("GET", path)[0] == 404
    world.running.start("two")
    await world.eventually(lambda: world.floor("fanout") == 1)


async def test_a_database_that_is_away_is_told_of_and_survived(world: World) -> None:
    operator = world.running.start(COFFEE_RT_DATABASE_URL="postgresql://nobody@127.0.0.1:9/nothing")
    await world.eventually(
        lambda: condition(world.pipeline(), "Degraded") == ("True", "DatabaseUnavailable")
    )
    assert world.pipeline()["status"]["backlogRecords"] == 0
    assert "DatabaseUnavailable" in world.reasons()
    assert operator.is_running
    assert operator.end() == 0
