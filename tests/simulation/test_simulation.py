"""The promises under faults drawn from seeds: many of them, all reproducible, and able to find a bug.

In processes of their own: a run's order must not hang on the hashes of this interpreter.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.plan import EVENTS
from tests.simulation.planted import PLANTED
from tests.simulation.shares import MORE_EVENTS

ROOT = Path(__file__).parent.parent.parent
SEEDS = 2_000
PLANTED_SEEDS_MAX = 1_000
KINDS = [
    *(f"event {kind}" for kind in (*EVENTS, *MORE_EVENTS)),
    *(f"kill of {role}" for role in ("api", "worker", "aggregator", "pod", "redriver")),
    *("call late", "call lost", "call unanswered", "drain", "freeze", "failover", "promotion"),
    *("record lost by a failover", "loss seen", "order lost by a promotion", "group set back"),
    *("dead letter", "entry absorbed by the ledger", "entry trimmed", "ledger row compacted"),
    *("view exchanged", "told stored", "told visible"),
    *("record taken by the intake", "key known to the intake", "order under a second id"),
    *("found logged", "found stored", "found dead", "entry parked"),
    *("letter stored", "letter duplicate", "letter still-bad"),
    *("refused log-full", "refused log-queue-full", "refused log-slow", "refused backlog"),
    *("refused log-memory", "refused intake-full"),
]
"""What must have happened in so many runs: each misfortune, and each mechanism against one."""


async def simulation(*arguments: str) -> tuple[dict[str, Any], str]:
    """(the summary, what it said of failures) of a command."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.simulation",
        "--json",
        *arguments,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert output, errors.decode()
    return json.loads(output), errors.decode()


@pytest.mark.timeout(400)
async def test_every_promise_is_kept_under_two_thousand_seeds_of_faults() -> None:
    summary, errors = await simulation("--seeds", str(SEEDS), "--processes", "2")
    assert summary["failed"] == [], errors
    assert summary["seeds"] == SEEDS
    # What never happens proves nothing.
    happened = summary["happened"]
    assert [kind for kind in KINDS if not happened.get(kind)] == []
    assert happened["order stored"] > 5 * SEEDS


async def test_a_seed_is_the_same_run_every_time() -> None:
    first, _ = await simulation("--seeds", "40", "--processes", "1")
    again, _ = await simulation("--seeds", "40", "--processes", "2")
    other, _ = await simulation("--seeds", "40", "--first", "40", "--processes", "1")
    assert first["fingerprint"] == again["fingerprint"] != other["fingerprint"]
    assert first["callbacks"] == again["callbacks"]


@pytest.mark.parametrize("planted", sorted(PLANTED))
async def test_a_planted_bug_is_found(planted: str) -> None:
    seeds = str(PLANTED_SEEDS_MAX)
    summary, errors = await simulation("--planted", planted, "--seeds", seeds, "--processes", "1")
    assert summary["failed"], errors
    assert f"replay: scripts/simulate --seed {summary['failed'][0]['seed']}" in errors
