"""What the build of the bare cluster keeps and writes: pure, builds no program."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest
from bare_cluster import archive, build, cache
from bare_cluster.steps import ClusterProblem


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COFFEE_RT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_key_changes_with_content_name_and_order(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text")
    (tmp_path / "b").write_text("text")
    keys = {
        cache.key_of([tmp_path / "a"]),
        cache.key_of([tmp_path / "b"]),
        cache.key_of(["text"]),
        cache.key_of(["te", "xt"]),
        cache.key_of(["xt", "te"]),
    }
    assert len(keys) == 5
    assert cache.key_of(["text"]) == cache.key_of(["text"])


def test_product_is_made_once_for_a_key() -> None:
    made: list[Path] = []

    def make(staged: Path) -> None:
        made.append(staged)
        staged.write_text("product")

    key = cache.key_of(["one"])
    first = cache.ensure_product("programs", "thing", key, make)
    assert cache.ensure_product("programs", "thing", key, make) == first
    assert len(made) == 1
    assert first.read_text() == "product"


def test_new_key_replaces_the_old_product_but_not_a_neighbours(own_cache: Path) -> None:
    def make(staged: Path) -> None:
        staged.write_text("product")

    old = cache.ensure_product("programs", "thing", cache.key_of(["old"]), make)
    neighbour = cache.ensure_product("programs", "thing-two", cache.key_of(["old"]), make)
    new = cache.ensure_product("programs", "thing", cache.key_of(["new"]), make)
    assert new.exists()
    assert neighbour.exists()
    assert not old.exists()


def test_failed_build_leaves_no_product(own_cache: Path) -> None:
    def fail(staged: Path) -> None:
        staged.write_text("half")
        raise ClusterProblem("no")

    key = cache.key_of(["one"])
    with pytest.raises(ClusterProblem):
        cache.ensure_product("programs", "thing", key, fail)
    assert not (own_cache / "programs" / f"thing-{key}").exists()


def test_link_of_a_program_follows_its_product(tmp_path: Path, own_cache: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).write_text(name)
        cache.link_program("thing", tmp_path / name)
    assert (own_cache / "bin" / "thing").read_text() == "second"


@pytest.mark.parametrize("program", build.GO_PROGRAMS, ids=lambda program: program.name)
def test_every_go_module_is_pinned(program: build.GoProgram) -> None:
    folder = build.GO_SOURCES / program.name
    text = (folder / "go.mod").read_text()
    assert "require" not in text or (folder / "go.sum").exists()
    assert (folder / "main.go").exists() or f"tool {program.package}" in text


def test_version_is_read_from_the_module_and_given_to_the_linker() -> None:
    (kubernetes,) = [one for one in build.GO_PROGRAMS if one.name == "kubernetes"]
    text = "require (\n\tk8s.io/kubernetes v1.34.4\n)\n"
    flags = build.link_flags(kubernetes, text)
    assert "-X k8s.io/component-base/version.gitVersion=v1.34.4" in flags
    assert "-X k8s.io/component-base/version.gitMinor=34" in flags
    with pytest.raises(ClusterProblem):
        build.module_version(text, "k8s.io/kube")


def test_helm_knows_of_which_kubernetes_it_is() -> None:
    """Without a cluster to ask, it renders for that one: by itself it would say 1.20."""
    [helm] = [one for one in build.GO_PROGRAMS if one.name == "helm"]
    text = "require (\n\thelm.sh/helm/v3 v3.19.5\n\tk8s.io/client-go v0.34.2 // indirect\n)"
    flags = build.link_flags(helm, text)
    assert "-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1" in flags
    assert "-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=34" in flags
    assert "-X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor=34" in flags


def test_archive_holds_images_whose_digests_agree(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"\x7fELF")
    images = [
        archive.ProgramImage(f"localhost/{name}:1", name, tmp_path / "program")
        for name in ("one", "two")
    ]
    archive.write_archive(images, tmp_path / "images.tar")
    with tarfile.open(tmp_path / "images.tar") as tar:
        content = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
    blobs = {n.rpartition("/")[2]: c for n, c in content.items() if n.startswith("blobs/")}
    assert all(hashlib.sha256(blob).hexdigest() == digest for digest, blob in blobs.items())
    manifests = json.loads(content["index.json"])["manifests"]
    names = [m["annotations"]["io.containerd.image.name"] for m in manifests]
    assert names == ["localhost/one:1", "localhost/two:1"]
    for described in manifests:
        manifest = json.loads(blobs[described["digest"].removeprefix("sha256:")])
        for part in (manifest["config"], *manifest["layers"]):
            assert len(blobs[part["digest"].removeprefix("sha256:")]) == part["size"]


def test_archive_of_the_same_programs_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"\x7fELF")
    images = [archive.ProgramImage("localhost/one:1", "one", tmp_path / "program")]
    for name in ("first.tar", "second.tar"):
        archive.write_archive(images, tmp_path / name)
    assert (tmp_path / "first.tar").read_bytes() == (tmp_path / "second.tar").read_bytes()
