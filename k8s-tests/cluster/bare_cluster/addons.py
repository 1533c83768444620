"""What every cluster is expected to have beside Kubernetes: names, volumes, measures, ways in.

The manifests are in `addons/`; `${...}` in them is an image or an address. Applied again and again
without harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template

from bare_cluster import places
from bare_cluster.api import kubectl
from bare_cluster.places import NODES, SOURCES

_ROLLOUT_SECONDS_MAX = 120
_WORKLOADS = (
    "deployment/coredns",
    "deployment/volume-provisioner",
    "daemonset/traefik",
    "deployment/metrics-server",
)


def render_addons(references: Mapping[str, str]) -> str:
    """All manifests as one text; an unknown `${name}` in them is an error."""
    values = {
        **{f"{name.replace('-', '_')}_image": reference for name, reference in references.items()},
        "cluster_domain": places.CLUSTER_DOMAIN,
        "dns_address": places.DNS_ADDRESS,
        "http_node_port": str(places.HTTP_NODE_PORT),
        "https_node_port": str(places.HTTPS_NODE_PORT),
        "node_address": NODES[0].address,
        "node_addresses": ", ".join(node.address for node in NODES),
        "volumes": str(places.VOLUMES),
    }
    files = sorted((SOURCES / "addons").glob("*.yaml"))
    return "\n---\n".join(Template(file.read_text()).substitute(values) for file in files)


def apply_gateway_crds(crds: Path) -> None:
    """Before anything that uses them. Server-side: they are too long for kubectl's own annotation."""
    kubectl("apply", "--server-side", "--force-conflicts", "--filename", str(crds))
    kubectl(
        *("wait", "--for=condition=Established", "--timeout=30s"),
        *("crd/gatewayclasses.gateway.networking.k8s.io", "crd/gateways.gateway.networking.k8s.io"),
    )


def apply_addons(references: Mapping[str, str]) -> None:
    places.VOLUMES.mkdir(parents=True, exist_ok=True)
    kubectl(
        "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=render_addons(references)
    )


def wait_for_addons() -> None:
    """Returns when all of it serves."""
    timeout = f"--timeout={_ROLLOUT_SECONDS_MAX}s"
    for workload in _WORKLOADS:
        kubectl(
            *("--namespace=kube-system", "rollout", "status", "--watch", timeout, workload),
            seconds_max=_ROLLOUT_SECONDS_MAX + 10,
        )
    kubectl(
        *("wait", "--for=condition=Available", timeout, "apiservice/v1beta1.metrics.k8s.io"),
        seconds_max=_ROLLOUT_SECONDS_MAX + 10,
    )
