"""MetricView, Redrive and Replay with everything real: an API server, PostgreSQL, Valkey, operator and
aggregator processes, while orders flow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from coffee_rt.domain.wire import encode_record
from coffee_rt.store.contract import DeadRecord
from coffee_rt.store.keeper import PostgresKeeper
from tests.api_server import ApiServer
from tests.operator.objects import make, path_of
from tests.operator.test_rights import rendered
from tests.operator.view_shop import KINDS, ViewShop, a_spec, end
from tests.view_writing import a_pool, ensure_partition, expected_rows, live_view, some_orders

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


@pytest.fixture
async def world(
    api: ApiServer, shop: str, database_url: str, valkey_url: str, tmp_path: Path
) -> AsyncIterator[ViewShop]:
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(a_pool(database_url))
        await ensure_partition(pool)
        yield ViewShop(api, shop, database_url, valkey_url, tmp_path, pool, stack)


async def test_a_view_is_made_changed_and_dropped_while_orders_flow(world: ViewShop) -> None:
    await world.commit(some_orders(300, hours=8))
    await world.start("aggregator")
    await world.start_operator()
    flowing = asyncio.create_task(world.flow())
    try:
        world.create("metricviews", "sales", a_spec(deletionPolicy="Drop"))
        status = await world.until_phase("metricviews", "sales", "Live")
        assert (status["view"], "backfill" in status) == ("sales", False)
        # Another shape: readers are never shown less than was there before.
        world.request("PATCH", "metricviews", "sales", {"spec": {"dimensions": ["drink"]}})
        shown = 0

        async def is_changed() -> bool:
            nonlocal shown
            count = await world.counted()
            assert count >= shown
            shown = count
            return (await live_view(world.pool)).definition.dimensions == ("drink",)

        await world.until(is_changed, "the change does not come")
        assert await world.counted() >= shown
        await world.until_phase("metricviews", "sales", "Live")
    finally:
        flowing.cancel()
    await asyncio.wait({flowing})
    await world.until(world.is_right, "the view differs from the orders")
    internal = (await live_view(world.pool)).internal
    world.request("DELETE", "metricviews", "sales")

    async def is_gone() -> bool:
        return bool(world.request("GET", "metricviews", "sales").get("code") == 404)

    await world.until(is_gone, "the object stays")
    assert await world.pool.fetchval("SELECT to_regclass($1)", f"mv_{internal}") is None
    assert "sales" not in {state.definition.name for state in await world.states()}


async def test_a_kept_view_outlives_its_object_and_a_files_view_is_left_alone(
    world: ViewShop,
) -> None:
    await world.start("aggregator")
    await world.start_operator()
    world.create("metricviews", "sales", a_spec(filter=[{"field": "drink", "values": ["tea"]}]))
    world.create("metricviews", "hourly", a_spec())
    status = await world.until_phase("metricviews", "hourly", "Conflict")
    assert "adopt" in status["conditions"][0]["message"]
    await world.until_phase("metricviews", "sales", "Live")
    await world.commit(some_orders(50))
    await world.until(world.is_right, "the view differs from the orders")
    world.request("DELETE", "metricviews", "sales")
    world.request("DELETE", "metricviews", "hourly")

    async def are_gone() -> bool:
        return not world.request("GET", "metricviews")["items"]

    await world.until(are_gone, "the objects stay")
    owners = {state.definition.name: state.owner for state in await world.states()}
    assert owners == {"sales": "kept", "hourly": "file", "minutely": "file"}
    await world.commit(some_orders(50, seed=2))
    await world.until(world.is_right, "the kept view is not maintained")


async def test_letters_are_sent_again_once_though_the_operator_is_killed(world: ViewShop) -> None:
    await world.start("aggregator")
    operators = [await world.start_operator()]
    world.create("metricviews", "sales", a_spec())
    await world.until_phase("metricviews", "sales", "Live")
    parked = some_orders(3000, seed=5)
    for start in range(0, len(parked), 100):
        dead = [
            DeadRecord(index, encode_record(order), "unstorable-entry", "parked", order.tenant)
            for index, order in enumerate(parked[start : start + 100])
        ]
        await world.commit([], dead)
    await world.commit([], [DeadRecord(0, b"\xc1", "unreadable-record", "?")])
    operators.append(await world.start_operator())
    world.create("redrives", "mend", {"letters": {"all": True}, "ttlSecondsAfterFinished": 3600})

    async def has_begun() -> bool:
        stored = await world.pool.fetchval("SELECT count(*) FROM dead_letters WHERE redrive <> ''")
        return bool(stored)

    # One of the two operators works; both are killed, and a third goes on.
    await world.until(has_begun, "nothing is sent")
    for operator in operators:
        await end(operator)
    await world.start_operator()
    status = await world.until_phase("redrives", "mend", "Complete")
    assert (status["stored"], status["stillBad"], status["tried"]) == (3000, 1, 3001)
    world.orders += parked
    await world.until(world.is_right, "the view differs from the orders")
    sums = await PostgresKeeper(world.pool).ledger_sums(0, None)
    assert (sums["records"], sums["stored"], sums["dead"]) == (3001, 3000, 1)


async def test_a_replay_mends_a_view_and_goes_after_its_time(world: ViewShop) -> None:
    await world.start("aggregator")
    await world.start_operator()
    world.create("metricviews", "sales", a_spec())
    await world.until_phase("metricviews", "sales", "Live")
    await world.commit(some_orders(200, hours=30))
    await world.until(world.is_right, "the view differs from the orders")
    internal = (await live_view(world.pool)).internal
    await world.pool.execute(f"UPDATE mv_{internal} SET orders = orders + 7")
    world.create("replays", "mend", {"view": "sales", "ttlSecondsAfterFinished": 1})
    rows = len(expected_rows((await live_view(world.pool)).definition, world.orders))
    seen: dict[str, Any] = {}

    async def is_gone() -> bool:
        seen.update(world.status("replays", "mend"))
        return bool(world.request("GET", "replays", "mend").get("code") == 404)

    await world.until(is_gone, "the finished object stays")
    assert (seen["phase"], seen["rowsChanged"], seen["percent"]) == ("Complete", rows, 100)
    assert await world.is_right()


async def test_an_object_made_while_no_operator_runs_is_tended_by_the_next(world: ViewShop) -> None:
    world.create("metricviews", "sales", a_spec())
    await world.start("aggregator")
    await world.start_operator()
    await world.until_phase("metricviews", "sales", "Live")


async def test_the_operator_goes_on_after_the_api_server_was_away(world: ViewShop) -> None:
    await world.start("aggregator")
    await world.start_operator()
    world.create("metricviews", "sales", a_spec())
    await world.until_phase("metricviews", "sales", "Live")
    world.api.stop_server()
    await world.commit(some_orders(20))
    await world.until(world.is_right, "orders do not flow without the API server")
    world.api.start_server()

    async def is_asked_for() -> bool:
        # A server that just started does not serve our kinds yet.
        answer = world.request("PATCH", "metricviews", "sales", {"spec": {"bucket": "day"}})
        return "code" not in answer

    await world.until(is_asked_for, "the API server does not come back")

    async def is_changed() -> bool:
        return {s.definition.bucket.value for s in await world.states()} >= {"day"}

    await world.until(is_changed, "the operator does not come back")
    await world.until_phase("metricviews", "sales", "Live")


async def test_the_charts_rights_are_enough_for_views_and_work(world: ViewShop) -> None:
    objects = {each["kind"]: each for each in rendered(world.namespace)}
    for kind in ("ServiceAccount", "Role", "RoleBinding"):
        make(world.api, world.namespace, objects[kind])
    account = objects["ServiceAccount"]["metadata"]["name"]
    path = f"{path_of('ServiceAccount', world.namespace)}/{account}/token"
    status, answer = world.api.request("POST", path, {"spec": {}})
    assert status == 201, answer
    world.token = answer["status"]["token"]
    await world.start("aggregator")
    operator = await world.start_operator()
    world.create("metricviews", "sales", a_spec(deletionPolicy="Drop"))
    await world.until_phase("metricviews", "sales", "Live")
    for plural, spec in (("redrives", {"letters": {"all": True}}), ("replays", {})):
        world.create(plural, "work", {**spec, "ttlSecondsAfterFinished": 0})
    world.request("DELETE", "metricviews", "sales")

    async def are_gone() -> bool:
        return not any(world.request("GET", plural)["items"] for plural in KINDS)

    await world.until(are_gone, "an object stays")
    operator.terminate()
    assert await operator.wait() == 0
    assert "forbidden" not in (world.folder / "operator.log").read_text().lower()
