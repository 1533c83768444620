"""Objects of Kubernetes as tests make them."""

from __future__ import annotations

from typing import Any

from tests.api_server import ApiServer

_PATHS = {
    "HorizontalPodAutoscaler": "/apis/autoscaling/v2/namespaces/{}/horizontalpodautoscalers",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "Pod": "/api/v1/namespaces/{}/pods",
    "OrderPipeline": "/apis/coffee-rt.dev/v1alpha1/namespaces/{}/orderpipelines",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
}


def path_of(kind: str, namespace: str) -> str:
    """Where the objects of a kind are made."""
    return _PATHS[kind].format(namespace)


def make(api: ApiServer, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
    status, answer = api.request("POST", path_of(body["kind"], namespace), body)
    assert status == 201, answer
    return dict(answer)


def read(api: ApiServer, namespace: str, kind: str, name: str) -> dict[str, Any]:
    status, answer = api.request("GET", f"{path_of(kind, namespace)}/{name}")
    assert status == 200, answer
    return dict(answer)


def set_status(
    api: ApiServer, namespace: str, plural: str, name: str, status: dict[str, Any]
) -> None:
    """As a controller or a kubelet says it."""
    base = "/api/v1" if plural == "pods" else "/apis/apps/v1"
    code, answer = api.request(
        "PATCH",
        f"{base}/namespaces/{namespace}/{plural}/{name}/status",
        {"status": status},
        kind="application/merge-patch+json",
    )
    assert code == 200, answer


def pipeline(spec: dict[str, Any], name: str = "coffee") -> dict[str, Any]:
    return {
        "apiVersion": "coffee-rt.dev/v1alpha1",
        "kind": "OrderPipeline",
        "metadata": {"name": name},
        "spec": spec,
    }


def autoscaler(name: str, low: int, high: int) -> dict[str, Any]:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
    cpu = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name},
        "spec": {
            "minReplicas": low,
            "maxReplicas": high,
            "scaleTargetRef": target,
            "metrics": [{"type": "Resource", "resource": cpu}],
        },
    }


def deployment(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"component": name}},
            "template": {
                "metadata": {"labels": {"component": name}},
                "spec": {"containers": [{"name": name, "image": "none"}]},
            },
        },
    }


def pod(name: str, component: str, port: int) -> dict[str, Any]:
    container = {
        "name": component,
        "image": "none",
        "ports": [{"name": "http", "containerPort": port}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"component": component}},
        "spec": {"containers": [container], "automountServiceAccountToken": False},
    }
