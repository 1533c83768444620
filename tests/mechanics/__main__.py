"""Undo each mechanism and see its tests fail: `python -m tests.mechanics [NAME ..]`.

First the tests run on the package as it is: they must pass, or their failing would show nothing. Then once
for each mechanism on a copy without it. Exit code 1 where a test passes all the same. `--list` names the
mechanisms; `--write` writes docs/mechanics-tests.md anew from the tables.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.mechanics.mechanism import PACKAGE, ROOT, Mechanism, copy_package
from tests.mechanics.tables import MECHANISMS, PAGE, mechanics_page

TESTS_SECONDS_MAX = 300.0
"""Longest run of a mechanism's tests: some wait generously for what never comes without it."""
PYTEST_FAILED = 1
"""What pytest ends with when tests ran and failed: not when it could not collect them."""

console = Console()


def run_tests(tests: Sequence[str], source: Path) -> tuple[int, str]:
    """(exit code, output) of tests on a copy of the package."""
    environ = os.environ | {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "--no-header", *tests]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environ,
            capture_output=True,
            text=True,
            timeout=TESTS_SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return PYTEST_FAILED, "the tests did not end in time"
    return done.returncode, done.stdout + done.stderr


def check_copies_are_used(source: Path) -> None:
    """An editable install must not come before PYTHONPATH."""
    found = subprocess.run(
        [sys.executable, "-c", "import coffee_rt; print(coffee_rt.__file__)"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if not found.startswith(str(source)):
        raise SystemExit(f"the tests would use {found.strip()} and not the copy in {source}")


def try_without(mechanism: Mechanism) -> str | None:
    """What is wrong: None when each of its tests fails without the mechanism."""
    for test in mechanism.tests:
        with tempfile.TemporaryDirectory(prefix="coffee-rt-mechanics-") as folder:
            package = copy_package(Path(folder))
            for edit in mechanism.undo:
                edit.apply(package)
            code, output = run_tests([f"tests/{test}"], Path(folder))
        if code == 0:
            return f"{test} passes without it"
        if code != PYTEST_FAILED:
            return f"{test} did not run:\n{output[-2000:]}"
    return None


def chosen_of(names: Sequence[str]) -> list[Mechanism]:
    known = {mechanism.name: mechanism for mechanism in MECHANISMS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; --list names them")
    return [known[name] for name in names] or list(MECHANISMS)


def run(mechanisms: Sequence[Mechanism]) -> int:
    """How many mechanisms nothing defends."""
    with tempfile.TemporaryDirectory(prefix="coffee-rt-mechanics-") as folder:
        copy_package(Path(folder))
        check_copies_are_used(Path(folder))
        tests = sorted({f"tests/{test}" for each in mechanisms for test in each.tests})
        code, output = run_tests(tests, Path(folder))
    if code != 0:
        console.print(output, markup=False)
        console.print("The tests fail on the package as it is: mend that first.")
        return len(mechanisms)
    failed = 0
    for mechanism in mechanisms:
        started = time.monotonic()
        problem = try_without(mechanism)
        failed += problem is not None
        verdict = f"NOT DEFENDED: {problem}" if problem else "its tests fail without it"
        console.print(
            f"{mechanism.name}: {verdict} ({time.monotonic() - started:.0f} s)", markup=False
        )
    return failed


def main() -> int:
    parser = ArgumentParser(prog="python -m tests.mechanics", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="name the mechanisms")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    if arguments.write:
        PAGE.write_text(mechanics_page())
        return 0
    if arguments.list:
        for mechanism in MECHANISMS:
            console.print(f"{mechanism.name}: {mechanism.does}", markup=False)
        return 0
    assert PACKAGE.is_dir()
    return int(run(chosen_of(arguments.names)) > 0)


if __name__ == "__main__":
    sys.exit(main())
