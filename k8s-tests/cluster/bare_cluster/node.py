"""One node: containerd, a kubelet and kube-proxy, in a network and a mount namespace of their own.

In its mount namespace a node has its own /var/lib/kubelet, /run/containerd and so on, mounted from our
folders over the host's. So nothing of it is written elsewhere on the host (many of these paths are fixed
in the programs), two nodes can't touch each other's, and all its mounts go with its last process.
`nsenter --target <process id> --mount --net` looks at a node from inside.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from bare_cluster import configs
from bare_cluster.cgroups import end_processes, remove_cgroup
from bare_cluster.daemons import check_daemon, ensure_daemon, log_of, running_id
from bare_cluster.network import set_cable
from bare_cluster.places import DNS_ADDRESS, KEYS, RUN, Node
from bare_cluster.steps import last_lines, run, wait_until

DAEMONS = ("containerd", "kubelet", "kube-proxy")
_CONTAINERD_SECONDS_MAX = 30.0
_IMPORT_SECONDS_MAX = 300.0

_OWN_FOLDERS = {
    "/var/lib/containerd": "data",
    "/var/lib/kubelet": "data",
    "/var/lib/cni": "data",
    "/var/log/pods": "data",
    "/var/log/containers": "data",
    "/run/containerd": "run",
    "/run/netns": "run",
}
"""Paths that each node has for itself; `run` ones are emptied when it starts, as by a reboot."""

_MADE_FOLDERS = RUN / "made-folders"
"""Which of these paths the host did not have: they were made to mount over, and go at `down`."""

_KERNEL_PARAMETERS = {
    "/proc/sys/vm/overcommit_memory": "1",
    "/proc/sys/vm/panic_on_oom": "0",
    "/proc/sys/kernel/panic": "10",
    "/proc/sys/kernel/panic_on_oops": "1",
    "/proc/sys/kernel/keys/root_maxkeys": "1000000",
    "/proc/sys/kernel/keys/root_maxbytes": "25000000",
}
"""What a kubelet sets, or ends when it can't. They are the whole host's (one restarts the machine after a
kernel error), so the node sees files with these values in their place, and finds nothing to set."""

# Pairs of what is mounted and where, then the command.
_START_IN_OWN_MOUNTS = """
set -e
while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done
shift
exec "$@"
"""

# As an init system does: containerd takes connections a while before it takes the kubelet's questions (longer where
# it has many containers to look after), and a kubelet that meets it then ends.
_START_AGAIN = """
for attempt in 1 2 3 4 5 6 7 8 9 10; do
    "$@" && exit
    sleep 0.5
done
exit 1
"""


def ensure_containerd(node: Node, pause_image: str) -> None:
    """Starts containerd, and with it the node's mount namespace; returns when it answers."""
    if running_id(node, "containerd") is None:
        pairs: list[str | Path] = []
        for target, kind in _OWN_FOLDERS.items():
            source = (node.data if kind == "data" else node.run) / Path(target).name
            if kind == "run":
                shutil.rmtree(source, ignore_errors=True)
            source.mkdir(parents=True, exist_ok=True)
            _ensure_mount_point(Path(target))
            pairs += [source, target]
        for parameter, value in _KERNEL_PARAMETERS.items():
            seen = write_config(node.run / "kernel" / Path(parameter).name, f"{value}\n")
            pairs += [seen, parameter]
        cni = node.run / "cni"
        write_config(cni / "10-pods.conflist", configs.cni_config(node))
        config = write_config(
            node.run / "containerd.toml", configs.containerd_config(pause_image, cni)
        )
        ensure_daemon(
            node,
            "containerd",
            [
                *("unshare", "--mount", "--propagation", "private"),
                *("sh", "-c", _START_IN_OWN_MOUNTS, "sh", *pairs, "--"),
                *("containerd", "--config", config),
            ],
        )
    wait_until(
        lambda: _answers(node),
        f"containerd of {node.name}",
        _CONTAINERD_SECONDS_MAX,
        lambda: last_lines(log_of(node, "containerd")),
    )


def ensure_kubelet(node: Node, kubernetes: Path) -> None:
    """Starts the kubelet and kube-proxy of a node whose containerd runs. Returns at once."""
    write_config(node.run / "resolv.conf", f"nameserver {DNS_ADDRESS}\n")
    kubelet = write_config(node.run / "kubelet.json", configs.kubelet_config(node))
    proxy = write_config(node.run / "kube-proxy.json", configs.kube_proxy_config(node))
    ensure_daemon(
        node,
        "kubelet",
        [
            *("sh", "-c", _START_AGAIN, "sh"),
            *("nsenter", f"--mount=/proc/{running_id(node, 'containerd')}/ns/mnt"),
            *(kubernetes, "kubelet", f"--config={kubelet}"),
            f"--kubeconfig={KEYS / node.name}.kubeconfig",
            f"--hostname-override={node.name}",
            f"--node-ip={node.address}",
            f"--node-labels=topology.kubernetes.io/zone={node.zone}",
        ],
    )
    ensure_daemon(node, "kube-proxy", [kubernetes, "kube-proxy", f"--config={proxy}"])


def check_node(node: Node) -> None:
    """Raises when one of its daemons has ended."""
    for name in DAEMONS:
        check_daemon(node, name)


def is_running(node: Node) -> bool:
    return any(running_id(node, name) is not None for name in DAEMONS)


def stop_node(node: Node, cut: bool) -> None:
    """Ends all processes of the node at once, as a power cut does; `cut` pulls its cable as well.

    Without `cut` its address still answers, with refusals; with it there is silence, as from a machine
    that is gone.
    """
    if cut:
        set_cable(node, is_plugged=False)
    end_processes(node)
    # A machine that starts again has none of the old groups; a kubelet that finds them looks for the
    # containers in them, 3 s each.
    remove_cgroup(node)


def import_archives(node: Node, archives: Sequence[Path]) -> None:
    """Imports OCI or Docker archives, one after the other."""
    for archive in archives:
        run(*_ctr(node), "images", "import", archive, seconds_max=_IMPORT_SECONDS_MAX)


def has_images(node: Node, references: Sequence[str]) -> bool:
    return set(references) <= set(run(*_ctr(node), "images", "list", "--quiet").split())


def remove_mount_points() -> None:
    """Removes the folders of the host that were made to mount over, if nobody else used them."""
    if _MADE_FOLDERS.exists():
        for line in reversed(_MADE_FOLDERS.read_text().splitlines()):
            folder = Path(line)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _ensure_mount_point(folder: Path) -> None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        with _MADE_FOLDERS.open("a") as made:
            made.write(f"{path}\n")
        path.mkdir(exist_ok=True)


def _ctr(node: Node) -> tuple[str | Path, ...]:
    return ("ctr", "--address", node.containerd_socket, "--namespace", "k8s.io")


def _answers(node: Node) -> bool:
    check_daemon(node, "containerd")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(node.containerd_socket))
        except OSError:
            return False
    return True


def write_config(path: Path, text: str) -> Path:
    """Write a file unless it says so already: kube-proxy ends when its own is written, even with the same text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return path
