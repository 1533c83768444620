"""PostgreSQL restored from its archive while orders flow, by the steps of docs/operations/backup.md."""

from __future__ import annotations

from collections.abc import Callable

from recording import Recorder
from release import NAME, Release

WRITERS = ("operator", "worker", "aggregator")
# Longer than the test: the last commits are in no archive, and the log must bring them back.
ARCHIVE_SECONDS = 3600


def test_what_a_restored_postgresql_lacks_comes_back_from_the_log(
    make_release: Callable[[str], Release],
) -> None:
    release = make_release("restore")
    release.install({"postgresql": {"archive": {"enabled": True, "seconds": ARCHIVE_SECONDS,
                                                "persistence": {"size": "1Gi"}}}})  # fmt: skip
    with Recorder(release) as recorder:
        recorder.run_on(50)
        base = take_base_backup(release)
        recorder.run_on(50)
        # Archived, and so in what is restored.
        release.sql("SELECT pg_switch_wal()")
        recorder.run_on(50)
        stored = release.stored_orders()
        scale(release, 0)
        release.upgrade({"postgresql": {"restore": {"base": base}}})
        assert release.sql("SELECT timeline_id FROM pg_control_checkpoint()") == [["2"]]
        assert 0 < release.stored_orders() < stored
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
