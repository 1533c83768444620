"""One address, the same paths everywhere: `coffee-rt up`, an Ingress and a Gateway send each request to the same process."""

from __future__ import annotations

from typing import Any

import pytest
from rendering import Chart, Object, Rendered, component_of

from coffee_rt.embedded.proxy import Upstreams, plan_configuration

UPSTREAMS = Upstreams(order_api=1, query_api=2, fanout=3, fanout_websocket=4)
PORT_NAMES = {1: "order-api:http", 2: "query-api:http", 3: "fanout:http", 4: "fanout:websocket"}
REQUESTS = [
    ("GET", "/"),
    ("GET", "/assets/index.js"),
    ("GET", "/ws"),
    ("GET", "/ws/dashboard"),
    ("GET", "/ws/other"),
    ("GET", "/api/v1/live"),
    ("POST", "/api/v1/orders"),
    ("OPTIONS", "/api/v1/orders"),
    ("POST", "/api/v1/orders/batch"),
    ("GET", "/api/v1/orders/openapi.json"),
    ("GET", "/api/v1/orders/recent"),
    ("GET", "/api/v1/orders/019a7a4c-0800-7000-8000-000000000001"),
    ("POST", "/api/order"),
    ("POST", "/api/v1/order"),
    ("POST", "/api/v2/order"),
    ("POST", "/api/v3/order"),
    ("GET", "/api/v1/views/hourly"),
    ("GET", "/api/v1/dead-letters"),
    ("GET", "/api/dashboard"),
    ("GET", "/api/query/openapi.json"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
]
LISTED = ("GET", "/api/v1/orders")
"""The one request an Ingress can't send where it belongs."""


def by_proxy(method: str, path: str) -> str:
    """Where `coffee-rt up` sends a request."""
    configuration = plan_configuration("127.0.0.1", 8080, UPSTREAMS)
    for route in configuration["apps"]["http"]["servers"]["one_address"]["routes"]:
        [match] = route.get("match", [{}])
        paths, methods = match.get("path"), match.get("method")
        is_path = paths is None or any(
            path.startswith(each[:-1]) if each.endswith("*") else path == each for each in paths
        )
        if is_path and (methods is None or method in methods):
            port = route["handle"][0]["upstreams"][0]["dial"].rpartition(":")[2]
            return PORT_NAMES[int(port)]
    raise AssertionError("the proxy has no route")


def by_ingress(rendered: Rendered, path: str) -> str:
    """As the API says: an exact path first, then the longest prefix of whole elements."""
    rules = [
        rule
        for each in rendered.of("Ingress")
        for http in each["spec"]["rules"]
        for rule in http["http"]["paths"]
    ]
    best = _best(rules, path, lambda rule: (rule["path"], rule["pathType"] == "Exact"))
    service = best["backend"]["service"]
    return f"{service['name'].removeprefix('shop-coffee-rt-')}:{service['port']['name']}"


def by_gateway(rendered: Rendered, method: str, path: str) -> str:
    [route] = rendered.of("HTTPRoute")
    matches = [
        (match, rule)
        for rule in route["spec"]["rules"]
        for match in rule["matches"]
        if match.get("method") in (None, method)
    ]
    _match, rule = _best(
        matches, path, lambda pair: (pair[0]["path"]["value"], pair[0]["path"]["type"] == "Exact")
    )
    [backend] = rule["backendRefs"]
    port = {80: "http", 8001: "websocket"}[backend["port"]]
    return f"{backend['name'].removeprefix('shop-coffee-rt-')}:{port}"


def _best(rules: list[Any], path: str, place: Any) -> Any:
    found = []
    for rule in rules:
        value, is_exact = place(rule)
        is_below = value == "/" or path == value or path.startswith(f"{value}/")
        if (path == value) if is_exact else is_below:
            found.append((is_exact, len(value), rule))
    return max(found, key=lambda each: each[:2])[2]


@pytest.fixture(scope="module")
def routed(chart: Chart) -> Rendered:
    gateway = {"enabled": True, "parentRefs": [{"name": "public"}]}
    return chart.render({"ingress": {"enabled": True}, "gateway": gateway})


@pytest.mark.parametrize(("method", "path"), REQUESTS)
def test_an_ingress_routes_as_the_proxy_of_a_laptop(
    routed: Rendered, method: str, path: str
) -> None:
    assert by_ingress(routed, path) == by_proxy(method, path)


@pytest.mark.parametrize(("method", "path"), [*REQUESTS, LISTED])
def test_a_gateway_routes_as_the_proxy_of_a_laptop(
    routed: Rendered, method: str, path: str
) -> None:
    assert by_gateway(routed, method, path) == by_proxy(method, path)


def test_an_ingress_gives_reads_of_orders_to_order_api_which_knows_where_they_are(
    routed: Rendered,
) -> None:
    assert by_ingress(routed, LISTED[1]) == "order-api:http"


def test_sockets_outlive_the_time_outs_of_proxies(routed: Rendered) -> None:
    [live] = [each for each in routed.of("Ingress") if component_of(each) == "live"]
    annotations = live["metadata"]["annotations"]
    assert int(annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"]) >= 3600
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    for rule in _rules(routed):
        paths = {match["path"]["value"] for match in rule["matches"]}
        is_open = bool(paths & {"/ws", "/ws/dashboard", "/api/v1/live"})
        assert rule["timeouts"]["request"] == ("0s" if is_open else "60s")


def test_a_route_has_no_more_rules_than_a_gateway_takes(routed: Rendered) -> None:
    assert len(_rules(routed)) <= 16


def test_a_gateway_that_knows_no_time_outs_is_not_told_any(chart: Chart) -> None:
    gateway = {"enabled": True, "parentRefs": [{"name": "public"}]}
    silent = {**gateway, "socketTimeout": "", "requestTimeout": ""}
    assert all("timeouts" not in rule for rule in _rules(chart.render({"gateway": silent})))


def test_a_route_needs_a_gateway(chart: Chart) -> None:
    assert "needs gateway.parentRefs" in chart.refusal({"gateway": {"enabled": True}})


def test_tls_is_terminated_for_the_host(chart: Chart) -> None:
    values = {
        "ingress": {"enabled": True, "host": "orders.example.com"},
        "tls": {"enabled": True, "secretName": "orders-tls"},
    }
    for each in chart.render(values).of("Ingress"):
        assert each["spec"]["tls"] == [
            {"secretName": "orders-tls", "hosts": ["orders.example.com"]}
        ]
        assert each["spec"]["rules"][0]["host"] == "orders.example.com"


def test_tls_without_a_certificate_is_refused(chart: Chart) -> None:
    assert "needs tls.secretName" in chart.refusal({"tls": {"enabled": True}})


def _rules(rendered: Rendered) -> list[Object]:
    [route] = rendered.of("HTTPRoute")
    rules: list[Object] = route["spec"]["rules"]
    return rules


def test_the_page_comes_last_where_the_longest_rule_wins(chart: Chart) -> None:
    """Traefik compares rules as it writes them, and its prefix / is longer than an exact /ws: seen, as a page that
    never connected."""
    rendered = chart.render({"ingress": {"enabled": True}})
    priorities = {
        each["metadata"]["name"]: each["metadata"]
        .get("annotations", {})
        .get("traefik.ingress.kubernetes.io/router.priority")
        for each in rendered.of("Ingress")
    }
    assert priorities.pop("shop-coffee-rt-page") == "1"
    assert set(priorities.values()) == {None}
