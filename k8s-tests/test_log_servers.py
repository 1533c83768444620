"""The log on several servers: orders flow, a primary is killed or asked to leave, and nothing is lost or double."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from kube import CommandFailed, Json, wait_until
from recording import Recorder
from release import NAME, Release

SMALL = {
    "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
    "persistence": {"size": "1Gi"},
}
SENTINEL: Json = {"valkey": {"mode": "sentinel", **SMALL}}
# The file of an installation in which no single pod matters, without what this cluster lacks.
HA_FILES = ("ha-values.yaml", "minimal-values.yaml")
HA_HERE: Json = {
    "valkey": SMALL,
    "postgresql": {"mode": "bundled"},
    "ingress": {"enabled": False},
    "tls": {"enabled": False},
}
# The chart's own settings make a 202 say that the replica has the order, and a primary whose replica is away take none.
# Else the worker could store an order that a failover takes back from the log, and its client, who was never answered,
# would place it again.
CLUSTER: Json = {
    "valkey": {
        "mode": "cluster",
        "cluster": {"primaries": 3, "replicasPerPrimary": 1},
        **SMALL,
    },
}
FAILOVER_SECONDS_MAX = 90.0
LEAVE_SECONDS_MAX = 60.0

Start = Callable[..., Release]


@pytest.fixture
def start(make_release: Callable[[str], Release]) -> Iterator[Start]:
    """Installs a release; its namespace goes with the test: nine stores more are a load for the others."""
    started: list[Release] = []

    def install(name: str, values: Json, *files: str) -> Release:
        release = make_release(name)
        started.append(release)
        release.install(values, *files)
        return release

    yield install
    for release in started:
        release.kube.delete_namespace()


def test_sentinels_replace_a_primary_that_dies_and_one_that_leaves(start: Start) -> None:
    release = start("sentinel", HA_HERE, *HA_FILES)
    with Recorder(release) as recorder:
        first = named_primary(release)
        keep_down(release, first, lambda: named_primary(release) not in ("", first))
        recorder.run_on(40)
        release.kube.wait_rolled_out(f"statefulset/{NAME}-valkey")
        second = named_primary(release)
        # As a drain does: with its grace period, in which it hands over.
        release.kube.kubectl("delete", "pod", second, seconds_max=LEAVE_SECONDS_MAX)
        assert named_primary(release) not in ("", second)
        recorder.run_on(40)
    check_breaks(recorder)


def test_one_server_grows_into_three_with_sentinels_and_keeps_its_orders(start: Start) -> None:
    """By the steps of docs/operations/stores.md."""
    release = start("growing", {})
    with Recorder(release) as recorder:
        recorder.run_on(40)
        release.begin_upgrade(SENTINEL)
        release.kube.kubectl("delete", "pod", f"{NAME}-valkey-0")
        release.wait_ready()
        recorder.run_on(40)
    assert named_primary(release) == f"{NAME}-valkey-0"
    assert len(release.kube.ready_pods("valkey")) == 3


def test_a_cluster_replaces_a_primary_that_dies_and_one_that_leaves(start: Start) -> None:
    release = start("cluster", CLUSTER)
    assert len(primaries(release)) == 3
    with Recorder(release) as recorder:
        assert len(streams(release)) > 1, "the streams are spread over the primaries"
        first = streams(release)[0]
        keep_down(release, first, lambda: len(primaries(release) - {first}) == 3)
        recorder.run_on(40)
        release.kube.wait_rolled_out(f"statefulset/{NAME}-valkey")
        second = streams(release)[0]
        # No container of it waits for the end of the grace period.
        release.kube.kubectl("delete", "pod", second, seconds_max=LEAVE_SECONDS_MAX)
        assert second not in primaries(release)
        recorder.run_on(40)
    check_breaks(recorder)


def check_breaks(recorder: Recorder) -> None:
    """No order was taken for a moment, and not for longer than a failover may take."""
    assert recorder.result is not None
    assert recorder.result["gap_seconds_max"] < FAILOVER_SECONDS_MAX, recorder.result


def keep_down(release: Release, pod: str, until: Callable[[], bool]) -> None:
    """End a server, and each that its container starts anew, until the others have noticed. It ends by itself: a pod
    that is deleted, by force even, is told to leave first."""

    def is_noticed() -> bool:
        ask(release, pod, '"$PORT" SHUTDOWN NOW')
        return until()

    wait_until(
        is_noticed,
        f"another server takes over from {pod}",
        seconds_max=FAILOVER_SECONDS_MAX,
        every_seconds=1.0,
        last_words=release.kube.describe_trouble,
    )


def ask(release: Release, pod: str, command: str) -> str:
    """A server's answer; empty when the pod does not answer."""
    script = f'. /etc/coffee-rt/valkey.sh; read_password; ask "$SELF" {command}'
    try:
        return release.kube.exec(pod, "sh", "-c", script, container="valkey", seconds_max=20)
    except CommandFailed:
        return ""


def valkey_pods(release: Release) -> list[str]:
    return sorted(pod.name for pod in release.kube.pods("valkey"))


def named_primary(release: Release) -> str:
    """The pod that most sentinels name; empty when there is no majority for one."""
    pods = valkey_pods(release)
    said = [
        ask(release, pod, '"$SENTINEL_PORT" SENTINEL GET-MASTER-ADDR-BY-NAME "$MASTER_NAME"')
        for pod in pods
    ]
    names = [text.split(".")[0] for text in said if text]
    most = max(names, key=names.count, default="")
    return most if names.count(most) > 3 // 2 else ""


def primaries(release: Release) -> set[str]:
    """Pods that are primaries by their own word."""
    return {
        pod
        for pod in valkey_pods(release)
        if ask(release, pod, '"$PORT" ROLE').splitlines()[:1] == ["master"]
    }


def streams(release: Release) -> list[str]:
    """The primaries that hold keys."""
    return sorted(pod for pod in primaries(release) if int(ask(release, pod, '"$PORT" DBSIZE')) > 0)
