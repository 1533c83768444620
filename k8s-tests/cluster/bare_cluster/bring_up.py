"""Starts the cluster, or what of it does not run, in the order in which things need one another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from bare_cluster import api, places
from bare_cluster.addons import apply_addons, apply_gateway_crds, wait_for_addons
from bare_cluster.build import Products
from bare_cluster.certificates import ensure_certificates
from bare_cluster.cgroups import ensure_cgroup
from bare_cluster.control_plane import ensure_control_plane
from bare_cluster.daemons import log_of
from bare_cluster.network import ensure_network, set_cable
from bare_cluster.node import (
    check_node,
    ensure_containerd,
    ensure_kubelet,
    has_images,
    import_archives,
)
from bare_cluster.places import CONTROL, Node
from bare_cluster.steps import last_lines, step, wait_until

_NODE_READY_SECONDS_MAX = 60.0


def ensure_cluster(nodes: Sequence[Node], products: Products) -> None:
    """Returns when the nodes are Ready and all addons serve."""
    with step("certificates and network"):
        for folder in (places.RUN, places.DATA):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        ensure_certificates()
        ensure_network(nodes)
        for machine in (CONTROL, *nodes):
            ensure_cgroup(machine)
    _ensure_kubernetes(nodes, products)
    # After the nodes: earlier, what should be spread over them would all go to the first.
    with step("names, volumes, ways in, measures"):
        apply_addons(products.references)
        wait_for_addons()


def start_node(node: Node, products: Products) -> None:
    """Starts a node that was stopped; returns when it is Ready again."""
    began = time.time()
    set_cable(node, is_plugged=True)
    _ensure_runtime(node, products)
    ensure_kubelet(node, products.programs["kubernetes"])
    _wait_until_ready([node], since=began)


def _ensure_kubernetes(nodes: Sequence[Node], products: Products) -> None:
    """The control plane and all nodes side by side: they wait for different things."""
    kubernetes = products.programs["kubernetes"]
    with ThreadPoolExecutor() as threads:
        control = threads.submit(ensure_control_plane, kubernetes)
        runtimes = [threads.submit(_ensure_runtime, node, products) for node in nodes]
        control.result()
        crds = threads.submit(apply_gateway_crds, products.gateway_crds)
        for runtime in runtimes:
            runtime.result()
        with step("nodes ready"):
            for node in nodes:
                ensure_kubelet(node, kubernetes)
            _wait_until_ready(nodes)
        crds.result()


def _ensure_runtime(node: Node, products: Products) -> None:
    with step(f"containerd and the cluster's images on {node.name}"):
        ensure_containerd(node, products.references["pause"])
        if not has_images(node, list(products.references.values())):
            import_archives(node, [products.images])


def _wait_until_ready(nodes: Sequence[Node], since: float = 0.0) -> None:
    def all_ready() -> bool:
        for node in nodes:
            check_node(node)
        conditions = api.node_conditions(since)
        return all(conditions.get(node.name, False) for node in nodes)

    wait_until(
        all_ready,
        "All nodes being Ready",
        _NODE_READY_SECONDS_MAX,
        lambda: "\n".join(last_lines(log_of(node, "kubelet")) for node in nodes),
    )
