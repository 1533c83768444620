"""From the release before, whose schema is older, to this one: its pods work on while the schema changes under them.

The image of the release before is built from its sources by images/previous. It knows no COFFEE_RT_MIGRATE_*
settings and no operator, so its installation is the chart without these; an administrator migrates and makes the key.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from kube import Json, wait_until
from recording import Recorder
from release import NAME, PROCESSES, Release, image_values

PREVIOUS = os.environ.get("COFFEE_RT_PREVIOUS_IMAGE", "localhost/coffee-rt:previous")
VALUES: Json = {
    "image": image_values(PREVIOUS),
    "migrate": {"enabled": False},
    "operator": {"enabled": False},
    "auth": {"existingSecret": f"{NAME}-api-key"},
    # Rolled while the recorder watches: what autoscalers add meanwhile would be rolled too.
    **{
        process: {"autoscaling": {"enabled": False}, "replicas": 2}
        for process in ("orderApi", "worker", "aggregator", "fanout", "queryApi")
    },
}


@pytest.fixture
def older(make_release: Callable[[str], Release]) -> Iterator[Release]:
    """A running installation of the release before."""
    release = make_release("older")
    release.begin_upgrade(VALUES)
    release.kube.wait_rolled_out(f"statefulset/{NAME}-postgresql")
    wait_until(lambda: migrated(release), "the older release's migration")
    said = release.command("keys", "add", "tests", "--scope=ingest", "--scope=read")
    key = next(word for word in said.split() if word.startswith("crt_"))
    release.kube.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": f"{NAME}-api-key"},
            "stringData": {"api-key": key},
        }
    )
    release.wait_ready()
    yield release
    release.kube.delete_namespace()


def test_old_pods_work_on_the_new_schema_until_the_new_ones_take_over(older: Release) -> None:
    before = schema(older)
    old = pods(older)
    with Recorder(older) as recorder:
        # So that only the migration happens, for as long as we look.
        roll(older, "pause")
        older.begin_upgrade(
            {
                "image": older.images.values()["image"],
                "migrate": {"enabled": True},
                "operator": {"enabled": True},
            }
        )
        [job] = wait_until(lambda: finished_jobs(older), "the migration's Job is done")
        assert job["status"]["succeeded"] == 1
        added = schema(older)[len(before) :]
        assert added, f"{PREVIOUS} has today's schema: see images/previous"
        said = older.kube.kubectl("logs", f"job/{job['metadata']['name']}")
        assert [f"applied {name}" for name in added] == [
            line for line in said.splitlines() if line.startswith("applied")
        ]
        stored = older.stored_orders(recorder.run)
        recorder.run_on(100)
        wait_until(lambda: older.stored_orders(recorder.run) >= stored + 100, "old pods store")
        assert pods(older) == old, "the old pods were neither replaced nor restarted"
        roll(older, "resume")
        older.wait_ready()
        recorder.run_on(50)
        assert not {uid for uid, _ in pods(older)} & {uid for uid, _ in old}
        assert len(finished_jobs(older)) == 1
    assert recorder.result is not None


def migrated(release: Release) -> bool:
    """Whether `migrate` ended well in a pod of the older release, which waits for its schema."""
    running = [
        pod
        for pod in release.kube.pods("aggregator")
        if pod.json["status"].get("phase") == "Running"
    ]
    if not running:
        return False
    said = release.kube.exec(running[0].name, "coffee-rt", "migrate")
    return "applied" in said or "up to date" in said


def roll(release: Release, action: str) -> None:
    release.kube.kubectl(
        "rollout", action, *(f"deployment/{NAME}-{process}" for process in PROCESSES)
    )


def finished_jobs(release: Release) -> list[Json]:
    jobs = release.kube.objects("jobs")
    return [job for job in jobs if job["status"].get("completionTime")]


def schema(release: Release) -> list[str]:
    """File names of the migrations that were applied."""
    rows = release.sql("SELECT version, name FROM schema_migrations ORDER BY version")
    return [name for _, name in rows]


def pods(release: Release) -> set[tuple[str, int]]:
    """Identity and restarts of every process's pods."""
    return {(pod.uid, pod.restarts) for process in PROCESSES for pod in release.kube.pods(process)}
