"""A node is drained, and one is lost, while orders flow: service goes on, and every order is there.

The bundled stores and the recorder stay on the other node: their volumes can't move. Only for the cluster of
k8s-tests/cluster, whose nodes may be stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kube import Json, Kube, run, wait_until
from recording import Recorder
from release import NAME, PROCESSES, Release

pytestmark = pytest.mark.bare

CLUSTER = Path(__file__).parent / "cluster" / "cluster"
KEPT, TAKEN = "node0", "node1"
HOST = "kubernetes.io/hostname"


@pytest.fixture(scope="module")
def spread(make_release: Callable[[str], Release]) -> Release:
    """A release with two pods of each process, one a node, and its stores on the node that stays."""
    release = make_release("nodes")
    values: Json = {store: {"nodeSelector": {HOST: KEPT}} for store in ("valkey", "postgresql")}
    for process in ("orderApi", "worker", "aggregator", "fanout", "queryApi"):
        values[process] = {"replicas": 2, "autoscaling": {"enabled": False}}
    release.install(values)
    return release


@pytest.fixture
def node_comes_back(spread: Release) -> Iterator[None]:
    yield
    run([str(CLUSTER), "node", "start", TAKEN], seconds_max=120)
    spread.kube.kubectl("uncordon", TAKEN)
    wait_until(lambda: _is_ready(spread.kube, TAKEN), f"{TAKEN} is ready again")


@pytest.mark.usefixtures("node_comes_back")
def test_a_drained_node_costs_nothing(spread: Release) -> None:
    with Recorder(spread, node=KEPT) as recorder:
        spread.kube.kubectl(
            "drain",
            TAKEN,
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            "--timeout=240s",
            f"--pod-selector=app.kubernetes.io/instance={NAME}",
            seconds_max=260,
        )
        for process in PROCESSES:
            assert all(pod.node == KEPT for pod in spread.kube.pods(process))
        recorder.run_on(60)


@pytest.mark.usefixtures("node_comes_back")
def test_a_lost_node_costs_retries_and_no_order(spread: Release) -> None:
    """Its kubelet, its containerd and all its containers end, and its network is silent."""
    spread.kube.wait_rolled_out(*(f"deployment/{NAME}-{process}" for process in PROCESSES))
    with Recorder(spread, node=KEPT) as recorder:
        run([str(CLUSTER), "node", "stop", TAKEN, "--cut"], seconds_max=120)
        wait_until(lambda: not _is_ready(spread.kube, TAKEN), f"{TAKEN} is seen to be lost")
        recorder.run_on(100)
        for process in PROCESSES:
            wait_until(
                lambda process=process: any(  # type: ignore[misc]
                    pod.node == KEPT for pod in spread.kube.ready_pods(process)
                ),
                f"{process} runs on {KEPT}",
            )


def _is_ready(kube: Kube, node: str) -> bool:
    conditions = kube.get("node", node)["status"]["conditions"]
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
