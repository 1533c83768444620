"""The bundled PostgreSQL gets another password, crashes, and is asked to stop, while orders flow."""

from __future__ import annotations

import base64
from collections.abc import Callable

from kube import wait_until
from recording import Recorder
from release import NAME, PROCESSES, Release

POD = f"{NAME}-postgresql-0"


def test_it_takes_another_password_comes_back_from_a_crash_and_stops_cleanly(
    make_release: Callable[[str], Release],
) -> None:
    release = make_release("passwords")
    release.install()
    with Recorder(release) as recorder:
        change_password(release, "another1")
        replace(release, "--grace-period=0", "--force")
        assert "has the Secret's password now" in logs(release, "prepare")
        release.kube.kubectl(
            "rollout", "restart", *(f"deployment/{NAME}-{process}" for process in PROCESSES)
        )
        release.wait_ready()
        recorder.run_on(40)
        crash(release)
        assert "was not properly shut down" in logs(release, "postgresql")
        recorder.run_on(40)
        replace(release)
        assert "was shut down at" in logs(release, "postgresql")
        recorder.run_on(40)
    assert recorder.result is not None
    release.kube.delete_namespace()


def change_password(release: Release, password: str) -> None:
    """In the chart's own Secret: as by whoever edits it."""
    known = release.secret(f"{NAME}-stores")
    url = known["database-url"].replace(known["postgresql-password"], password)
    data = {"postgresql-password": password, "database-url": url}
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    release.kube.patch("secret", f"{NAME}-stores", {"data": encoded})


def replace(release: Release, *how: str) -> None:
    [old] = release.kube.pods("postgresql")
    release.kube.kubectl("delete", "pod", POD, *how)

    def is_new() -> bool:
        return any(pod.uid != old.uid for pod in release.kube.ready_pods("postgresql"))

    wait_until(is_new, f"another {POD}", last_words=release.kube.describe_trouble)


def crash(release: Release) -> None:
    """It ends in the middle of what it does (SIGQUIT); its container starts again."""
    release.kube.exec(POD, "sh", "-c", "kill -QUIT 1")

    def is_back() -> bool:
        return any(pod.restarts == 1 for pod in release.kube.ready_pods("postgresql"))

    wait_until(is_back, f"{POD} is back", last_words=release.kube.describe_trouble)


def logs(release: Release, container: str) -> str:
    return release.kube.kubectl("logs", POD, "-c", container)
