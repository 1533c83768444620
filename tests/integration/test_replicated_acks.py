"""What an answer says of the log's replicas, and that it never says more than they have done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from coffee_rt.order_api.main import main
from coffee_rt.order_api.settings import OrderApiSettings
from coffee_rt.runtime.lifecycle import Lifecycle
from coffee_rt.runtime.settings import RedisSettings, SettingsError
from tests.integration.order_api_process import BATCH, ORDER, ORDERS, running_order_api
from tests.log_servers import ValkeyNode, ValkeySentinels, free_ports, running

pytestmark = pytest.mark.integration

WITH_FILE = {"appendonly": "yes"}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeySentinels]:
    """A master with two replicas, all with an append-only file; nobody watches them."""
    made = ValkeySentinels(
        tmp_path_factory.mktemp("copied"), sentinels=0, replicas=2, settings=WITH_FILE
    )
    with running(made):
        yield made


def missed() -> float:
    return REGISTRY.get_sample_value("coffee_rt_log_replicas_missed_total") or 0.0


@pytest.mark.parametrize("level", ["memory", "disk"])
async def test_an_answer_names_the_replicas_and_what_they_did_with_it(
    servers: ValkeySentinels, redis_namespace: str, level: str
) -> None:
    async with running_order_api(
        servers.servers[0].url,
        redis_namespace,
        replicas_min=2,
        replicas_level=level,
        replicas_wait_seconds_max=10,
        wait_seconds_max=60,
    ) as api:
        asked: list[tuple[str, Any, str]] = [
            (ORDERS, ORDER, "K"),
            (ORDERS, ORDER, "K"),
            (BATCH, [ORDER, ORDER], "B"),
            (BATCH, [ORDER, ORDER], "B"),
        ]
        replies = [await api.post(path, body) for path, body, _key in asked[::2]]
        replies += [await api.post(path, body, idempotency_key=key) for path, body, key in asked]
        for reply in replies:
            assert reply.status == 202
            assert (reply.json["replicas"], reply.json["replicas_level"]) == (2, level)
        assert replies[-1].json["duplicates"] == 2
        compat = await api.post("/api/v2/order", ORDER | {"timestamp": "2026-01-01T00:00:00Z"})
        assert "replicas" not in compat.json


async def test_without_replicas_asked_for_none_are_counted(
    servers: ValkeySentinels, redis_namespace: str
) -> None:
    async with running_order_api(servers.servers[0].url, redis_namespace) as api:
        for path, body in ((ORDERS, ORDER), (BATCH, [ORDER])):
            answer = (await api.post(path, body)).json
            assert answer["replicas"] == 0
            assert "replicas_level" not in answer


async def test_a_batch_of_which_nothing_was_taken_counts_no_replica(
    servers: ValkeySentinels, redis_namespace: str
) -> None:
    async with running_order_api(servers.servers[0].url, redis_namespace, replicas_min=1) as api:
        answer = (await api.post(BATCH, [{"store": "uptown"}])).json
        assert (answer["accepted"], answer["replicas"]) == (0, 0)


async def test_a_replica_without_a_file_is_no_disk_and_the_key_finds_the_order(
    servers: ValkeySentinels, redis_namespace: str
) -> None:
    diskless = servers.servers[2]
    diskless.ask("CONFIG", "SET", "appendonly", "no")
    async with running_order_api(
        servers.servers[0].url,
        redis_namespace,
        replicas_min=2,
        replicas_level="disk",
        replicas_wait_seconds_max=0.2,
    ) as api:
        before = missed()
        reply = await api.post(ORDERS, ORDER, idempotency_key="K")
        assert reply.status == 503
        assert reply.json["type"] == "urn:coffee-rt:problem:unknown-outcome"
        assert missed() == before + 1
    diskless.ask("CONFIG", "SET", "appendonly", "yes")
    async with running_order_api(
        servers.servers[0].url,
        redis_namespace,
        replicas_min=2,
        replicas_level="disk",
        replicas_wait_seconds_max=30,
        wait_seconds_max=60,
    ) as api:
        answer = (await api.post(ORDERS, ORDER, idempotency_key="K")).json
        assert (answer["replicas"], answer["duplicate"]) == (2, True)
        assert len(await api.logged()) == 1


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"appendonly": "yes", "rename-command": 'WAITAOF ""'}, "REPLICAS_LEVEL=memory"),
        ({"appendonly": "no"}, "set appendonly yes"),
    ],
)
async def test_a_server_that_cannot_tell_of_disks_is_refused_where_they_are_asked_for(
    tmp_path: Path, settings: dict[str, str], advice: str
) -> None:
    server = ValkeyNode(tmp_path / "one", settings, port=free_ports(1)[0])
    server.start()
    try:
        lifecycle = Lifecycle("order-api")
        told = OrderApiSettings(
            http_port=0,
            auth="off",
            redis=RedisSettings(url=server.url),
            replicas_min=1,
            replicas_level="disk",
        )
        with pytest.raises(SettingsError, match=advice):
            await main(lifecycle, told)
        await lifecycle.stop_tasks()
    finally:
        server.stop(seconds=1)
