"""The machines' cgroups: each holds every process of a machine, and so tells which to end.

A kubelet needs a root of its own in every hierarchy, made before it starts. Everything we start goes
into one of these groups, and its children inherit that: the members are exactly our processes, which a
file of process ids could not promise.

Both layouts: version 1 (also hybrid), with one hierarchy for each controller, and version 2 (unified).
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bare_cluster.places import Machine
from bare_cluster.steps import ClusterProblem, wait_until

_END_SECONDS_MAX = 20.0
_MARKERS = ("pids", "systemd", "memory")
"""Version 1: the hierarchy in which a daemon's group marks it as ours, the first that is there."""


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """Mount points of cgroups. `unified` alone: version 2; `v1` by controller otherwise."""

    v1: dict[str, Path]
    unified: Path | None

    @property
    def all(self) -> list[Path]:
        return sorted({*self.v1.values(), *([self.unified] if self.unified else [])})

    @property
    def marker(self) -> Path:
        """Where daemons are put and processes are looked for."""
        for name in _MARKERS:
            if name in self.v1:
                return self.v1[name]
        if self.unified is None:
            raise ClusterProblem(
                "No cgroups are mounted under /sys/fs/cgroup: a kubelet needs them."
            )
        return self.unified


def parse_hierarchies(mounts: str) -> Hierarchies:
    """Reads the text of /proc/self/mounts."""
    v1: dict[str, Path] = {}
    unified = None
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split()
        if kind == "cgroup2":
            unified = Path(point)
        elif kind == "cgroup":
            # Names such as "cpu,cpuacct" are one folder; the links beside it are not mounts.
            v1[Path(point).name] = Path(point)
    return Hierarchies(v1, unified)


def hierarchies() -> Hierarchies:
    return parse_hierarchies(Path("/proc/self/mounts").read_text())


def ensure_cgroup(machine: Machine) -> Path:
    """Makes the machine's group in every hierarchy; returns the file that takes its daemons' ids."""
    found = hierarchies()
    for root in found.all:
        group = root / machine.cgroup
        group.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):
            # Version 1: empty in a new group, and then no process may enter.
            if root in found.v1.values() and (group / file).exists():
                (group / file).write_text((root / file).read_text())
    if not found.v1 and found.unified:
        _delegate(found.unified)
        _delegate(found.unified / machine.cgroup)
    # Below the group, not in it: in version 2 a group with groups below must have no processes.
    daemons = found.marker / machine.cgroup / "daemons"
    daemons.mkdir(exist_ok=True)
    return daemons / "cgroup.procs"


def processes_of(machine: Machine) -> list[int]:
    """Ids of all living processes of the machine: daemons, shims and containers."""
    ids: list[int] = []
    group = hierarchies().marker / machine.cgroup
    for folder, _, _ in os.walk(group):
        with suppress(OSError):  # a container's group may go while we look
            ids += map(int, Path(folder, "cgroup.procs").read_text().split())
    return ids


def end_processes(machine: Machine) -> None:
    """Ends all of them, without asking: a machine that is switched off does not ask either."""

    def all_ended() -> bool:
        ids = processes_of(machine)
        for pid in ids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not ids

    wait_until(
        all_ended,
        f"The end of the processes of {machine.name}",
        _END_SECONDS_MAX,
        lambda: f"Still there: {processes_of(machine)}",
    )


def remove_cgroup(machine: Machine) -> None:
    """Removes the machine's groups; its processes have ended."""
    for root in hierarchies().all:
        for folder, _, _ in os.walk(root / machine.cgroup, topdown=False):
            wait_until(
                lambda folder=folder: _removed(Path(folder)),  # type: ignore[misc]
                f"The end of cgroup {folder}",
                _END_SECONDS_MAX,
            )


def leftovers(machine: Machine) -> list[str]:
    """Groups of the machine that are still there."""
    return [
        f"cgroup {r / machine.cgroup}" for r in hierarchies().all if (r / machine.cgroup).exists()
    ]


def _removed(group: Path) -> bool:
    # The kernel frees a group a moment after its last process: busy until then.
    with suppress(FileNotFoundError):
        try:
            group.rmdir()
        except OSError:
            return False
    return True


def _delegate(group: Path) -> None:
    """Version 2: lets the groups below use every controller that this one has."""
    controllers = (group / "cgroup.controllers").read_text().split()
    try:
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))
    except OSError as error:
        raise ClusterProblem(
            f"The controllers of {group} can't be handed down ({error.strerror}).\n"
            "Inside a container, its processes must first leave the root group (as kind's nodes do)."
        ) from error
