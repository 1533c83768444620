"""The audit that the chart schedules: a Job made of its CronJob looks, and fails where something differs."""

from __future__ import annotations

from kube import Json, wait_until
from release import NAME, Release

AUDIT = f"{NAME}-audit"
JOB_SECONDS_MAX = 240.0


def test_the_audit_passes_until_a_number_differs_and_names_it(shop: Release) -> None:
    shop.test()
    shop.command("audit")
    job = run_audit(shop, "audit-of-what-is-right")
    assert is_done(job, "Complete"), logs(shop, job)
    assert "nothing is missing, nothing is double" in logs(shop, job)
    [internal] = [row[0] for row in shop.sql("SELECT internal FROM view_catalogue LIMIT 1")]
    try:
        shop.sql(f"UPDATE mv_{internal} SET orders = orders + 7")
        job = run_audit(shop, "audit-of-what-is-not")
        said = logs(shop, job)
        assert is_done(job, "Failed"), said
        # One look, and another in a pod of its own: both logs stay.
        assert job["status"]["failed"] == 2
        assert said.count("mends the view") == 2, said
    finally:
        shop.sql(f"UPDATE mv_{internal} SET orders = orders - 7")
    job = run_audit(shop, "audit-of-what-was-mended")
    assert is_done(job, "Complete"), logs(shop, job)
    shop.kube.kubectl("delete", "job", "--selector", "app.kubernetes.io/component=audit")


def run_audit(release: Release, name: str) -> Json:
    """The ended Job, made as `docs/operations.md` tells the one who is called."""
    kube = release.kube
    kube.kubectl("create", "job", f"--from=cronjob/{AUDIT}", name)

    def ended() -> Json | None:
        job = kube.get("job", name)
        return job if is_done(job, "Complete") or is_done(job, "Failed") else None

    found: Json = wait_until(
        ended, f"{name} ends", JOB_SECONDS_MAX, every_seconds=1, last_words=kube.describe_trouble
    )
    return found


def is_done(job: Json, how: str) -> bool:
    conditions = job["status"].get("conditions", ())
    return any(one["type"] == how and one["status"] == "True" for one in conditions)


def logs(release: Release, job: Json) -> str:
    """Of all its pods, in one line: the command breaks its own."""
    selector = f"job-name={job['metadata']['name']}"
    return " ".join(release.kube.kubectl("logs", "--selector", selector, "--tail=-1").split())
