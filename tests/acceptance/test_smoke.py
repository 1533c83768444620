"""`coffee-rt smoke`: what `helm test` runs, against a platform on this machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.acceptance.running import Platform

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]


def test_one_order_is_followed_to_the_socket(platform: Platform) -> None:
    done = platform.command("smoke")
    assert done.returncode == 0, done.stderr
    assert [line.partition(" (")[0] for line in done.stdout.splitlines()] == [
        "a socket watches the view",
        "the view could be read",
        "an order was accepted",
        "it is stored",
        "it is in the view",
        "it arrived over the WebSocket",
        "Orders go in, are stored, are seen, and arrive live.",
    ]


def test_a_second_run_sees_its_own_order(platform: Platform) -> None:
    assert platform.command("smoke").returncode == 0
    assert platform.command("smoke").returncode == 0


def test_a_missing_part_is_named_with_what_was_last_seen(platform: Platform) -> None:
    done = platform.command(
        "smoke", platform.address, "--query-address", "http://127.0.0.1:9", "--wait-seconds", "1"
    )
    assert done.returncode == 1
    assert "not within 1 s: the view could be read; last: Cannot connect" in done.stderr


def test_nothing_at_the_address_is_said_in_a_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "coffee_rt", "smoke", "http://127.0.0.1:9", "--wait-seconds", "1"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "not within 1 s: a socket watches the view" in done.stderr
    assert "Traceback" not in done.stderr
