"""Upgrades and rollbacks while orders flow: none lost, none double, sockets go on where they were."""

from __future__ import annotations

import pytest
from recording import Recorder
from release import PROCESSES, Release

pytestmark = pytest.mark.smoke


def test_upgrade_and_rollback_under_load_lose_nothing_and_double_nothing(shop: Release) -> None:
    before = _pods(shop)
    with Recorder(shop) as recorder:
        shop.upgrade({"settings": {"logLevel": "debug"}})
        upgraded = _pods(shop)
        recorder.run_on(30)
        shop.rollback()
        recorder.run_on(30)
    assert not before & upgraded, "every pod was replaced"
    assert not upgraded & _pods(shop), "and once more"
    assert recorder.result is not None
    for socket in recorder.result["sockets"]:
        assert socket["counts"]["connections"] >= 2, "the socket's server was replaced twice"
        # Resumed: a second snapshot would mean that everything was sent again.
        assert socket["counts"]["snapshots"] == 1, socket


def _pods(release: Release) -> set[str]:
    return {pod.uid for process in PROCESSES for pod in release.kube.pods(process)}


def test_secrets_survive_an_upgrade(shop: Release) -> None:
    names = [
        item["metadata"]["name"]
        for item in shop.kube.objects("secrets", "app.kubernetes.io/instance=coffee-rt")
    ]
    assert len(names) >= 2
    before = {name: shop.secret(name) for name in names}
    shop.upgrade({"settings": {"logLevel": "info"}})
    assert {name: shop.secret(name) for name in names} == before
