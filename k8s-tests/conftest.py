"""One cluster for all tests; one namespace and release a test module, unless tests only look.

The cluster is KUBECONFIG's, or the one that k8s-tests/cluster brings up; images must be loaded already
(scripts/k8s-test does all of that, and says what it does).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from kube import Kube
from release import Images, Release
from tended import values as tended_values

CACHE = Path(
    os.environ.get("COFFEE_RT_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coffee-rt"
)


@pytest.fixture(scope="session")
def kubeconfig() -> Path:
    path = os.environ.get("KUBECONFIG", "")
    if not path:
        pytest.fail("KUBECONFIG names no cluster: run scripts/k8s-test")
    return Path(path)


@pytest.fixture(scope="session")
def helm() -> str:
    """The helm program. Fails with a sentence where there is none."""
    for path in (os.environ.get("COFFEE_RT_HELM"), shutil.which("helm"), CACHE / "bin" / "helm"):
        if path and Path(path).is_file():
            return str(path)
    pytest.fail("no helm: run `k8s-tests/cluster/cluster build`, or set COFFEE_RT_HELM to one")


Make = Callable[[str], Release]


@pytest.fixture(scope="session")
def releases(kubeconfig: Path, helm: str) -> Callable[[], AbstractContextManager[Make]]:
    """Scopes of releases: whoever enters one makes releases by name, each in a namespace of that name; when it is left
    their namespaces are deleted, with all that runs in them."""
    images = Images(
        product=os.environ.get("COFFEE_RT_IMAGE", "localhost/coffee-rt:test"),
        postgresql=os.environ.get(
            "COFFEE_RT_POSTGRESQL_IMAGE", "localhost/coffee-rt-postgresql:18"
        ),
        valkey=os.environ.get("COFFEE_RT_VALKEY_IMAGE", "localhost/coffee-rt-valkey:9"),
    )

    @contextmanager
    def scope() -> Iterator[Make]:
        made: dict[str, Release] = {}

        def make(name: str) -> Release:
            if name not in made:
                kube = Kube(kubeconfig, f"coffee-test-{name}")
                kube.make_namespace()
                made[name] = Release(kube, helm, images)
            return made[name]

        try:
            yield make
        finally:
            for release in made.values():
                release.kube.delete_namespace()

    return scope


@pytest.fixture(scope="session")
def make_shared(releases: Callable[[], AbstractContextManager[Make]]) -> Iterator[Make]:
    """Releases that tests of several modules look at."""
    with releases() as make:
        yield make


@pytest.fixture(scope="module")
def make_release(releases: Callable[[], AbstractContextManager[Make]]) -> Iterator[Make]:
    """Releases of one module. They go with it: two nodes have no room for those of all."""
    with releases() as make:
        yield make


@pytest.fixture(scope="session")
def shop(make_shared: Make) -> Release:
    """A running minimal installation, shared by the tests that leave it as they found it."""
    release = make_shared("shop")
    release.install()
    return release


@pytest.fixture(scope="session")
def tended(make_shared: Make) -> Release:
    """An installation whose autoscalers and operator act within seconds; tests leave it as they found it."""
    release = make_shared("tended")
    release.install(tended_values())
    return release
