"""Every name, address and folder of the cluster, in one place.

The machines of the cluster are network namespaces on one bridge of the host: `control` for etcd and
the control plane, then the nodes. The addresses come from 198.18.0.0/15, which is set aside for tests
of network devices and so is in nobody's network.

Three folders: the cache (programs and images; stays), RUN (keys, sockets; small, may be in memory)
and DATA (etcd, containers, volumes, logs). RUN and DATA go at `down`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent
RUN = Path("/run/coffee-rt-cluster")
DATA = Path("/var/lib/coffee-rt-cluster")
VOLUMES = DATA / "volumes"
LOGS = DATA / "logs"
KEYS = RUN / "keys"
ADMIN_KUBECONFIG = RUN / "admin.kubeconfig"

BRIDGE = "coffee-rt0"
HOST_ADDRESS = "198.18.0.1"
NETWORK_BITS = 24
POD_RANGE = "10.244.0.0/16"
SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
DNS_ADDRESS = "10.96.0.10"
CLUSTER_DOMAIN = "cluster.local"
API_PORT = 6443
HTTP_NODE_PORT = 30080
HTTPS_NODE_PORT = 30443
NODES_MAX = 2


@dataclass(frozen=True, slots=True)
class Machine:
    """A network namespace with one address, and a cgroup that holds all its processes."""

    name: str
    address: str

    @property
    def namespace(self) -> Path:
        """The file that holds the network namespace. Not under /run/netns: that folder is others'."""
        return RUN / "networks" / self.name

    @property
    def link(self) -> str:
        """The host's end of the cable (at most 15 characters)."""
        return f"crt-{self.name}"

    @property
    def cgroup(self) -> str:
        """Name of its cgroup, directly under the root of each hierarchy."""
        return f"coffee-rt-{self.name}"

    @property
    def run(self) -> Path:
        return RUN / self.name

    @property
    def data(self) -> Path:
        return DATA / self.name


@dataclass(frozen=True, slots=True)
class Node(Machine):
    """A machine with a kubelet, containerd, kube-proxy and a range of pod addresses."""

    pod_range: str
    zone: str

    @property
    def containerd_socket(self) -> Path:
        """As the host sees it; inside the node it is /run/containerd/containerd.sock."""
        return self.run / "containerd" / "containerd.sock"


CONTROL = Machine("control", "198.18.0.2")
NODES = tuple(
    Node(f"node{i}", f"198.18.0.{10 + i}", pod_range=f"10.244.{i}.0/24", zone=f"zone-{i}")
    for i in range(NODES_MAX)
)


def cache_folder() -> Path:
    """Where programs, images and locks are kept between clusters."""
    given = os.environ.get("COFFEE_RT_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coffee-rt"


def program(name: str) -> Path:
    """A program that `build` made."""
    return cache_folder() / "bin" / name
