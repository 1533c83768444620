"""The rights the chart gives to the operator are enough, and no more than what it names."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.api_server import ApiServer, program
from tests.operator.conftest import ROOT
from tests.operator.objects import (
    autoscaler,
    deployment,
    make,
    path_of,
    pod,
    read,
    set_status,
)
from tests.operator.running import condition, eventually, operators

pytestmark = pytest.mark.timeout(180)


def rendered(namespace: str) -> list[dict[str, Any]]:
    """The objects of the operator's own templates."""
    found = program()
    assert found is not None
    shown = [f"--show-only=templates/operator/{name}.yaml" for name in ("rights", "pipeline")]
    output = subprocess.run(
        [
            str(found.parent / "helm"),
            "template",
            "coffee-rt",
            str(ROOT / "helm" / "coffee-rt"),
            f"--namespace={namespace}",
            "--kube-version=1.34.4",
            *shown,
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [one for one in yaml.safe_load_all(output) if one]


async def test_the_charts_rights_are_enough_for_all_it_does(
    api: ApiServer,
    shop: str,
    tmp_path: Path,
    database_url: str,
    valkey_url: str,
    redis_namespace: str,
    pod_port: int,
) -> None:
    objects = {one["kind"]: one for one in rendered(shop)}
    for name in ("coffee-rt-worker", "coffee-rt-fanout"):
        make(api, shop, autoscaler(name, 1, 6))
        make(api, shop, deployment(name))
    make(api, shop, pod("fanout-1", "coffee-rt-fanout", pod_port))
    set_status(api, shop, "pods", "fanout-1", {"phase": "Running", "podIP": "127.0.0.1"})
    objects["OrderPipeline"]["spec"]["fanout"]["floor"]["sessionsPerPod"] = 100
    for one in objects.values():
        make(api, shop, one)
    account = objects["ServiceAccount"]["metadata"]["name"]
    code, answer = api.request(
        "POST", f"{path_of('ServiceAccount', shop)}/{account}/token", {"spec": {}}
    )
    assert code == 201, answer
    kubeconfig = api.kubeconfig(shop, answer["status"]["token"], name=f"{shop}-rights")
    environ = {
        "KUBECONFIG": str(kubeconfig),
        "COFFEE_RT_REDIS_URL": valkey_url,
        "COFFEE_RT_DATABASE_URL": database_url,
        "COFFEE_RT_NAMESPACE": redis_namespace,
        "COFFEE_RT_HTTP_PORT": "0",
        "COFFEE_RT_OPERATOR_TEND_SECONDS": "0.5",
    }
    with operators(tmp_path, environ) as running:
        operator = running.start()

        def floor() -> int:
            found = read(api, shop, "HorizontalPodAutoscaler", "coffee-rt-fanout")
            return int(found["spec"]["minReplicas"])

        def ready() -> bool:
            found = read(api, shop, "OrderPipeline", "coffee-rt")
            return condition(found, "Ready") == ("True", "Tended")

        await eventually(lambda: floor() == 4 and ready(), tell=running.tell)
        assert operator.end() == 0
        assert "forbidden" not in operator.text().lower()
    _, answer = api.request("GET", f"/api/v1/namespaces/{shop}/events")
    assert {"FloorRaised", "PartitionsMade"} <= {event["reason"] for event in answer["items"]}


def test_the_rights_name_the_autoscalers_and_the_lease(shop: str) -> None:
    (role,) = [one for one in rendered(shop) if one["kind"] == "Role"]
    by_verb = {
        (rule["resources"][0], verb): rule.get("resourceNames")
        for rule in role["rules"]
        for verb in rule["verbs"]
    }
    both = {"coffee-rt-fanout", "coffee-rt-worker"}
    assert set(by_verb["horizontalpodautoscalers", "patch"]) == both
    assert by_verb["leases", "patch"] == ["coffee-rt-operator"]
    assert not [rule for rule in role["rules"] if "*" in rule["verbs"] + rule["resources"]]
    assert not [rule for rule in role["rules"] if "secrets" in rule["resources"]]
