"""Each alert fires when it should and is silent when it should be, as promtool computes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from coffee_rt.runtime.metrics import catalogue
from tests import documents
from tests.monitoring.rules import (
    ALERT_FILES,
    QUIET,
    RUNBOOKS,
    SHOP,
    AlertTest,
    promtool,
    rules,
)

CRITICAL, WARNING = {"severity": "critical"}, {"severity": "warning"}
DAY_SECONDS = 86_400
REQUESTS = "coffee_rt_order_api_requests_total"
REFUSALS = "coffee_rt_order_api_refusals_total"
AGE_BUCKET = "coffee_rt_fanout_publication_age_seconds_bucket"
ALERTS = {
    "BacklogOld",
    "ConservationViolated",
    "DeadLetters",
    "EntriesVanished",
    "IntakeWaiting",
    "NotFresh",
    "OrdersRefused",
    "PartitionsShort",
    "RecordsLost",
    "RedisUnsafe",
    "TargetMissing",
}


def test_promtool_accepts_the_files() -> None:
    done = promtool("check", "rules", *map(str, ALERT_FILES))
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_alerts_are_there_each_with_its_runbook_and_what_to_say() -> None:
    assert {rule["alert"] for rule in rules()} == ALERTS
    for rule in rules():
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        name = rule["annotations"]["runbook_url"].rpartition("/")[2]
        assert name == f"{rule['alert']}.md"
        assert (RUNBOOKS / name).is_file()


def test_every_selector_can_be_narrowed_to_a_release() -> None:
    """The chart writes the release's labels behind each opening brace."""
    for rule in rules():
        expression = re.sub(r"#.*", "", rule["expr"])
        for name in re.finditer(r"\bcoffee_rt_\w+|\bup\b", expression):
            assert expression[name.end()] == "{", (rule["alert"], name[0])


def test_alerts_ask_only_for_metrics_that_exist() -> None:
    documents.import_metrics()
    known = {metric.name for metric in catalogue()}
    asked = {
        re.sub(r"_(bucket|count|sum)$", "", name) if name not in known else name
        for rule in rules()
        for name in re.findall(r"\bcoffee_rt_\w+", rule["expr"])
    }
    assert asked - known == set()


def test_an_imbalance_either_way_fires_and_one_that_passes_does_not(tmp_path: Path) -> None:
    metric = "coffee_rt_conservation_imbalance_records"
    test = AlertTest("ConservationViolated")
    test.given(metric, "0x20 3x20", shard=0).given(metric, "0x20 -2x20", shard=1)
    test.given(metric, "0x10 1 0x40", QUIET, shard=0)
    test.fires(5).fires(8, *({**CRITICAL, **SHOP, "shard": shard} for shard in "01"))
    test.run(tmp_path)


@pytest.mark.parametrize(
    ("alert", "metric"),
    [
        ("EntriesVanished", "coffee_rt_log_entries_vanished_total"),
        ("RecordsLost", "coffee_rt_log_gap_records_total"),
    ],
)
def test_a_loss_fires_for_an_hour(tmp_path: Path, alert: str, metric: str) -> None:
    test = AlertTest(alert, step_seconds=60)
    test.given(metric, "0x75 2x100", shard=0).given(metric, "7x175", QUIET, shard=0)
    test.fires(70).fires(80, {**CRITICAL, **SHOP, "shard": "0"}).fires(150)
    test.run(tmp_path)


@pytest.mark.parametrize(
    ("alert", "metric"),
    [
        ("EntriesVanished", "coffee_rt_log_entries_vanished_total"),
        ("RecordsLost", "coffee_rt_log_gap_records_total"),
    ],
)
def test_a_loss_that_a_new_process_begins_with_fires(
    tmp_path: Path, alert: str, metric: str
) -> None:
    test = AlertTest(alert, step_seconds=60).given(metric, "_x75 4x100", shard=1)
    test.fires(70).fires(80, {**CRITICAL, **SHOP, "shard": "1"}).fires(150)
    test.run(tmp_path)


def test_dead_letters_fire_also_for_a_reason_never_seen_before(tmp_path: Path) -> None:
    metric = "coffee_rt_worker_dead_letters_total"
    test = AlertTest("DeadLetters", step_seconds=60)
    test.given(metric, "0x75 1x100", code="bad-data")
    test.given(metric, "_x75 1x100", code="bad-price")
    test.given(metric, "0x175", QUIET, code="bad-data")
    test.fires(70).fires(
        80, *({**WARNING, **SHOP, "code": code} for code in ("bad-data", "bad-price"))
    )
    test.fires(150).run(tmp_path)


def test_a_redis_that_stays_unsafe_fires_by_its_reason(tmp_path: Path) -> None:
    metric = "coffee_rt_log_unsafe_ratio"
    test = AlertTest("RedisUnsafe")
    test.given(metric, "0x20 1x20", reason="fsync").given(metric, "0x40", reason="eviction")
    test.given(metric, "0x20 1 1 0x20", QUIET, reason="fsync")
    test.fires(5).fires(7, {**CRITICAL, **SHOP, "reason": "fsync"}).run(tmp_path)


def test_partitions_that_end_within_two_days_fire(tmp_path: Path) -> None:
    """promtool's time begins at the epoch: an end of three days is three days ahead."""
    metric = "coffee_rt_worker_partitions_end_timestamp_seconds"
    test = AlertTest("PartitionsShort", step_seconds=240)
    test.given(metric, f"{3 * DAY_SECONDS}x500").given(metric, f"{8 * DAY_SECONDS}x500", QUIET)
    test.given(metric, "0x500", {**QUIET, "release": "just-started"})
    test.fires(23 * 60).fires(25 * 60, {**WARNING, **SHOP}).run(tmp_path)


def test_an_old_backlog_of_the_workers_fires(tmp_path: Path) -> None:
    metric = "coffee_rt_log_backlog_seconds"
    test = AlertTest("BacklogOld")
    test.given(metric, "0 20 29x18 40x20", group="workers", shard=0)
    test.given(metric, "0 40 45 2x40", group="workers", shard=1)
    test.given(metric, "900x60", QUIET, group="slow", shard=0)
    test.fires(5).fires(7, {**WARNING, **SHOP, "shard": "0"}).run(tmp_path)


def test_an_intake_that_is_not_drained_fires_and_one_that_is_does_not(tmp_path: Path) -> None:
    test = AlertTest("IntakeWaiting")
    test.given("coffee_rt_intake_oldest_seconds", "0x8 70+15x50")
    test.given("coffee_rt_intake_oldest_seconds", "40 70 40 10x50", QUIET)
    test.fires(1).fires(8, {**WARNING, **SHOP}).run(tmp_path)


def test_an_imbalance_of_the_intake_fires(tmp_path: Path) -> None:
    test = AlertTest("IntakeWaiting").given("coffee_rt_intake_imbalance_records", "0x8 3x50")
    test.fires(1).fires(8, {**WARNING, **SHOP}).run(tmp_path)


def test_errors_of_ours_fire_and_a_clients_own_limit_does_not(tmp_path: Path) -> None:
    test = AlertTest("OrdersRefused")
    test.given(REQUESTS, "0+100x60", status=202).given(REQUESTS, "0x20 0+5x40", status=503)
    test.given(REQUESTS, "0+100x60", QUIET, status=202).given(
        REQUESTS, "0x20 1x40", QUIET, status=503
    )
    test.given(REQUESTS, "0+50x60", QUIET, status=429)
    test.given(REFUSALS, "0+50x60", QUIET, reason="rate")
    test.fires(5).fires(14, {**CRITICAL, **SHOP}).run(tmp_path)


def test_a_log_that_fills_up_fires_although_it_answers_429(tmp_path: Path) -> None:
    test = AlertTest("OrdersRefused")
    test.given(REQUESTS, "0+100x60", status=202).given(REQUESTS, "0+50x60", status=429)
    test.given(REFUSALS, "0+50x60", reason="log-filling")
    test.fires(1).fires(8, {**CRITICAL, **SHOP}).run(tmp_path)


def test_deltas_that_wait_fire(tmp_path: Path) -> None:
    metric = "coffee_rt_aggregator_waiting_seconds"
    test = AlertTest("NotFresh")
    test.given(metric, "1x20 12x20").given(metric, "1x20 30x8 1x20", QUIET)
    test.fires(5).fires(9, {**WARNING, **SHOP}).run(tmp_path)


def test_publications_that_come_late_fire(tmp_path: Path) -> None:
    test = AlertTest("NotFresh")
    test.given(AGE_BUCKET, "0+10x20 200x40", le="10.0")
    test.given(AGE_BUCKET, "0+10x60", le="30.0").given(AGE_BUCKET, "0+10x60", le="+Inf")
    test.given(AGE_BUCKET, "0+10x60", QUIET, le="1.0").given(
        AGE_BUCKET, "0+10x60", QUIET, le="+Inf"
    )
    test.fires(5).fires(13, {**WARNING, **SHOP}).run(tmp_path)


def test_orders_that_are_stored_and_never_folded_fire(tmp_path: Path) -> None:
    stored, folds = "coffee_rt_worker_orders_stored_total", "coffee_rt_aggregator_folds_total"
    test = AlertTest("NotFresh")
    test.given(stored, "0+10x60").given(folds, "0+5x20 100x40", view="hourly")
    test.given(stored, "500x60", QUIET).given(folds, "100x60", QUIET, view="hourly")
    test.fires(5).fires(14, {**WARNING, **SHOP}).run(tmp_path)


def test_a_process_that_does_not_answer_and_one_that_is_gone_fire(tmp_path: Path) -> None:
    test = AlertTest("TargetMissing")
    for component in ("order-api", "aggregator", "fanout"):
        test.given("up", "1x80", component=component)
    test.given("up", "1x20 0x60", component="worker")
    test.given("up", "1x20 _x60", component="query-api")
    test.given("up", "0x80", component="valkey")
    silent = {**WARNING, **SHOP, "component": "worker", "pod": "shop-1"}
    gone = {**CRITICAL, "component": "query-api"}
    test.fires(5).fires(8, silent).fires(17, silent, gone).run(tmp_path)
