"""A mechanism: what the code does so that nothing is lost or doubled, and what shows that it is needed.

Each has a mutation (edits that undo it) and the tests that must fail under it. A test that passes with the
mechanism undone proves nothing about it. `python -m tests.mechanics` applies the mutations, one by one, to
a copy of the package; the working tree is never touched.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "services" / "coffee_rt"


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace a text that occurs exactly once in a file of the package."""

    path: str
    old: str
    new: str

    def apply(self, package: Path) -> None:
        target = package / self.path
        source = target.read_text()
        found = source.count(self.old)
        if found != 1:
            raise LookupError(
                f"{self.path} holds {found} times what a mutation of tests/mechanics replaces:\n"
                f"{self.old}\nWrite the mutation anew for what the code says now."
            )
        target.write_text(source.replace(self.old, self.new))


@dataclass(frozen=True, slots=True)
class Mechanism:
    name: str
    does: str
    """What the code does, in a line."""
    harm: str
    """What goes wrong without it."""
    undo: tuple[Edit, ...]
    tests: tuple[str, ...]
    """Those that fail without it, as `folder/file.py::name` below tests/."""


def copy_package(folder: Path) -> Path:
    """A copy of the package in `folder`, to be put first on PYTHONPATH."""
    package = folder / PACKAGE.name
    # The page is built, big, and no test of a mechanism looks at it.
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "page"))
    return package
