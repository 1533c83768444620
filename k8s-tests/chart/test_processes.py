"""What each process's pods promise: probes, drain, security, scaling, settings."""

from __future__ import annotations

from math import ceil
from typing import Any

import pytest
from chart_documents import PROCESSES as WITH_SETTINGS
from chart_documents import camel_case, settings_class
from rendering import CI_FILES, PROCESSES, Chart, Rendered, component_of, name_of, selects

from coffee_rt.runtime.environment import describe, load

ADDRESSES = {
    "COFFEE_RT_REDIS_URL": "redis://valkey:6379/0",
    "COFFEE_RT_DATABASE_URL": "postgresql://postgresql/coffee_rt",
}


@pytest.mark.parametrize("component", PROCESSES.values())
def test_a_process_starts_with_what_the_chart_tells_it(plain: Rendered, component: str) -> None:
    """The settings class itself reads the rendered variables: unknown names and bad values are refused."""
    key = next(key for key, value in PROCESSES.items() if value == component)
    told = {**plain.environment(component), **ADDRESSES}
    settings = load(settings_class(key), told)
    assert settings.http_host == "0.0.0.0"
    assert settings.http_port == 8000


@pytest.mark.parametrize("component", PROCESSES.values())
def test_the_drain_fits_between_pre_stop_and_the_kill(plain: Rendered, component: str) -> None:
    pod = plain.pod(component)
    [container] = pod["containers"]
    [_sleep, seconds] = container["lifecycle"]["preStop"]["exec"]["command"]
    drain = float(plain.environment(component)["COFFEE_RT_GRACE_SECONDS"])
    assert int(seconds) + drain < pod["terminationGracePeriodSeconds"]
    assert pod["terminationGracePeriodSeconds"] == (90 if component == "worker" else 60)


def test_a_grace_period_without_room_to_drain_is_refused(chart: Chart) -> None:
    said = chart.refusal({"fanout": {"terminationGracePeriodSeconds": 12, "preStopSeconds": 5}})
    assert "leaves 2 s to drain; it needs 5" in said


@pytest.mark.parametrize("component", PROCESSES.values())
def test_liveness_asks_no_server_and_readiness_does(plain: Rendered, component: str) -> None:
    [container] = plain.pod(component)["containers"]
    paths = {
        probe: container[probe]["httpGet"]["path"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert paths == {
        "startupProbe": "/livez",
        "livenessProbe": "/livez",
        "readinessProbe": "/readyz",
    }


@pytest.mark.parametrize("file", CI_FILES)
def test_every_pod_runs_under_the_restricted_standard(chart: Chart, file: str) -> None:
    for component, pod in chart.render({}, file).pods():
        assert pod["securityContext"]["runAsNonRoot"] is True, component
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", component
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, component
            assert context["capabilities"]["drop"] == ["ALL"], component
            assert context["readOnlyRootFilesystem"] is True, component


@pytest.mark.parametrize("file", CI_FILES)
def test_only_the_operator_gets_a_token_of_the_api_server(chart: Chart, file: str) -> None:
    with_token = {
        component
        for component, pod in chart.render({}, file).pods()
        if pod["automountServiceAccountToken"]
    }
    assert with_token <= {"operator"}


def test_a_template_with_an_autoscaler_says_no_replicas(chart: Chart, plain: Rendered) -> None:
    for key, component in PROCESSES.items():
        assert "replicas" not in plain.one("Deployment", component)["spec"]
        fixed = chart.render({key: {"autoscaling": {"enabled": False}, "replicas": 3}})
        assert fixed.one("Deployment", component)["spec"]["replicas"] == 3
        assert not [
            each for each in fixed.of("HorizontalPodAutoscaler") if component_of(each) == component
        ]


@pytest.mark.parametrize("component", PROCESSES.values())
def test_each_process_scales_on_cpu_with_a_behavior(plain: Rendered, component: str) -> None:
    autoscaler = plain.one("HorizontalPodAutoscaler", component)["spec"]
    assert [metric["resource"]["name"] for metric in autoscaler["metrics"]] == ["cpu"]
    assert autoscaler["scaleTargetRef"]["name"] == name_of(plain.one("Deployment", component))
    assert autoscaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"] >= 60


@pytest.mark.parametrize("component", PROCESSES.values())
def test_one_pod_at_a_time_may_be_drained(plain: Rendered, component: str) -> None:
    assert plain.one("PodDisruptionBudget", component)["spec"]["maxUnavailable"] == 1


@pytest.mark.parametrize("component", PROCESSES.values())
def test_a_roll_takes_no_pod_before_its_successor_is_ready(plain: Rendered, component: str) -> None:
    strategy = plain.one("Deployment", component)["spec"]["strategy"]["rollingUpdate"]
    assert strategy["maxUnavailable"] == 0


@pytest.mark.parametrize("component", PROCESSES.values())
def test_pods_are_spread_over_zones_and_nodes(plain: Rendered, component: str) -> None:
    spread = plain.pod(component)["topologySpreadConstraints"]
    assert [each["topologyKey"] for each in spread] == [
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    ]


def test_selectors_match_the_pods_they_are_meant_for_and_no_others(plain: Rendered) -> None:
    labels = {
        component_of(each): each["spec"]["template"]["metadata"]["labels"]
        for each in plain.of("Deployment", "StatefulSet", "Job")
    }
    for each in plain.of("Service", "PodDisruptionBudget"):
        selector = each["spec"]["selector"]
        selector = selector.get("matchLabels", selector)
        assert {name for name, has in labels.items() if selects(selector, has)} == {
            component_of(each)
        }


def test_changed_settings_roll_all_pods_and_nothing_else_does(
    chart: Chart, plain: Rendered
) -> None:
    def hashes(rendered: Rendered) -> dict[str, str]:
        return {
            component: rendered.one("Deployment", component)["spec"]["template"]["metadata"][
                "annotations"
            ]["checksum/settings"]
            for component in PROCESSES.values()
        }

    before = hashes(plain)
    assert hashes(chart.render()) == before
    after = hashes(chart.render({"settings": {"breakerFailures": 7}}))
    assert all(after[component] != before[component] for component in before)


def test_changed_view_definitions_roll_the_aggregator_alone(chart: Chart, plain: Rendered) -> None:
    views = {"views": {"definitions": {"regions.yaml": "name: regions\n"}}}
    changed = chart.render(views)
    rolled = {
        component
        for component in PROCESSES.values()
        if changed.one("Deployment", component)["spec"]["template"]
        != plain.one("Deployment", component)["spec"]["template"]
    }
    assert rolled == {"aggregator"}
    assert changed.environment("aggregator")["COFFEE_RT_AGGREGATOR_VIEWS_DIR"]


@pytest.mark.parametrize("key", WITH_SETTINGS)
def test_every_setting_can_be_given_in_camel_case(chart: Chart, key: str) -> None:
    """Each of the chart's keys reaches the process as the variable its settings class reads."""
    cls = settings_class(key)
    own = {name: info for name, info in cls.model_fields.items() if _is_own(info)}
    given = {
        camel_case(name): default
        for name, info in own.items()
        if (default := info.get_default(call_default_factory=True)) not in (None, "", ())
        and isinstance(default, int | float | str)
        and camel_case(name) not in ("websocketHost", "websocketPort")
    }
    component = "operator" if key == "operator" else PROCESSES[key]
    told = chart.render({key: {"settings": given}}).environment(component)
    defaults = {setting.field: setting for setting in describe(cls)}
    for name in own:
        if camel_case(name) in given:
            setting = defaults[name]
            assert float_or_text(told[setting.name]) == float_or_text(setting.default)


def test_large_numbers_are_written_whole(chart: Chart) -> None:
    told = chart.render({"orderApi": {"settings": {"batchBytesMax": 33554432}}})
    assert told.environment("order-api")["COFFEE_RT_ORDER_API_BATCH_BYTES_MAX"] == "33554432"


def test_proxies_are_believed_by_both_public_processes(chart: Chart) -> None:
    rendered = chart.render({"trustedProxies": ["10.0.0.0/8", "192.0.2.7"]})
    for component in ("order-api", "fanout"):
        name = f"COFFEE_RT_{component.replace('-', '_').upper()}_TRUSTED_PROXIES"
        assert rendered.environment(component)[name] == "10.0.0.0/8,192.0.2.7"


def test_names_fit_for_the_longest_release_name_helm_takes(chart: Chart) -> None:
    rendered = chart.render({}, name="x" * 53)
    assert max(len(name_of(each)) for each in rendered.objects) <= 63
    assert max(len(name_of(each)) for each in rendered.of("StatefulSet")) <= 52
    other = chart.render({}, name="x" * 52 + "y")
    names = {name_of(each) for each in rendered.of("Deployment")}
    assert names.isdisjoint(name_of(each) for each in other.of("Deployment"))


def test_a_release_called_coffee_rt_gives_short_names(chart: Chart) -> None:
    assert name_of(chart.render({}, name="coffee-rt").one("Service", "order-api")) == (
        "coffee-rt-order-api"
    )


def test_connections_are_summed_over_all_pods_at_their_most(chart: Chart) -> None:
    pools = {"orderApi": 2, "worker": 4, "aggregator": 6, "fanout": 3, "queryApi": 4}
    pods = dict.fromkeys(pools, 4)
    values: dict[str, Any] = {
        key: {"databasePoolSizeMax": pools[key], "autoscaling": {"maxReplicas": pods[key]}}
        for key in pools
    }
    values["operator"] = {"enabled": True, "replicas": 1, "databasePoolSizeMax": 2}
    needed = sum(ceil(pods[key] * 1.25) * pools[key] for key in pools) + 2 + 1 + 1
    chart.render({**values, "postgresql": {"maxConnections": needed + 10}})
    said = chart.refusal({**values, "postgresql": {"maxConnections": needed + 9}})
    assert f"the processes may open {needed}: " in said
    assert "worker 5 x 4" in said


def test_orders_that_valkey_could_not_hold_are_refused_with_the_sums(chart: Chart) -> None:
    said = chart.refusal({"capacity": {"ordersPerSecond": 5000}})
    assert "5000 orders a second need" in said
    assert "MiB" in said


def test_fewest_above_most_pods_is_refused(chart: Chart) -> None:
    said = chart.refusal({"worker": {"autoscaling": {"minReplicas": 9, "maxReplicas": 3}}})
    assert "worker.autoscaling: minReplicas 9 is above maxReplicas 3" in said


def test_no_pods_at_all_is_for_workers_of_keda_only(chart: Chart) -> None:
    none = {"worker": {"autoscaling": {"minReplicas": 0}}}
    assert "only workers can start from zero" in chart.refusal(none)
    woken = chart.render({**none, "autoscaling": {"backend": "keda"}})
    scaled = woken.one("ScaledObject", "worker")["spec"]
    assert scaled["minReplicaCount"] == 0
    assert scaled["fallback"]["replicas"] == 1


def test_keda_scales_on_undelivered_and_pending_orders(chart: Chart) -> None:
    rendered = chart.render({"autoscaling": {"backend": "keda"}})
    triggers = rendered.one("ScaledObject", "worker")["spec"]["triggers"]
    [query] = [each["metadata"] for each in triggers if each["type"] == "prometheus"]
    assert "coffee_rt_log_backlog_records" in query["query"]
    assert not [
        each
        for each in rendered.of("HorizontalPodAutoscaler")
        if component_of(each) in ("worker", "fanout")
    ]


def test_the_adapter_adds_an_external_metric_to_cpu(chart: Chart) -> None:
    rendered = chart.render({"autoscaling": {"backend": "prometheus-adapter"}})
    for component, metric in (
        ("worker", "coffee_rt_worker_backlog_records"),
        ("fanout", "coffee_rt_fanout_sessions"),
    ):
        metrics = rendered.one("HorizontalPodAutoscaler", component)["spec"]["metrics"]
        assert [each["type"] for each in metrics] == ["Resource", "External"]
        assert metrics[1]["external"]["metric"]["name"] == metric


def float_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _is_own(info: Any) -> bool:
    return isinstance(info.json_schema_extra, dict) and bool(info.json_schema_extra.get("own"))
