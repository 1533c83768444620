"""What is rendered for the bare cluster: pure, needs no cluster."""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from bare_cluster import addons, configs, places
from bare_cluster.certificates import identities
from bare_cluster.cgroups import parse_hierarchies
from bare_cluster.node import write_config

REFERENCES = {
    name: f"localhost/{name}:0123456789abcdef"
    for name in ("pause", "coredns", "metrics-server", "traefik", "volume-provisioner")
}
DEFINED_ELSEWHERE = {"kube-system"}


def test_addresses_lie_in_the_network_and_differ() -> None:
    network = ipaddress.ip_network(f"{places.HOST_ADDRESS}/{places.NETWORK_BITS}", strict=False)
    machines = (places.CONTROL, *places.NODES)
    addresses = [places.HOST_ADDRESS, *(machine.address for machine in machines)]
    assert len(set(addresses)) == len(addresses)
    assert all(ipaddress.ip_address(address) in network for address in addresses)


def test_pod_ranges_are_parts_of_the_clusters_range_and_apart() -> None:
    whole = ipaddress.ip_network(places.POD_RANGE)
    ranges = [ipaddress.ip_network(node.pod_range) for node in places.NODES]
    assert all(one.subnet_of(whole) for one in ranges)  # type: ignore[arg-type]
    assert not any(a.overlaps(b) for a in ranges for b in ranges if a != b)


def test_link_names_fit_into_the_kernels_fifteen_characters() -> None:
    names = [places.BRIDGE, *(machine.link for machine in (places.CONTROL, *places.NODES))]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 15 for name in names)


def test_socket_paths_fit_into_the_kernels_limit() -> None:
    assert all(len(str(node.containerd_socket)) < 100 for node in places.NODES)


def test_each_kubelet_has_a_cgroup_and_keys_of_its_own() -> None:
    rendered = [json.loads(configs.kubelet_config(node)) for node in places.NODES]
    for key in ("cgroupRoot", "tlsCertFile", "resolvConf"):
        assert len({config[key] for config in rendered}) == len(rendered)
    assert {config["clusterDNS"][0] for config in rendered} == {places.DNS_ADDRESS}


def test_pods_of_a_node_get_addresses_of_its_range() -> None:
    for node in places.NODES:
        (pods, _) = json.loads(configs.cni_config(node))["plugins"]
        assert pods["ipam"]["ranges"] == [[{"subnet": node.pod_range}]]


def test_containerd_config_names_the_pause_image() -> None:
    config = tomllib.loads(configs.containerd_config("localhost/pause:1", Path("/run/cni")))
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["sandbox_image"] == "localhost/pause:1"
    assert cri["cni"]["conf_dir"] == "/run/cni"
    assert cri["registry"]["config_path"] == "/etc/containerd/certs.d"


def test_kubeconfig_carries_its_certificates() -> None:
    config = json.loads(configs.kubeconfig("https://192.0.2.1:6443", b"authority", b"cert", b"key"))
    (cluster,) = config["clusters"]
    (user,) = config["users"]
    assert cluster["cluster"]["server"] == "https://192.0.2.1:6443"
    assert base64.b64decode(cluster["cluster"]["certificate-authority-data"]) == b"authority"
    assert base64.b64decode(user["user"]["client-key-data"]) == b"key"


def test_api_server_is_served_under_its_address_and_its_service() -> None:
    (api,) = [one for one in identities() if one.name == "apiserver"]
    assert f"IP:{places.CONTROL.address}" in api.served
    assert f"IP:{places.API_SERVICE_ADDRESS}" in api.served


@pytest.mark.parametrize("name", ["api_server_flags", "controllers_flags", "etcd_flags"])
def test_files_named_in_flags_are_ours(name: str) -> None:
    flags: dict[str, str] = getattr(configs, name)()
    paths = [value for value in flags.values() if value.startswith("/")]
    assert all(value.startswith((str(places.RUN), str(places.DATA))) for value in paths)


def test_every_addon_is_complete_and_has_no_open_name() -> None:
    objects = [one for one in yaml.safe_load_all(addons.render_addons(REFERENCES)) if one]
    assert {"StorageClass", "IngressClass", "GatewayClass", "APIService"} <= {
        o["kind"] for o in objects
    }
    names = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(set(names)) == len(names)
    assert not re.search(r"\$\{", addons.render_addons(REFERENCES))


def test_addons_run_only_images_that_are_built() -> None:
    objects = [one for one in yaml.safe_load_all(addons.render_addons(REFERENCES)) if one]
    containers = [
        container
        for one in objects
        if one["kind"] in {"Deployment", "DaemonSet"}
        for container in one["spec"]["template"]["spec"]["containers"]
    ]
    assert {container["image"] for container in containers} == set(REFERENCES.values()) - {
        REFERENCES["pause"]
    }
    assert {container["imagePullPolicy"] for container in containers} == {"Never"}


def test_default_class_waits_for_the_pod() -> None:
    objects = [one for one in yaml.safe_load_all(addons.render_addons(REFERENCES)) if one]
    (storage,) = [one for one in objects if one["kind"] == "StorageClass"]
    assert storage["volumeBindingMode"] == "WaitForFirstConsumer"
    assert (
        storage["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true"
    )


def test_hybrid_cgroups_are_read_as_version_1() -> None:
    found = parse_hierarchies(
        "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n"
        "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n"
        "cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n"
        "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
    )
    assert found.marker == Path("/sys/fs/cgroup/pids")
    assert Path("/sys/fs/cgroup/unified") in found.all
    assert len(found.all) == 3


def test_unified_cgroups_are_read_as_version_2() -> None:
    found = parse_hierarchies("cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n")
    assert found.v1 == {}
    assert found.marker == Path("/sys/fs/cgroup")


def test_a_file_that_says_so_already_is_not_written_again(tmp_path: Path) -> None:
    """Starting a node that runs ended its kube-proxy, which watches its file."""
    path = write_config(tmp_path / "proxy.yaml", "mode: nftables\n")
    os.utime(path, (1, 1))
    write_config(path, "mode: nftables\n")
    assert path.stat().st_mtime == 1
    write_config(path, "mode: iptables\n")
    assert path.read_text() == "mode: iptables\n"
