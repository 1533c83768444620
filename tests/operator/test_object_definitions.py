"""MetricViews, Redrives and Replays as the API server takes them: completed, or refused with a sentence."""

from __future__ import annotations

from typing import Any

import pytest

from coffee_rt.operator.metric_view_plan import read_definition
from tests.api_server import ApiServer
from tests.operator.view_shop import GROUP, KINDS

COUNT = [{"name": "orders", "aggregate": "count"}]
VIEW = {"bucket": "hour", "measures": COUNT}
BACKWARDS = {"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}


def post(
    api: ApiServer,
    shop: str,
    plural: str,
    spec: dict[str, Any],
    name: str = "sales",
    query: str = "",
) -> tuple[int, Any]:
    body = {
        "apiVersion": "coffee-rt.dev/v1alpha1",
        "kind": KINDS[plural],
        "metadata": {"name": name},
        "spec": spec,
    }
    path = f"{GROUP}/{shop}/{plural}?fieldValidation=Strict{query}"
    return api.request("POST", path, body)


def patch(
    api: ApiServer, shop: str, plural: str, name: str, spec: dict[str, Any]
) -> tuple[int, Any]:
    path = f"{GROUP}/{shop}/{plural}/{name}"
    return api.request("PATCH", path, {"spec": spec}, kind="application/merge-patch+json")


def test_a_views_spec_is_completed_and_means_a_definition(api: ApiServer, shop: str) -> None:
    status, answer = post(api, shop, "metricviews", VIEW)
    assert status == 201, answer
    assert answer["spec"] == {
        **VIEW,
        "dimensions": [],
        "lanes": 8,
        "retentionDays": 400,
        "deletionPolicy": "Keep",
        "adopt": False,
    }
    # Nothing that the definition language has defaults for is completed otherwise here.
    assert read_definition("sales", answer["spec"]) == read_definition("sales", VIEW)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"bucket": "week"}, "supported values"),
        ({"measures": []}, "at least 1 items"),
        ({"measures": COUNT * 2}, "Duplicate value"),
        ({"measures": [{"name": "a", "aggregate": "sum"}]}, "a count has no field"),
        ({"measures": [{**COUNT[0], "field": "price"}]}, "a count has no field"),
        ({"measures": [{"name": "lane", "aggregate": "count"}]}, "reserved"),
        ({"dimensions": ["store", "store"]}, "two dimensions have the same name"),
        ({"dimensions": ["store", "attributes.store"]}, "two dimensions have the same name"),
        ({"dimensions": ["attributes.version"]}, "reserved"),
        ({"dimensions": ["price"]}, "should match"),
        ({"dimensions": ["store", "drink", "customer_id", "attributes.a", "attributes.b"]}, "Too"),
        ({"dimensions": ["attributes.orders"]}, "a measure and a dimension"),
        ({"filter": [{"field": "price", "values": ["1"]}]}, "should match"),
        ({"filter": [{"field": "store", "values": []}]}, "at least 1 items"),
        ({"filter": [{"field": "store", "values": ["a"]}] * 2}, "Duplicate value"),
        ({"retentionDays": 1}, "greater than or equal to 2"),
        ({"lanes": 65}, "less than or equal to 64"),
        ({"view": "Sales"}, "should match"),
        ({"deletionPolicy": "Burn"}, "supported values"),
        ({"retention_days": 5}, "unknown field"),
    ],
)
def test_a_bad_view_is_refused(
    api: ApiServer, shop: str, changes: dict[str, Any], sentence: str
) -> None:
    status, answer = post(api, shop, "metricviews", VIEW | changes, query="&dryRun=All")
    assert status in {400, 422}
    assert sentence in answer["message"]


@pytest.mark.parametrize("name", ["1st", "by.channel", "a" * 32])
def test_a_name_that_can_be_no_views_needs_another(api: ApiServer, shop: str, name: str) -> None:
    status, answer = post(api, shop, "metricviews", VIEW, name, "&dryRun=All")
    assert status == 422
    assert "name the view in spec.view" in answer["message"]
    named = {**VIEW, "view": "sales"}
    assert post(api, shop, "metricviews", named, name, "&dryRun=All")[0] == 201


def test_a_view_is_never_renamed(api: ApiServer, shop: str) -> None:
    assert post(api, shop, "metricviews", {**VIEW, "view": "one"})[0] == 201
    assert patch(api, shop, "metricviews", "sales", {"bucket": "day"})[0] == 200
    for name in ("two", None):
        status, answer = patch(api, shop, "metricviews", "sales", {"view": name})
        assert status == 422
        assert "can't be renamed" in answer["message"]


@pytest.mark.parametrize(
    ("plural", "spec", "sentence"),
    [
        ("redrives", {}, "letters"),
        ("redrives", {"letters": {}}, "at least 1 properties"),
        ("redrives", {"letters": {"all": False}}, "supported values"),
        ("redrives", {"letters": {"all": True, "code": "bad-data"}}, "all stands alone"),
        ("redrives", {"letters": {"ids": [0]}}, "greater than or equal to 1"),
        ("redrives", {"letters": BACKWARDS}, "to must be after from"),
        ("redrives", {"letters": {"from": "today"}}, "date-time"),
        ("redrives", {"letters": {"all": True}, "limit": 0}, "greater than or equal to 1"),
        ("replays", {"span": BACKWARDS}, "to must be after from"),
        ("replays", {"view": "Sales"}, "should match"),
        ("replays", {"ttlSecondsAfterFinished": -1}, "greater than or equal to 0"),
    ],
)
def test_a_bad_piece_of_work_is_refused(
    api: ApiServer, shop: str, plural: str, spec: dict[str, Any], sentence: str
) -> None:
    status, answer = post(api, shop, plural, spec, query="&dryRun=All")
    assert status in {400, 422}
    assert sentence in answer["message"]


@pytest.mark.parametrize(
    ("plural", "spec", "change"),
    [
        ("redrives", {"letters": {"tenant": 1}}, {"letters": {"tenant": 2}}),
        ("redrives", {"letters": {"tenant": 1}}, {"limit": 5}),
        ("redrives", {"letters": {"tenant": 1}, "dryRun": True}, {"dryRun": False}),
        ("replays", {}, {"view": "sales"}),
        ("replays", {}, {"span": {"from": "2026-01-01T00:00:00Z"}}),
    ],
)
def test_a_piece_of_work_is_not_changed_but_may_go_sooner(
    api: ApiServer, shop: str, plural: str, spec: dict[str, Any], change: dict[str, Any]
) -> None:
    assert post(api, shop, plural, spec)[0] == 201
    status, answer = patch(api, shop, plural, "sales", change)
    assert status == 422
    assert "make another object" in answer["message"]
    assert patch(api, shop, plural, "sales", {"ttlSecondsAfterFinished": 5})[0] == 200
