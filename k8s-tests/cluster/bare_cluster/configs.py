"""Renders the configuration files: pure functions from names and addresses to text.

Kubernetes reads YAML, and JSON is YAML: so these are JSON, which needs no library. Comments stand
here instead, beside what is unusual.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

from bare_cluster import places
from bare_cluster.places import KEYS, Node

REGISTRIES = Path("/etc/containerd/certs.d")
"""The host's: how registries are reached, should somebody pull from one. Read at each pull; need not exist."""
_OTHER_SNAPSHOTTERS = ("btrfs", "zfs", "devmapper", "aufs")


def kubeconfig(server: str, authority: bytes, certificate: bytes, key: bytes) -> str:
    """A kubeconfig that carries its certificates, so that it can be copied."""

    def inline(content: bytes) -> str:
        return base64.b64encode(content).decode()

    name = "coffee-rt"
    return _json(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [
                {
                    "name": name,
                    "cluster": {"server": server, "certificate-authority-data": inline(authority)},
                }
            ],
            "users": [
                {
                    "name": name,
                    "user": {
                        "client-certificate-data": inline(certificate),
                        "client-key-data": inline(key),
                    },
                }
            ],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        }
    )


def kubelet_config(node: Node) -> str:
    """Paths are those inside the node, where they are the usual ones."""
    return _json(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(KEYS / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(KEYS / f"{node.name}.crt"),
            "tlsPrivateKeyFile": str(KEYS / f"{node.name}.key"),
            "clusterDNS": [places.DNS_ADDRESS],
            "clusterDomain": places.CLUSTER_DOMAIN,
            "resolvConf": str(node.run / "resolv.conf"),
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            "cgroupDriver": "cgroupfs",
            # One of its own for each node: a kubelet ends every pod in its cgroup that it does not know.
            "cgroupRoot": f"/{node.cgroup}",
            "cgroupsPerQOS": True,
            "enforceNodeAllocatable": [],
            "failCgroupV1": False,
            "failSwapOn": False,
            # Lets it go on where it may not raise limits or set the kernel's parameters, as here: those
            # are the host's and must not change.
            "featureGates": {"KubeletInUserNamespace": True},
            # Images are loaded by hand and can't be fetched again: never tidied away.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "0%",
                "imagefs.available": "0%",
            },
            "maxPods": 110,
            # Fast, so that tests of a lost node and of probes need not wait.
            "nodeStatusUpdateFrequency": "4s",
            "nodeLeaseDurationSeconds": 12,
            "syncFrequency": "5s",
        }
    )


def kube_proxy_config(node: Node) -> str:
    return _json(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(KEYS / "proxy.kubeconfig")},
            "hostnameOverride": node.name,
            "mode": "nftables",
            "clusterCIDR": places.POD_RANGE,
            # The table of connections belongs to the host: its size is left alone.
            "conntrack": {"maxPerCore": 0, "min": 0},
        }
    )


def cni_config(node: Node) -> str:
    """Pods by `ptp`: each has a cable to the node, and all traffic is routed.

    Not by a bridge: there, an answer between two pods of a node would pass the translation of Service
    addresses by, unless the host's br_netfilter is loaded and on.
    """
    return _json(
        {
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "ptp",
                    "ipMasq": False,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": node.pod_range}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
    )


def containerd_config(pause_image: str, cni_folder: Path) -> str:
    """The same for every node: what differs is where its folders are, and that is the mounts' matter."""
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    others = ", ".join(f'"io.containerd.snapshotter.v1.{name}"' for name in _OTHER_SNAPSHOTTERS)
    return f"""\
version = 2
disabled_plugins = [{others}]
[{cri}]
  sandbox_image = "{pause_image}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [{cri}.registry]
    config_path = "{REGISTRIES}"
  [{cri}.cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni_folder}"
  [{cri}.containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [{cri}.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [{cri}.containerd.runtimes.runc.options]
        SystemdCgroup = false
"""


def api_server_flags() -> dict[str, str]:
    """Arguments of kube-apiserver, without the leading dashes."""
    return {
        "etcd-servers": "http://127.0.0.1:2379",
        "advertise-address": places.CONTROL.address,
        "secure-port": str(places.API_PORT),
        "service-cluster-ip-range": places.SERVICE_RANGE,
        "allow-privileged": "true",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "client-ca-file": str(KEYS / "ca.crt"),
        "tls-cert-file": str(KEYS / "apiserver.crt"),
        "tls-private-key-file": str(KEYS / "apiserver.key"),
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": str(KEYS / "service-accounts.pub"),
        "service-account-signing-key-file": str(KEYS / "service-accounts.key"),
        "kubelet-certificate-authority": str(KEYS / "ca.crt"),
        "kubelet-client-certificate": str(KEYS / "admin.crt"),
        "kubelet-client-key": str(KEYS / "admin.key"),
        "kubelet-preferred-address-types": "InternalIP",
        # Aggregated APIs (metrics-server). To pods directly: no kube-proxy runs beside this.
        "enable-aggregator-routing": "true",
        "proxy-client-cert-file": str(KEYS / "front-proxy.crt"),
        "proxy-client-key-file": str(KEYS / "front-proxy.key"),
        "requestheader-client-ca-file": str(KEYS / "ca.crt"),
        "requestheader-allowed-names": "front-proxy",
        "requestheader-username-headers": "X-Remote-User",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        # Pods leave a lost node after half a minute instead of five.
        "default-not-ready-toleration-seconds": "30",
        "default-unreachable-toleration-seconds": "30",
    }


def controllers_flags() -> dict[str, str]:
    """Arguments of kube-controller-manager. The spans are short: tests wait for what they end."""
    return {
        **_component_flags("controllers"),
        "service-account-private-key-file": str(KEYS / "service-accounts.key"),
        "root-ca-file": str(KEYS / "ca.crt"),
        "cluster-signing-cert-file": str(KEYS / "ca.crt"),
        "cluster-signing-key-file": str(KEYS / "ca.key"),
        "use-service-account-credentials": "true",
        "cluster-cidr": places.POD_RANGE,
        "allocate-node-cidrs": "false",
        "flex-volume-plugin-dir": str(places.CONTROL.data / "volume-plugins"),
        "node-monitor-grace-period": "20s",
        "node-monitor-period": "2s",
        "horizontal-pod-autoscaler-sync-period": "5s",
        "horizontal-pod-autoscaler-downscale-stabilization": "20s",
        "horizontal-pod-autoscaler-cpu-initialization-period": "30s",
        "horizontal-pod-autoscaler-initial-readiness-delay": "5s",
    }


def scheduler_flags() -> dict[str, str]:
    return _component_flags("scheduler")


def etcd_flags() -> dict[str, str]:
    """Without fsync: a cluster for tests does not survive the machine anyway."""
    return {
        "data-dir": str(places.CONTROL.data / "etcd"),
        "listen-client-urls": "http://127.0.0.1:2379",
        "advertise-client-urls": "http://127.0.0.1:2379",
        "listen-peer-urls": "http://127.0.0.1:2380",
        "unsafe-no-fsync": "true",
        "log-level": "warn",
    }


def _component_flags(name: str) -> dict[str, str]:
    own = str(KEYS / f"{name}.kubeconfig")
    return {
        "kubeconfig": own,
        "authentication-kubeconfig": own,
        "authorization-kubeconfig": own,
        "leader-elect": "false",
    }


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"
