"""etcd and the control plane, in a machine of their own: no lost node takes them along."""

from __future__ import annotations

from pathlib import Path

from bare_cluster import api, configs
from bare_cluster.daemons import as_flags, check_daemon, ensure_daemon, log_of
from bare_cluster.places import CONTROL
from bare_cluster.steps import last_lines, step, wait_until

_READY_SECONDS_MAX = 90.0
DAEMONS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


def ensure_control_plane(kubernetes: Path) -> None:
    """Starts what does not run and returns when the API server is ready."""

    def ensure(component: str, flags: dict[str, str]) -> None:
        ensure_daemon(CONTROL, component, [kubernetes, component, *as_flags(flags)])

    def is_ready() -> bool:
        check_daemon(CONTROL, "etcd")
        check_daemon(CONTROL, "kube-apiserver")
        return api.is_ready()

    with step("control plane"):
        (CONTROL.data / "etcd").mkdir(parents=True, exist_ok=True, mode=0o700)
        ensure("etcd", configs.etcd_flags())
        ensure("kube-apiserver", configs.api_server_flags())
        wait_until(
            is_ready,
            "The API server",
            _READY_SECONDS_MAX,
            lambda: last_lines(log_of(CONTROL, "kube-apiserver")),
        )
        # After it: they end themselves when no API server answers.
        ensure("kube-controller-manager", configs.controllers_flags())
        ensure("kube-scheduler", configs.scheduler_flags())
