"""Removes all that a cluster made, in an order in which nothing is busy, and looks whether it is gone."""

from __future__ import annotations

from bare_cluster import cgroups, network, node
from bare_cluster.places import CONTROL, DATA, NODES, RUN
from bare_cluster.steps import ClusterProblem, run, step


def is_dead() -> bool:
    """Whether files of a cluster are here but none of its processes: the machine was switched off, or all were killed.

    Its nodes can't be woken: their kubelets would take containers that containerd remembers for running ones.
    """
    if not (RUN.exists() or DATA.exists()):
        return False
    return not any(cgroups.processes_of(machine) for machine in (CONTROL, *NODES))


def remove_all() -> None:
    """Works on half a cluster too, and on none. Raises when something stays."""
    machines = (*NODES, CONTROL)
    with step("ended all processes"):
        for machine in machines:
            cgroups.end_processes(machine)
    with step("removed cgroups, network and files"):
        for machine in machines:
            cgroups.remove_cgroup(machine)
        network.remove_network()
        node.remove_mount_points()
        run("rm", "-rf", "--one-file-system", DATA, RUN, seconds_max=300)
    left = [
        *network.leftovers(),
        *(name for machine in machines for name in cgroups.leftovers(machine)),
        *(f"folder {folder}" for folder in (DATA, RUN) if folder.exists()),
    ]
    if left:
        raise ClusterProblem("\n".join(["This could not be removed:", *left]))
