"""Who may talk to whom: the edges of the architecture picture, and no others.

Read off the rendered NetworkPolicies as Kubernetes reads them: an edge needs a policy of the sender and one of the
receiver that both allow it.
"""

from __future__ import annotations

from typing import Any

import pytest
from rendering import PROCESSES, Chart, Object, Rendered, component_of, name_of, selects

PORTS = {"http": 8000, "websocket": 8001}
STORES = {"valkey": 6379, "postgresql": 5432}
OUTSIDE = "somebody outside"


class Network:
    """The release's pods and policies."""

    def __init__(self, rendered: Rendered) -> None:
        self.labels = {
            component_of(each): _pod_labels(each)
            for each in rendered.of("Deployment", "StatefulSet", "Job", "CronJob", "Pod")
        }
        self.policies = rendered.of("NetworkPolicy")

    def allows(self, source: str, target: str, port: int) -> bool:
        return self.is_sent(source, target, port) and self._is_taken(source, target, port)

    def is_sent(self, source: str, target: str, port: int) -> bool:
        if source == OUTSIDE:
            return True
        rules = self._rules(source, "egress")
        return any(self._matches(rule, "to", target, port) for rule in rules)

    def _is_taken(self, source: str, target: str, port: int) -> bool:
        if target == OUTSIDE:
            return True
        rules = self._rules(target, "ingress")
        return any(self._matches(rule, "from", source, port) for rule in rules)

    def _rules(self, component: str, direction: str) -> list[Object]:
        selected = [
            each["spec"]
            for each in self.policies
            if selects(each["spec"]["podSelector"]["matchLabels"], self.labels[component])
            and direction.capitalize() in each["spec"]["policyTypes"]
        ]
        assert selected, f"no policy says anything of {component}"
        return [rule for spec in selected for rule in spec.get(direction) or []]

    def _matches(self, rule: Object, side: str, other: str, port: int) -> bool:
        ports = [PORTS.get(each["port"], each["port"]) for each in rule.get("ports", [])]
        if ports and port not in ports:
            return False
        return side not in rule or any(self._is_peer(peer, other) for peer in rule[side])

    def _is_peer(self, peer: Object, other: str) -> bool:
        if other == OUTSIDE:
            return "ipBlock" in peer
        if "podSelector" in peer:
            return _selected(peer["podSelector"], self.labels[other])
        return peer.get("namespaceSelector") == {}


@pytest.fixture(scope="module")
def network(plain: Rendered) -> Network:
    return Network(plain)


def test_every_pod_of_the_release_is_denied_by_default(network: Network, plain: Rendered) -> None:
    [deny] = [each for each in plain.of("NetworkPolicy") if component_of(each) == "default-deny"]
    assert deny["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert not deny["spec"].get("ingress")
    assert not deny["spec"].get("egress")
    for labels in network.labels.values():
        assert selects(deny["spec"]["podSelector"]["matchLabels"], labels)


@pytest.mark.parametrize("store", STORES)
def test_processes_and_the_operator_reach_the_stores(network: Network, store: str) -> None:
    for component in (*PROCESSES.values(), "operator"):
        assert network.allows(component, store, STORES[store]), component


def test_the_migration_reaches_postgresql_and_nothing_else(network: Network) -> None:
    assert network.allows("migrate", "postgresql", 5432)
    assert not network.allows("migrate", "valkey", 6379)
    assert not network.allows("migrate", "order-api", 8000)


def test_the_audit_reaches_both_stores_and_nobody_reaches_it(network: Network) -> None:
    for store, port in STORES.items():
        assert network.allows("audit", store, port)
    assert not network.allows("audit", "order-api", 8000)
    assert not network.allows("audit", OUTSIDE, 443)
    assert not network.allows(OUTSIDE, "audit", 8000)


def test_nobody_else_reaches_the_stores(network: Network) -> None:
    for store, port in STORES.items():
        assert not network.allows(OUTSIDE, store, port)
        assert not network.allows("test", store, port)
        for other in STORES:
            assert not network.allows(other, store, port)


def test_the_public_ports_are_open_and_those_of_worker_and_aggregator_are_not(
    network: Network,
) -> None:
    for component in ("order-api", "query-api", "fanout"):
        assert network.allows(OUTSIDE, component, 8000)
    assert network.allows(OUTSIDE, "fanout", 8001)
    for component in ("worker", "aggregator", "operator"):
        assert not network.allows(OUTSIDE, component, 8000)


def test_helm_test_reaches_what_it_asks(network: Network) -> None:
    for component in ("order-api", "query-api", "fanout"):
        assert network.allows("test", component, 8000)
    assert network.allows("test", "fanout", 8001)


def test_processes_do_not_reach_each_other(network: Network) -> None:
    for source in PROCESSES.values():
        for target in PROCESSES.values():
            assert not network.allows(source, target, 8000), (source, target)


def test_the_operator_asks_fanout_for_its_sessions(network: Network) -> None:
    assert network.allows("operator", "fanout", 8000)
    assert not network.allows("operator", "order-api", 8000)


def test_the_operator_alone_reaches_the_api_server(network: Network) -> None:
    assert network.allows("operator", OUTSIDE, 443)
    assert network.allows("operator", OUTSIDE, 6443)
    for component in (*PROCESSES.values(), "migrate", "test", "valkey", "postgresql"):
        assert not network.allows(component, OUTSIDE, 443), component


def test_all_processes_resolve_names(network: Network) -> None:
    for component in (*PROCESSES.values(), "operator", "migrate", "audit", "test"):
        assert network.allows(component, OUTSIDE, 53), component


def test_traces_may_leave_only_when_they_are_sent(chart: Chart, network: Network) -> None:
    assert not network.allows("worker", OUTSIDE, 4318)
    traced = Network(chart.render({"settings": {"otlpEndpoint": "http://collector:4318"}}))
    assert traced.allows("worker", OUTSIDE, 4318)


def test_named_callers_replace_everybody(chart: Chart) -> None:
    only = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}
    rendered = chart.render({"networkPolicy": {"ingressFrom": [only], "metricsFrom": [only]}})
    network = Network(rendered)
    assert not network.allows(OUTSIDE, "order-api", 8000)
    assert network.allows("test", "order-api", 8000)


def test_external_stores_are_reached_at_their_addresses_only(chart: Chart) -> None:
    network = Network(chart.render({}, "external-values.yaml"))
    assert network.allows("worker", OUTSIDE, 6380)
    assert not network.allows("worker", OUTSIDE, 6379)
    assert network.allows("migrate", OUTSIDE, 5432)


@pytest.mark.parametrize("pooler", [True, False])
def test_the_servers_of_cloudnative_pg_are_reached_by_whoever_stores(
    chart: Chart, pooler: bool
) -> None:
    """Their pods are made by another operator, with labels of its own."""
    postgresql = {"mode": "cloudnative-pg", "cloudnativePg": {"pooler": {"enabled": pooler}}}
    rendered = chart.render({"postgresql": postgresql})
    network = Network(rendered)
    [cluster] = rendered.of("Cluster")
    targets = {"server": {"cnpg.io/cluster": name_of(cluster)}}
    targets |= {
        name_of(each): {"cnpg.io/poolerName": name_of(each)} for each in rendered.of("Pooler")
    }
    assert len(targets) == 1 + pooler
    for target, labels in targets.items():
        network.labels[target] = labels
        for component in (*PROCESSES.values(), "operator", "migrate", "audit"):
            assert network.is_sent(component, target, 5432), (component, target)


def test_order_api_reaches_an_external_database_for_its_intake(chart: Chart) -> None:
    network = Network(chart.render({}, "external-values.yaml"))
    assert network.allows("order-api", OUTSIDE, 6380)
    assert network.allows("order-api", OUTSIDE, 5432)


def test_policies_can_be_left_out(chart: Chart) -> None:
    assert not chart.render({"networkPolicy": {"enabled": False}}).of("NetworkPolicy")


def _pod_labels(each: Object) -> dict[str, str]:
    place: dict[str, Any] = each
    if each["kind"] == "CronJob":
        place = each["spec"]["jobTemplate"]
    if each["kind"] != "Pod":
        place = place["spec"]["template"]
    labels: dict[str, str] = place["metadata"]["labels"]
    return labels


def _selected(selector: Object, labels: dict[str, str]) -> bool:
    assert {*selector} <= {"matchLabels", "matchExpressions"}
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return selects(selector.get("matchLabels", {}), labels)
