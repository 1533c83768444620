"""Each query of the dashboards and alerts, asked of a real Prometheus that scrapes the real processes.

One platform and one Prometheus for the module. First everything is well: each panel has data and no alert
fires. Then each fault is really made, and its alert fires: the tests go from faults that pass to those
that stay in the log.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import asyncpg
import pytest
import redis

from coffee_rt.embedded.directory import running_environment
from coffee_rt.streams.shards import LogKeys
from dashboards.grafana.__main__ import DASHBOARDS, FOLDER
from tests.acceptance.running import Platform
from tests.monitoring.prometheus import (
    NAMESPACE,
    RELEASE,
    Prometheus,
    metrics_ports,
    wait_until,
)
from tests.monitoring.rules import rules, with_thresholds
from tests.monitoring.test_runbooks import PAGES, blocks

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

HASTE = {
    "COFFEE_RT_WORKER_CARE_SECONDS": "1",
    "COFFEE_RT_WORKER_CLAIM_EVERY_SECONDS": "1",
    "COFFEE_RT_WORKER_CLAIM_IDLE_SECONDS_MIN": "2",
}
THRESHOLDS = {"backlogSeconds": 3, "freshnessSeconds": 3}
DATA_SECONDS_MAX = 60
ONLY_IN_TROUBLE = 'status=~"5.."'
"""A status is known when it was first answered: its series can't be there before."""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in HASTE.items():
            patch.setenv(name, value)
        folder = tmp_path_factory.mktemp("monitored") / "data"
        running = Platform(folder, "--simulate", "30")
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def prometheus(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus") / "home"
    running = Prometheus(folder, metrics_ports(platform), THRESHOLDS)
    try:
        running.wait_ready()
        folded = "sum(increase(coffee_rt_aggregator_folds_total[10s])) > 0"
        seen = "sum(increase(coffee_rt_fanout_publications_total[10s])) > 0"
        answered = "sum(increase(coffee_rt_order_api_request_seconds_count[10s])) > 0"
        for expression in (folded, seen, answered):
            wait_until(partial(running.query, expression), 60, running.log)
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def log_server(platform: Platform) -> Iterator[redis.Redis]:
    environ = running_environment(platform.folder)
    assert environ is not None
    client = redis.Redis.from_url(environ["COFFEE_RT_REDIS_URL"])
    yield client
    client.close()


@pytest.fixture(scope="module")
def keys(log_server: redis.Redis) -> LogKeys:
    stored: Any = log_server.hget("coffee-rt:install", "shards")
    return LogKeys("coffee-rt", int(stored))


def panel_queries() -> list[str]:
    """The queries of all dashboards, as Grafana asks with the release chosen and all of its pods."""
    found = []
    for name in DASHBOARDS:
        for panel in json.loads((FOLDER / name).read_text())["panels"]:
            for target in panel.get("targets", ()):
                query = target["expr"].replace("$namespace", NAMESPACE).replace("$pod", ".*")
                query = query.replace("$release", RELEASE).replace("$__rate_interval", "30s")
                assert "$" not in query
                found.append(query)
    return found


@contextmanager
def frozen(platform: Platform, part: str) -> Iterator[None]:
    """A part that hangs: it is there and does nothing."""
    pid = platform.pid_of(part)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def empty_of(prometheus: Prometheus, queries: Iterable[str]) -> list[str]:
    """Those that are still without data when they had the time to get some."""
    left = list(queries)

    def is_nothing_left() -> bool:
        left[:] = [query for query in left if not prometheus.query(query)]
        return not left

    with suppress(AssertionError):
        wait_until(is_nothing_left, DATA_SECONDS_MAX, lambda: str(left))
    return left


def test_each_panel_has_data(prometheus: Prometheus) -> None:
    asked = [query for query in panel_queries() if ONLY_IN_TROUBLE not in query or " or " in query]
    assert len(asked) > 30
    assert empty_of(prometheus, asked) == []


def test_the_variables_of_the_dashboards_offer_what_runs(prometheus: Prometheus) -> None:
    assert prometheus.values_of("namespace", "coffee_rt_ready_ratio") == [NAMESPACE]
    assert prometheus.values_of("release", "coffee_rt_ready_ratio") == [RELEASE]
    assert len(prometheus.values_of("pod", "coffee_rt_ready_ratio")) == 5
    assert "stranger" not in prometheus.values_of("component", "up")


def test_the_queries_of_the_runbooks_are_understood(prometheus: Prometheus) -> None:
    queries = [query for page in PAGES for query in blocks(page, "promql")]
    queries += [
        query
        for page in PAGES
        for query in re.findall(r"`(\w+ by \(\w+\) \(.*?\))`", page.read_text())
    ]
    assert len(queries) > 1
    for query in queries:
        prometheus.query(query)


def test_each_series_that_an_alert_watches_is_there(prometheus: Prometheus) -> None:
    """Also those of what never happens: an alert on a series that is not there would be silent for ever."""
    selectors = {
        selector
        for rule in rules()
        for selector in re.findall(r"\b(?:coffee_rt_\w+|up)\{[^}]*\}", rule["expr"])
    }
    assert len(selectors) > 12
    watched = [each for each in selectors if ONLY_IN_TROUBLE not in each]
    assert empty_of(prometheus, watched) == []


def test_all_is_well_and_no_alert_fires(prometheus: Prometheus) -> None:
    wait_until(
        lambda: all(rule["health"] == "ok" for rule in prometheus.rules()),
        20,
        lambda: str([rule.get("lastError") for rule in prometheus.rules()]),
    )
    assert len(prometheus.rules()) == len(rules())
    # Without `for`, what was slow while everything started may fire for a moment.
    wait_until(lambda: prometheus.firing() == {}, 60, lambda: str(prometheus.firing()))


def test_partitions_are_days_ahead_and_an_alert_on_more_would_fire(prometheus: Prometheus) -> None:
    [rule] = [rule for rule in rules() if rule["alert"] == "PartitionsShort"]
    days = 86_400
    assert (
        prometheus.query(with_thresholds(rule["expr"], {"partitionsAheadSeconds": 7 * days})) == []
    )
    [(labels, ahead)] = prometheus.query(
        with_thresholds(rule["expr"], {"partitionsAheadSeconds": 30 * days})
    )
    assert labels == {"namespace": NAMESPACE, "release": RELEASE}
    assert 7 * days < ahead <= 8 * days


def test_a_redis_made_unsafe_while_it_runs_fires_until_it_is_safe_again(
    prometheus: Prometheus, log_server: redis.Redis
) -> None:
    log_server.config_set("appendfsync", "everysec")
    try:
        prometheus.wait_firing("RedisUnsafe", reason="fsync", release=RELEASE)
    finally:
        log_server.config_set("appendfsync", "always")
    prometheus.wait_silent("RedisUnsafe")


def test_a_worker_that_hangs_fires_backlog_and_target_until_it_goes_on(
    prometheus: Prometheus, platform: Platform
) -> None:
    with frozen(platform, "worker"):
        prometheus.wait_firing("BacklogOld", release=RELEASE)
        prometheus.wait_firing("TargetMissing", component="worker")
        for annotations in prometheus.annotations():
            assert "<no value>" not in annotations["summary"] + annotations["description"]
    prometheus.wait_silent("BacklogOld")
    prometheus.wait_silent("TargetMissing")


async def test_lanes_that_somebody_holds_fire_not_fresh(
    prometheus: Prometheus, platform: Platform
) -> None:
    """An old transaction, as an administrator forgets one."""
    environ = running_environment(platform.folder)
    assert environ is not None
    connection = await asyncpg.connect(environ["COFFEE_RT_DATABASE_URL"])
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM view_lanes FOR UPDATE")
            prometheus.wait_firing("NotFresh", release=RELEASE)
    finally:
        await connection.close()


def test_a_log_that_hangs_fires_orders_refused(prometheus: Prometheus, platform: Platform) -> None:
    with frozen(platform, "Valkey"):
        prometheus.wait_firing("OrdersRefused", 60, release=RELEASE)
    assert prometheus.query('sum by (status) (coffee_rt_order_api_requests_total{status=~"5.."})')


def test_what_a_stranger_writes_into_the_log_fires_dead_letters(
    prometheus: Prometheus, log_server: redis.Redis, keys: LogKeys
) -> None:
    log_server.xadd(keys.streams[0], {"hello": "stranger"})
    prometheus.wait_firing("DeadLetters", code="foreign-entry")


def test_an_entry_deleted_while_pending_fires_and_so_does_conservation(
    prometheus: Prometheus, platform: Platform, log_server: redis.Redis, keys: LogKeys
) -> None:
    """Taken by a stranger in the workers' group, who deletes what he took."""
    stream = keys.streams[1]
    assert "ConservationViolated" not in prometheus.firing()

    def steal() -> bool:
        found: Any = log_server.xreadgroup("workers", "thief", {stream: ">"}, count=1, block=500)
        if not found:
            return False
        [[_, [[entry_id, _]]]] = found
        return bool(log_server.xdel(stream, entry_id))

    with frozen(platform, "worker"):
        wait_until(steal, 20, lambda: "nothing was posted to the shard")
    prometheus.wait_firing("EntriesVanished", shard="1")
    prometheus.wait_firing("ConservationViolated", shard="1")


def test_a_log_that_went_back_fires_records_lost(
    prometheus: Prometheus, log_server: redis.Redis, keys: LogKeys
) -> None:
    counter: Any = log_server.get(keys.counters[0])
    log_server.set(keys.counters[0], int(counter) - 3)
    prometheus.wait_firing("RecordsLost", shard="0")
