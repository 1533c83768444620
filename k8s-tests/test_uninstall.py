"""Uninstalling leaves what it says it leaves: the volumes with the orders, which a new installation opens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kube import wait_until
from release import NAME, Release

pytestmark = pytest.mark.smoke

LOOKED_AT = (
    "deployments,statefulsets,jobs,pods,services,configmaps,secrets,persistentvolumeclaims,"
    "serviceaccounts,roles,rolebindings,networkpolicies,poddisruptionbudgets,horizontalpodautoscalers,leases"
)


def test_uninstall_leaves_only_the_data(
    make_release: Callable[[str], Release],
) -> None:
    release = make_release("leaving")
    release.install()
    release.test()
    orders = release.stored_orders()
    release.uninstall()
    wait_until(lambda: not release.kube.objects("pods"), "all pods are gone", seconds_max=180)
    left = {
        (item["kind"], item["metadata"]["name"])
        for item in release.kube.objects(LOOKED_AT)
        if item["metadata"].get("labels", {}).get("app.kubernetes.io/instance") == NAME
    }
    assert {kind for kind, _ in left} == {"PersistentVolumeClaim"}, left
    # What is left is enough to come back, with other passwords.
    release.install()
    assert release.stored_orders() == orders
    release.test()
