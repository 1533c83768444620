"""The README's commands, run as they stand, against the whole platform."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.running import Platform

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]

README = Path(__file__).parents[2] / "README.md"
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def commands() -> list[str]:
    """The shell blocks of the section on posting, querying and watching, in order."""
    section = README.read_text().split("## Post, query, watch")[1].split("\n## ")[0]
    return SHELL.findall(section)


def run(command: str, address: str) -> str:
    shell = command.replace("http://127.0.0.1:8080", address)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", shell], capture_output=True, text=True, timeout=60
    )
    # 28: the time was over, which is how the watching command ends.
    assert done.returncode in (0, 28), done.stderr
    return done.stdout


def test_the_quick_start_does_what_the_readme_says(platform: Platform) -> None:
    post, batch, query, watch = commands()
    answer = run(post, platform.address)
    assert "HTTP/1.1 202" in answer
    assert '"order_id"' in answer
    again = run(post, platform.address)
    assert json.loads(again.splitlines()[-1])["duplicate"] is True
    results = json.loads(run(batch, platform.address))
    assert results["accepted"] == 2, results

    view, top, orders = (
        json.loads(run(line, platform.address)) for line in query.splitlines() if line.strip()
    )
    assert view["rows"][0]["store"] == "uptown"
    assert {row["drink"] for row in top["rows"]} >= {"flat white"}
    assert len(orders["orders"]) >= 1
    assert "event: snapshot" in run(watch, platform.address)
