"""A process that ends closes what it opened, and nothing in it opens that again."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from coffee_rt.fanout import wiring as fanout
from coffee_rt.fanout.settings import FanoutSettings
from coffee_rt.order_api import wiring as order_api
from coffee_rt.order_api.settings import OrderApiSettings
from coffee_rt.query_api import wiring as query_api
from coffee_rt.query_api.settings import QueryApiSettings
from coffee_rt.redis_nodes.counts import SharedCounts
from coffee_rt.runtime.lifecycle import Lifecycle
from coffee_rt.runtime.settings import DatabaseSettings, RedisSettings

pytestmark = pytest.mark.integration


def opened(
    process: str, lifecycle: Lifecycle, common: dict[str, Any]
) -> AbstractAsyncContextManager[Any]:
    """The process's parts while the context is open."""
    if process == "order_api":
        return order_api.open_order_api(OrderApiSettings(**common), lifecycle)
    if process == "query_api":
        return query_api.wired(QueryApiSettings(**common), lifecycle)
    return fanout.wired(FanoutSettings(**common), lifecycle)


@pytest.mark.parametrize("process", ["order_api", "query_api", "fanout"])
async def test_nothing_runs_on_while_what_it_uses_is_closed(
    database_url: str,
    valkey_url: str,
    redis_namespace: str,
    process: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A task that settles counts, or looks at the log, would connect again, and nobody would close that."""
    lifecycle = Lifecycle(process)
    running: list[str] = []
    close = SharedCounts.close

    async def look_and_close(counts: SharedCounts) -> None:
        running.extend(task.get_name() for task in lifecycle._tasks)
        await close(counts)

    monkeypatch.setattr(SharedCounts, "close", look_and_close)
    common = {
        "auth": "off",
        "namespace": redis_namespace,
        "redis": RedisSettings(url=valkey_url),
        "database": DatabaseSettings(url=database_url),
    }
    async with opened(process, lifecycle, common):
        assert "rates" in {task.get_name() for task in lifecycle._tasks}
    assert running == []
