"""The scheduled audit: what it runs, that it can, and what it leaves behind."""

from __future__ import annotations

import pytest
from rendering import CI_FILES, Chart, Object, Rendered

from coffee_rt.embedded.reach import ToolSettings
from coffee_rt.runtime.environment import load

ADDRESSES = {
    "COFFEE_RT_REDIS_URL": "redis://valkey:6379/0",
    "COFFEE_RT_DATABASE_URL": "postgresql://postgresql/coffee_rt",
    "COFFEE_RT_DATABASE_REPLICA_URL": "postgresql://replica/coffee_rt",
}
NO_AUTHORITIES: Object = {"tls": {"redisCaSecret": "", "databaseCaSecret": ""}}
"""Their files are not here."""


def spec(rendered: Rendered) -> Object:
    found: Object = rendered.one("CronJob", "audit")["spec"]
    return found


def arguments(rendered: Rendered) -> list[str]:
    [container] = rendered.pod("audit")["containers"]
    return list(container["args"])


def test_the_log_is_audited_whole_and_views_as_far_back_as_is_said(
    chart: Chart, plain: Rendered
) -> None:
    assert arguments(plain) == ["audit", "--views-since=48h"]
    assert arguments(chart.render({"audit": {"viewsSince": ""}})) == ["audit"]


@pytest.mark.parametrize("file", [file for file in CI_FILES if file != "maximal-values.yaml"])
def test_the_command_starts_with_what_the_chart_tells_it(chart: Chart, file: str) -> None:
    rendered = chart.render(NO_AUTHORITIES, file)
    told = {**rendered.environment("audit"), **ADDRESSES}
    settings = load(ToolSettings, {name: told[name] for name in told if name.startswith("COFFEE_")})
    worker = rendered.environment("worker")
    assert settings.shards == int(worker["COFFEE_RT_SHARDS"])
    assert settings.namespace == worker["COFFEE_RT_NAMESPACE"]
    assert settings.database.pool_size_max == 1


def test_one_audit_at_a_time_ends_and_its_log_stays_for_a_while(plain: Rendered) -> None:
    found = spec(plain)
    assert found["concurrencyPolicy"] == "Forbid"
    assert found["startingDeadlineSeconds"] > 100
    assert (found["successfulJobsHistoryLimit"], found["failedJobsHistoryLimit"]) == (1, 3)
    job = found["jobTemplate"]["spec"]
    assert job["backoffLimit"] == 1
    assert job["activeDeadlineSeconds"] < 24 * 3600
    assert job["ttlSecondsAfterFinished"] > 3 * 24 * 3600
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_the_time_is_said_and_in_whose_clock(chart: Chart, plain: Rendered) -> None:
    assert (spec(plain)["schedule"], spec(plain)["timeZone"]) == ("17 4 * * *", "Etc/UTC")
    moved = spec(chart.render({"audit": {"schedule": "@weekly", "timeZone": "Europe/Vienna"}}))
    assert (moved["schedule"], moved["timeZone"]) == ("@weekly", "Europe/Vienna")


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"schedule": "every night"}, "/audit/schedule"),
        ({"viewsSince": "two days"}, "/audit/viewsSince"),
        ({"timeZone": ""}, "/audit/timeZone"),
        ({"failedJobsKept": 0}, "/audit/failedJobsKept"),
        ({"secondsMax": 0}, "/audit/secondsMax"),
    ],
)
def test_a_schedule_that_is_none_is_refused(chart: Chart, values: Object, place: str) -> None:
    assert place in chart.refusal({"audit": values})


def test_without_it_nothing_of_it_is_rendered(chart: Chart) -> None:
    without = chart.render({"audit": {"enabled": False}})
    assert not without.of("CronJob")
    kinds = ("ServiceAccount", "NetworkPolicy")
    assert not [each for each in without.of(*kinds) if each["metadata"]["name"].endswith("audit")]
