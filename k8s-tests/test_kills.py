"""Pods of every kind are killed while orders flow: none lost, none double, views exact."""

from __future__ import annotations

import pytest
from kube import wait_until
from recording import Recorder
from release import PROCESSES, Release

VICTIMS = (*PROCESSES, "operator", "valkey", "postgresql")


def test_killing_every_process_under_load_loses_nothing(shop: Release) -> None:
    with Recorder(shop) as recorder:
        for victim in VICTIMS:
            kill_one(shop, victim)
            recorder.run_on(20)
    assert recorder.result is not None


@pytest.mark.smoke
def test_killing_the_workers_under_load_loses_nothing(shop: Release) -> None:
    with Recorder(shop) as recorder:
        for pod in shop.kube.pods("worker"):
            _kill(shop, pod.name)
        recorder.run_on(60)


def kill_one(release: Release, component: str) -> None:
    """Without a grace period, as when a node's kernel kills it; return when all its pods are ready again."""
    pods = release.kube.pods(component)
    victim = pods[0]
    _kill(release, victim.name)

    def is_replaced() -> bool:
        now = release.kube.ready_pods(component)
        return len(now) >= len(pods) and all(pod.uid != victim.uid for pod in now)

    wait_until(
        is_replaced,
        f"another {component} is ready",
        seconds_max=180,
        last_words=release.kube.describe_trouble,
    )


def _kill(release: Release, pod: str) -> None:
    release.kube.kubectl("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")
