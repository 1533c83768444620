"""What Prometheus and Grafana get: only where it is known or asked for, and about this release alone."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendering import CHART, Chart, Object, Rendered, selects

OPERATOR_APIS = tuple(
    f"monitoring.coreos.com/v1/{kind}"
    for kind in ("PodMonitor", "ServiceMonitor", "PrometheusRule")
)
MONITORS = ("PodMonitor", "ServiceMonitor")


def monitored(chart: Chart, *, apis: tuple[str, ...] = OPERATOR_APIS, **values: Any) -> Rendered:
    """The chart with values of `monitoring`."""
    return chart.render({"monitoring": values}, apis=apis)


def alerts(rendered: Rendered) -> list[Object]:
    [rules] = rendered.of("PrometheusRule")
    return [rule for group in rules["spec"]["groups"] for rule in group["rules"]]


def dashboards(rendered: Rendered) -> list[Object]:
    return [each for each in rendered.of("ConfigMap") if "-dashboard-" in each["metadata"]["name"]]


def test_nothing_is_made_where_the_cluster_does_not_know_it(plain: Rendered) -> None:
    assert plain.of(*MONITORS, "PrometheusRule") == []
    assert dashboards(plain) == []


def test_all_is_made_where_the_cluster_knows_it(chart: Chart) -> None:
    rendered = monitored(chart)
    assert [each["kind"] for each in rendered.of(*MONITORS)] == ["PodMonitor"]
    assert len(alerts(rendered)) > 10
    [board] = dashboards(rendered)
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"


@pytest.mark.parametrize(
    "kind", ["podMonitor", "serviceMonitor", "prometheusRule", "grafanaDashboards"]
)
def test_what_is_asked_for_is_made_and_what_is_not_wanted_is_not(chart: Chart, kind: str) -> None:
    made = monitored(chart, apis=(), **{kind: {"enabled": True, "labels": {"team": "cafe"}}})
    found = [*made.of(*MONITORS, "PrometheusRule"), *dashboards(made)]
    assert [each["metadata"]["labels"]["team"] for each in found] == ["cafe"]
    every = monitored(chart)
    off: dict[str, Any] = {kind: {"enabled": False}}
    without = monitored(chart, **off)
    fewer = 0 if kind == "serviceMonitor" else 1
    assert len(every.objects) - len(without.objects) == fewer


def test_a_service_monitor_stands_in_for_the_pod_monitor(chart: Chart) -> None:
    rendered = monitored(chart, serviceMonitor={"enabled": "auto"})
    assert [each["kind"] for each in rendered.of(*MONITORS)] == ["ServiceMonitor"]


@pytest.mark.parametrize("kind", MONITORS)
def test_each_process_is_scraped_by_name_of_its_port(chart: Chart, kind: str) -> None:
    rendered = monitored(chart, serviceMonitor={"enabled": kind == "ServiceMonitor"})
    [monitor] = rendered.of(kind)
    selector = monitor["spec"]["selector"]
    [expression] = selector["matchExpressions"]
    [endpoint] = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
    for process in expression["values"]:
        if kind == "PodMonitor":
            labels = rendered.one("Deployment", process)["spec"]["template"]["metadata"]["labels"]
            [container] = rendered.pod(process)["containers"]
            ports = [port["name"] for port in container["ports"]]
        else:
            service = rendered.one("Service", process)
            labels = service["metadata"]["labels"]
            ports = [port["name"] for port in service["spec"]["ports"]]
        assert selects(selector["matchLabels"], labels)
        assert endpoint["port"] in ports
    given = {each["targetLabel"] for each in endpoint["relabelings"]}
    assert given == {"release", "component"}


def test_rules_are_about_this_release_alone_and_promtool_accepts_them(
    chart: Chart, tmp_path: Path
) -> None:
    rendered = monitored(chart)
    own = 'namespace="orders", release="shop"'
    for rule in alerts(rendered):
        selectors = re.findall(r"\b(?:coffee_rt_\w+|up)\{([^}]*)\}", rule["expr"])
        assert selectors
        assert all(selector.startswith(own) for selector in selectors)
    [rules] = rendered.of("PrometheusRule")
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(rules["spec"]))
    done = subprocess.run(
        ["promtool", "check", "rules", str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_thresholds_of_the_values_are_those_of_the_files(chart: Chart) -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())["monitoring"]["prometheusRule"]
    files = "".join(path.read_text() for path in (CHART / "files" / "alerts").glob("*.yaml"))
    written = {
        name: float(number) for number, name in re.findall(r"([0-9.]+) # threshold: (\w+)", files)
    }
    assert written == {name: float(value) for name, value in defaults["thresholds"].items()}


def test_thresholds_labels_and_links_are_put_in(chart: Chart) -> None:
    rendered = monitored(
        chart,
        runbooksUrl="https://wiki.example.com/coffee",
        prometheusRule={
            "thresholds": {"backlogSeconds": 120.5},
            "alertLabels": {"team": "cafe"},
            "alerts": {"BacklogOld": {"severity": "page", "for": "10m"}},
        },
    )
    [rule] = [rule for rule in alerts(rendered) if rule["alert"] == "BacklogOld"]
    assert "> 120.5 # threshold" in rule["expr"]
    assert (rule["for"], rule["labels"]) == ("10m", {"severity": "page", "team": "cafe"})
    assert rule["annotations"]["runbook_url"] == "https://wiki.example.com/coffee/BacklogOld.md"
    assert "{{ $labels.shard }}" in rule["annotations"]["summary"]
    [board] = dashboards(rendered)
    [text] = board["data"].values()
    assert json.loads(text)["uid"] == "coffee-rt-safe-and-fresh"
    assert "https://wiki.example.com/coffee/BacklogOld.md" in text
    assert "github.com" not in text


def test_an_alert_can_be_left_out(chart: Chart) -> None:
    rendered = monitored(chart, prometheusRule={"alerts": {"DeadLetters": {"enabled": False}}})
    assert "DeadLetters" not in {rule["alert"] for rule in alerts(rendered)}


def test_workers_that_keda_takes_to_zero_are_not_missed(chart: Chart) -> None:
    def missed(values: dict[str, Any]) -> set[str]:
        rendered = chart.render(values, apis=(*OPERATOR_APIS, "keda.sh/v1alpha1"))
        return {
            rule["labels"]["component"]
            for rule in alerts(rendered)
            if rule["expr"].startswith("absent")
        }

    everywhere = {"order-api", "worker", "aggregator", "fanout", "query-api"}
    assert missed({}) == everywhere
    keda = {"autoscaling": {"backend": "keda"}, "worker": {"autoscaling": {"minReplicas": 0}}}
    assert missed(keda) == everywhere - {"worker"}


def test_names_of_alerts_that_do_not_exist_are_refused(chart: Chart) -> None:
    values = {"monitoring": {"prometheusRule": {"alerts": {"BacklogOlder": {"enabled": False}}}}}
    assert "BacklogOlder" in chart.refusal(values)


def test_the_schema_names_each_alert() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    named = schema["properties"]["monitoring"]["properties"]["prometheusRule"]["properties"]
    groups = [
        group
        for path in (CHART / "files" / "alerts").glob("*.yaml")
        for group in yaml.safe_load(path.read_text())["groups"]
    ]
    assert set(named["alerts"]["properties"]) == {
        rule["alert"] for group in groups for rule in group["rules"]
    }
