"""What the host must be and have: root, Debian, its packages, a kernel with what containers need."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bare_cluster.steps import ClusterProblem, run, step

# Program that shows a package is there -> the package. kubectl is not here: Debian's is too old,
# and `build` makes one.
_PACKAGES = {
    "buildah": "buildah",
    "containerd": "containerd",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "iptables": "iptables",
    "mmdebstrap": "mmdebstrap",
    "mount": "mount",
    "nft": "nftables",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "runc": "runc",
    "socat": "socat",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
}
_MEMORY_BYTES_MIN = 2_500_000_000
"""The bare cluster takes up to 1.3 GB; below this nothing fits beside it."""


def check_machine() -> None:
    """Raises `ClusterProblem` when this can't be the machine of a cluster."""
    if os.geteuid() != 0:
        raise ClusterProblem(
            "This makes network namespaces, mounts and cgroups, so it must run as root.\n"
            "Try: sudo k8s-tests/cluster/cluster up. Or give another cluster in KUBECONFIG."
        )
    if not Path("/etc/debian_version").exists() or shutil.which("apt-get") is None:
        raise ClusterProblem(
            "This is not Debian (or Ubuntu): its packages of containerd, runc and CNI are used.\n"
            "Give another cluster in KUBECONFIG, or have Docker or Podman for kind."
        )
    if "overlay" not in Path("/proc/filesystems").read_text():
        raise ClusterProblem("The kernel has no overlayfs. Try: modprobe overlay")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory < _MEMORY_BYTES_MIN:
        raise ClusterProblem(f"{memory / 1e9:.1f} GB of memory is too little: 2.5 is the least.")


def ensure_packages() -> None:
    """Installs the Debian packages whose programs are missing."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = sorted({p for name, p in _PACKAGES.items() if shutil.which(name, path=path) is None})
    if not missing:
        return
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with step(f"installed from Debian: {' '.join(missing)}"):
        run("apt-get", "update", "-qq", env=env, seconds_max=300)
        run(
            *("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing),
            env=env,
            seconds_max=900,
        )
