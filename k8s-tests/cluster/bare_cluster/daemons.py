"""Starts the long-running processes, each in its machine's cgroup, with a log file of its own.

A daemon is known by a file with its process id; it counts as running only while that id is also a member
of the machine's cgroup, so an id that another program got later is never taken for it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from bare_cluster.cgroups import ensure_cgroup, processes_of
from bare_cluster.network import inside
from bare_cluster.places import LOGS, Machine
from bare_cluster.steps import ClusterProblem, last_lines, wait_until

# The cgroup before anything else, so that no child can be born outside.
_START = 'echo $$ > "$1"; shift; exec "$@"'


def log_of(machine: Machine, name: str) -> Path:
    return LOGS / f"{machine.name}-{name}.log"


def running_id(machine: Machine, name: str) -> int | None:
    """The daemon's process id, or None when it does not run."""
    file = _id_file(machine, name)
    if not file.exists():
        return None
    pid = int(file.read_text())
    return pid if pid in processes_of(machine) else None


def ensure_daemon(machine: Machine, name: str, command: Sequence[str | Path]) -> None:
    """Starts the command in the machine's network unless it runs already. Returns at once."""
    if running_id(machine, name) is not None:
        return
    members = ensure_cgroup(machine)
    machine.run.mkdir(parents=True, exist_ok=True)
    LOGS.mkdir(parents=True, exist_ok=True)
    with log_of(machine, name).open("ab") as log:
        process = subprocess.Popen(
            ["sh", "-c", _START, "sh", str(members), *inside(machine), *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # Nothing of the caller's: its KUBECONFIG or proxies would change what daemons do.
            env={"PATH": f"{os.defpath}:/usr/sbin:/sbin", "HOME": "/root"},
        )
    _id_file(machine, name).write_text(str(process.pid))
    wait_until(
        lambda: running_id(machine, name) is not None or process.poll() is not None,
        f"{name} of {machine.name} in its cgroup",
        seconds_max=5,
    )


def check_daemon(machine: Machine, name: str) -> None:
    """Raises with the end of its log when the daemon has ended."""
    if running_id(machine, name) is None:
        raise ClusterProblem(
            f"{name} of {machine.name} ended.\n{last_lines(log_of(machine, name))}"
        )


def as_flags(flags: Mapping[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in flags.items()]


def _id_file(machine: Machine, name: str) -> Path:
    return machine.run / f"{name}.pid"
