"""An installation from the chart runs, restricted, and is what its own test says it is."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import yaml
from kube import Pod, run, wait_until
from release import CHART, NAME, PROCESSES, Release

pytestmark = pytest.mark.smoke

CI_FILES = sorted(path.name for path in (CHART / "ci").glob("*-values.yaml"))


def test_every_process_becomes_ready_where_only_restricted_pods_may_run(shop: Release) -> None:
    namespace = shop.kube.get("namespace", shop.kube.namespace)
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for process in PROCESSES:
        assert shop.kube.ready_pods(process), shop.kube.describe_trouble()


def test_helm_test_follows_an_order_from_the_post_to_the_socket(shop: Release) -> None:
    said = shop.test()
    assert "Phase:          Succeeded" in said, said


def test_the_page_is_served_with_its_scripts(shop: Release) -> None:
    path = f"/api/v1/namespaces/{shop.kube.namespace}/services/{NAME}-fanout:http/proxy/"
    page = shop.kube.kubectl("get", "--raw", path)
    assert "<title>" in page
    script = page.partition('src="')[2].partition('"')[0]
    # The API server's proxy writes the page's addresses anew, as it does for every page that passes it.
    assert script.startswith(path)
    assert len(shop.kube.kubectl("get", "--raw", script)) > 10_000


def test_liveness_asks_no_other_server(shop: Release) -> None:
    """A process that is restarted because a store is away makes an outage worse."""
    for process in PROCESSES:
        deployment = shop.kube.get("deployment", f"{NAME}-{process}")
        [container] = deployment["spec"]["template"]["spec"]["containers"]
        assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


@pytest.mark.parametrize("file", CI_FILES)
def test_the_api_server_takes_every_object_of_the_ci_files(
    file: str, make_release: Callable[[str], Release]
) -> None:
    """A dry run on the server, which knows each field; objects of APIs it lacks are left out."""
    release = make_release("dry-run")
    rendered = run(
        [
            release.helm,
            "template",
            NAME,
            str(CHART),
            f"--values={CHART / 'ci' / file}",
            f"--kube-version={_version(release)}",
        ],
        environ=release.kube.environ,
    )
    served = _served(release)
    objects = [one for one in _objects(rendered) if (one["apiVersion"], one["kind"]) in served]
    assert len(objects) > 20
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    release.kube.kubectl("apply", "--dry-run=server", "--server-side", "-f", "-", stdin=text)


def _objects(rendered: str) -> list[dict[str, object]]:
    return [one for one in yaml.safe_load_all(rendered) if one]


def _version(release: Release) -> str:
    answer = json.loads(release.kube.kubectl("version", "-o", "json"))
    return str(answer["serverVersion"]["gitVersion"])


def _served(release: Release) -> set[tuple[str, str]]:
    text = release.kube.kubectl("api-resources", "--no-headers")
    rows = (line.split() for line in text.splitlines())
    # The short names may be absent: count the columns from the right.
    return {(row[-3], row[-1]) for row in rows}


def test_a_restarted_pod_keeps_its_data(shop: Release) -> None:
    """Both stores come back with what was confirmed: their volumes outlive their pods."""
    before = shop.stored_orders()
    shop.test()
    assert shop.stored_orders() == before + 1
    for store in ("valkey", "postgresql"):
        [old] = shop.kube.pods(store)
        shop.kube.kubectl("delete", "pod", old.name, "--wait=false")

        def is_new(store: str = store, old: Pod = old) -> bool:
            return any(pod.uid != old.uid for pod in shop.kube.ready_pods(store))

        wait_until(is_new, f"{store} is back", last_words=shop.kube.describe_trouble)
    assert shop.stored_orders() == before + 1
    shop.test()
    assert shop.stored_orders() == before + 2
