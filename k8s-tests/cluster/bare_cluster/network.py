"""The cluster's network: a bridge of the host, and a network namespace with a cable for each machine.

The host has the bridge's first address, so it reaches the API server, node ports and pods, and pods
reach the host. No machine has a way beyond the host: nothing leaks into the real network.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bare_cluster.places import (
    BRIDGE,
    CONTROL,
    HOST_ADDRESS,
    NETWORK_BITS,
    NODES,
    RUN,
    SERVICE_RANGE,
    Machine,
    Node,
)
from bare_cluster.steps import run


def ensure_network(nodes: Sequence[Node]) -> None:
    """The bridge, and the machines' namespaces, addresses and routes."""
    if not _link_exists(BRIDGE):
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{HOST_ADDRESS}/{NETWORK_BITS}", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
    for machine in (CONTROL, *nodes):
        if not is_member(machine):
            _make_machine(machine)
        _route_to_pods(machine, [node for node in nodes if node != machine])
    for node in nodes:
        set_cable(node, is_plugged=True)
        run("ip", "route", "replace", node.pod_range, "via", node.address)


def set_cable(node: Node, is_plugged: bool) -> None:
    """Pulls a node's cable or puts it back; pulled, the node does not answer at all."""
    run("ip", "link", "set", node.link, "up" if is_plugged else "down")


def remove_network() -> None:
    """Removes what `ensure_network` made, whatever there is of it. Pods' namespaces are gone by now."""
    for machine in (CONTROL, *NODES):
        if is_member(machine):
            run("umount", machine.namespace)
        machine.namespace.unlink(missing_ok=True)
        if _link_exists(
            machine.link
        ):  # the kernel takes it away with the namespace, a little later
            run("sh", "-c", f"ip link delete {machine.link} 2>/dev/null || true")
    if _link_exists(BRIDGE):
        run("ip", "link", "delete", BRIDGE)


def inside(machine: Machine) -> tuple[str, ...]:
    """Words that put a command into the machine's network.

    Not `ip netns exec`: that mounts another /sys, in which the cgroups are missing.
    """
    return ("nsenter", f"--net={machine.namespace}")


def _make_machine(machine: Machine) -> None:
    file = machine.namespace
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    run("unshare", f"--net={file}", "true")
    if _link_exists(machine.link):
        run("ip", "link", "delete", machine.link)
    here = str(os.getpid())
    enter = inside(machine)
    run(
        *enter,
        "ip",
        "link",
        "add",
        "eth0",
        "type",
        "veth",
        "peer",
        "name",
        machine.link,
        "netns",
        here,
    )
    run("ip", "link", "set", machine.link, "master", BRIDGE, "up")
    run(*enter, "ip", "link", "set", "lo", "up")
    run(*enter, "ip", "address", "add", f"{machine.address}/{NETWORK_BITS}", "dev", "eth0")
    run(*enter, "ip", "link", "set", "eth0", "up")
    # A connection to a Service needs some route before its address is translated. This one leads
    # nowhere; a bridge without ports, because not every kernel has the `dummy` device.
    run(*enter, "ip", "link", "add", "services0", "type", "bridge")
    run(*enter, "ip", "link", "set", "services0", "up")
    run(*enter, "ip", "route", "add", SERVICE_RANGE, "dev", "services0", "src", machine.address)
    run(*enter, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")


def _route_to_pods(machine: Machine, others: Sequence[Node]) -> None:
    for node in others:
        run(*inside(machine), "ip", "route", "replace", node.pod_range, "via", node.address)


def _link_exists(name: str) -> bool:
    return Path("/sys/class/net", name).exists()


def is_member(machine: Machine) -> bool:
    """Whether the machine has been made: its network namespace is mounted on its file."""
    return str(machine.namespace) in _mount_points()


def leftovers() -> list[str]:
    """What of the network is still there, in words; empty after `remove_network`."""
    names = (BRIDGE, *(machine.link for machine in (CONTROL, *NODES)))
    links = [name for name in names if _link_exists(name)]
    mounts = [point for point in _mount_points() if point.startswith(f"{RUN}/")]
    return [*(f"link {name}" for name in links), *(f"mount {point}" for point in mounts)]


def _mount_points() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
