"""PostgreSQL restored from its archive while orders flow, by the steps of docs/operations/backup.md."""

from __future__ import annotations

from collections.abc import Callable

from kube import Json, wait_until
from recording import Recorder
from release import NAME, Release

WRITERS = ("operator", "worker", "aggregator")


def test_what_a_restored_postgresql_lacks_comes_back_from_the_log(
    make_release: Callable[[str], Release],
) -> None:
    release = make_release("restore")
    release.install({"postgresql": {"archive": {"enabled": True, "persistence": {"size": "1Gi"}}}})
    with Recorder(release) as recorder:
        recorder.run_on(50)
        base = take_base_backup(release)
        recorder.run_on(50)
        moment = release.sql("""SELECT to_char(now(), 'YYYY-MM-DD"T"HH24:MI:SS"Z"')""")[0][0]
        recorder.run_on(50)
        scale(release, 0)
        stored = release.stored_orders()
        # Asked to stop, PostgreSQL archives its log to the end: an earlier moment leaves something out.
        release.upgrade({"postgresql": {"restore": {"base": base, "targetTime": moment}}})
        assert release.sql("SELECT timeline_id FROM pg_control_checkpoint()") == [["2"]]
        restored = release.stored_orders()
        assert 0 < restored < stored
        recorder.run_on(50)
        scale(release, 1)
        recorder.run_on(50)
    assert recorder.result is not None


def take_base_backup(release: Release) -> str:
    """Its name, as the script leaves it in the archive."""
    pod = f"{NAME}-postgresql-0"
    release.kube.exec(pod, "sh", "/etc/coffee-rt/postgresql-backup.sh", "2")
    (name,) = release.kube.exec(pod, "ls", "/archive/base").split()
    return name


def scale(release: Release, replicas: int) -> None:
    """The processes that write to PostgreSQL; an autoscaler leaves a Deployment at zero alone."""
    for component in WRITERS:
        release.kube.kubectl("scale", f"deployment/{NAME}-{component}", f"--replicas={replicas}")
    release.kube.wait_rolled_out(*(f"deployment/{NAME}-{component}" for component in WRITERS))
    if not replicas:
        wait_until(
            lambda: not any(_pods_with_ending(release, component) for component in WRITERS),
            "what writes to PostgreSQL is gone",
        )


def _pods_with_ending(release: Release, component: str) -> list[Json]:
    return release.kube.objects("pods", f"app.kubernetes.io/component={component}")
