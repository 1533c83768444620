"""OrderPipelines as the API server takes them: defaults filled in, bad ones refused with a sentence."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api_server import ApiServer

PATH = "/apis/coffee-rt.dev/v1alpha1/namespaces/{}/orderpipelines"
WORKERS = {"deployment": "worker", "autoscaler": "worker"}
FANOUT = {"deployment": "fanout", "autoscaler": "fanout"}


def pipeline(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "coffee-rt.dev/v1alpha1",
        "kind": "OrderPipeline",
        "metadata": {"name": "coffee"},
        "spec": spec,
    }


def test_an_empty_spec_is_completed(api: ApiServer, shop: str) -> None:
    status, answer = api.request("POST", PATH.format(shop), pipeline({}))
    assert status == 201, answer
    assert answer["spec"] == {
        "paused": False,
        "partitions": {"daysAhead": 7, "retentionDays": 400, "expired": "Drop"},
        "ledger": {"compactEverySeconds": 3600, "marginSeconds": 3600},
    }


def test_it_may_be_applied_by_the_server(api: ApiServer, shop: str) -> None:
    path = f"{PATH.format(shop)}/coffee?fieldManager=tests"
    body = pipeline({"workers": WORKERS, "fanout": FANOUT})
    status, answer = api.request("PATCH", path, body, kind="application/apply-patch+yaml")
    assert status == 201, answer
    assert answer["spec"]["workers"]["floor"]["targetSeconds"] == 60


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"partitions": {"retentionDays": 2}}, "should be greater than or equal to 3"),
        ({"partitions": {"daysAhead": 0}}, "should be greater than or equal to 1"),
        ({"partitions": {"expired": "Burn"}}, "supported values"),
        ({"partitons": {}}, "unknown field"),
        ({"workers": {"autoscaler": "worker"}}, "deployment"),
        ({"workers": {**WORKERS, "floor": {"min": 5, "max": 2}}}, "min must not be above max"),
        ({"fanout": {**FANOUT, "floor": {"min": 5, "max": 2}}}, "min must not be above max"),
        ({"workers": {**WORKERS, "floor": {"targetSeconds": 1}}}, "greater than or equal to 5"),
        ({"fanout": {**FANOUT, "floor": {"sessionsPerPod": 0}}}, "greater than or equal to 1"),
        ({"workers": WORKERS, "fanout": WORKERS}, "must be two Deployments"),
        (
            {"workers": WORKERS, "fanout": {**FANOUT, "autoscaler": "worker"}},
            "must have two autoscalers",
        ),
        ({"ledger": {"marginSeconds": 1}}, "should be greater than or equal to 60"),
    ],
)
def test_a_bad_spec_is_refused_with_a_sentence(
    api: ApiServer, shop: str, spec: dict[str, Any], sentence: str
) -> None:
    path = f"{PATH.format(shop)}?fieldValidation=Strict&dryRun=All"
    status, answer = api.request("POST", path, pipeline(spec))
    assert status in {400, 422}
    assert sentence in answer["message"]
