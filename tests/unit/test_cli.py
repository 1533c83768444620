"""The command explains itself, loads only what it runs, and tells errors as sentences."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = (
    "up",
    "doctor",
    "simulate",
    "bench",
    "order-api",
    "worker",
    "aggregator",
    "fanout",
    "query-api",
    "migrate",
    "smoke",
    "rebuild",
    "audit",
    "settings",
    "keys",
    "version",
)


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`coffee-rt ARGUMENTS` in a process of its own, with nothing but `environ` set."""
    return subprocess.run(
        [sys.executable, "-m", "coffee_rt", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "100", "TERM": "dumb", **environ},
    )


def test_help_names_every_command_and_where_to_begin() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f" {command} " in done.stdout
    assert "coffee-rt up --simulate 50" in done.stdout


@pytest.mark.parametrize("command", ["up", "doctor", "simulate", "worker", "keys", "rebuild"])
def test_each_command_has_a_help(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout


def test_version_is_the_packages() -> None:
    from coffee_rt import __version__

    assert run("version").stdout.strip() == __version__


def test_help_loads_no_process_and_no_driver() -> None:
    program = (
        "import sys; sys.argv = ['coffee-rt', '--help']\n"
        "from coffee_rt.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'asyncpg', 'redis', 'fastapi', 'aiohttp', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("process", ["order-api", "worker", "aggregator", "fanout", "query-api"])
def test_settings_of_each_process_are_listed(process: str) -> None:
    done = run("settings", process)
    assert done.returncode == 0, done.stderr
    assert "COFFEE_RT_REDIS_URL" in done.stdout


def test_an_unknown_process_is_refused_with_the_known_ones() -> None:
    done = run("settings", "kitchen")
    assert done.returncode == 1
    assert "order-api, worker" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_misspelt_setting_is_refused_with_a_sentence() -> None:
    done = run("worker", COFFEE_RT_LOG_LEVLE="debug")
    assert done.returncode == 2
    assert "COFFEE_RT_LOG_LEVLE is not a setting; did you mean COFFEE_RT_LOG_LEVEL?" in done.stderr


@pytest.mark.parametrize(
    "arguments", [("--since=yesterday",), ("--views-since=2 days",), ("--log-only", "hourly")]
)
def test_an_audit_asked_for_wrongly_does_not_say_that_something_differs(
    arguments: tuple[str, ...],
) -> None:
    done = run("audit", *arguments)
    assert done.returncode == 2
    assert arguments[0].partition("=")[0] in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("dead-letters", "show", str(2**63)),
        ("dead-letters", "list", "--before", str(2**63)),
        ("dead-letters", "list", "--code", "\udcff"),
        ("redrive", "--id", str(2**63)),
        ("redrive", "--all", "--tenant", str(2**31)),
        ("redrive", "--from", "0001-01-01T00:00:00+14:00"),
        ("keys", "add", "till", "--tenant", str(2**31)),
        ("keys", "add", "till", "--per-minute", str(2**31)),
        ("rebuild", "hourly", "--to", "9999-12-31T23:59:59-14:00"),
        ("audit", "--since", "0001-01-01T00:00:00+14:00"),
    ],
)
def test_a_word_no_database_could_be_asked_with_is_refused_in_a_sentence(
    words: tuple[str, ...],
) -> None:
    done = run(*words, COFFEE_RT_DATABASE_URL="postgresql://127.0.0.1:1/none")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "127.0.0.1" not in done.stderr


def test_doctor_names_what_it_cannot_reach_and_fails() -> None:
    done = run(
        "doctor",
        "--redis-url",
        "redis://127.0.0.1:1/0",
        "--database-url",
        "postgresql://me:secret@127.0.0.1:1/none",
    )
    assert done.returncode == 1
    assert "Redis: connection" in done.stdout
    assert "PostgreSQL: connection" in done.stdout
    assert "secret" not in done.stdout + done.stderr


def test_a_directory_where_nothing_runs_is_named(tmp_path: Path) -> None:
    done = run("doctor", "--data-dir", str(tmp_path))
    assert done.returncode == 1
    assert f"No `coffee-rt up` is running on {tmp_path}" in done.stderr
