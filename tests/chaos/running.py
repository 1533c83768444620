"""One scenario from a running platform to its verdict; platforms shared by scenarios of one shape."""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from tests.chaos.facts import Watch, read_facts
from tests.chaos.notes import Job
from tests.chaos.observer import Observer, read_goals, read_rows
from tests.chaos.platform import Platform
from tests.chaos.recording import Recording
from tests.chaos.scenario import Scenario, World
from tests.chaos.verdict import (
    Expected,
    Verdict,
    add_latencies,
    judge,
    last_failure,
    throughput_percent,
)

WARM_UP_ORDERS = 60
HEALTHY_SECONDS = 3.0
"""Load after recovery, for the figure of throughput."""
CATCH_UP_SECONDS_MAX = 90.0
OBSERVER_SECONDS_MAX = 30.0
"""A verdict, so generous; how long it took is in the table."""
PROBLEMS_MAX = 12


class Bench:
    """Runs scenarios one after the other below one folder; keeps a platform as long as its shape is asked for."""

    def __init__(self, folder: Path, say: Callable[[str], None], seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self._say = say
        self._platform: Platform | None = None
        self._number = 0

    async def close(self) -> None:
        if self._platform is not None:
            await self._platform.close()
            self._platform = None

    async def run(self, scenario: Scenario) -> Verdict:
        """Never raises for what the platform does: that is a problem in the verdict."""
        began = time.monotonic()
        self._number += 1
        problems: list[str] = []
        verdict = Verdict()
        try:
            platform = await self._platform_for(scenario)
            verdict = await self._run_on(platform, scenario)
        except Exception as error:  # noqa: BLE001 - whatever breaks is this scenario's failure
            traceback.print_exc()
            problems.append(f"{type(error).__name__}: {error}")
        verdict.problems += problems
        verdict.name, verdict.fault = scenario.name, scenario.fault
        verdict.negative_control = scenario.is_negative_control
        if scenario.is_negative_control and not verdict.lost:
            verdict.problems.append("nothing was lost, so this control shows nothing")
        verdict.kept = not verdict.problems
        verdict.seconds = round(time.monotonic() - began, 1)
        if self._platform is not None:
            verdict.logs = str(self._platform.folder)
        if problems or not verdict.kept or scenario.is_alone:
            # Whatever is wrong with it must not be the next one's.
            await self.close()
        return verdict

    async def _platform_for(self, scenario: Scenario) -> Platform:
        running = self._platform
        if running is not None and (running.shape != scenario.shape or scenario.is_alone):
            await self.close()
        if self._platform is None:
            folder = self.folder / f"platform-{self._number}"
            self._platform = Platform(folder, scenario.shape, self.folder / "template")
            began = time.monotonic()
            await self._platform.start()
            self._say(f"platform up in {time.monotonic() - began:.1f} s")
        return self._platform

    async def _run_on(self, platform: Platform, scenario: Scenario) -> Verdict:
        prefix = f"{scenario.name}-{self._number}."
        seed = seed_of(self.seed, scenario.name)
        job = Job(
            platform.addresses,
            platform.api_key,
            prefix,
            str(platform.folder / f"{prefix}notes.jsonl"),
            scenario.load,
            seed,
        )
        before = await read_facts(platform, prefix)
        ends_before = {name: len(part.unasked_ends) for name, part in platform.parts.items()}
        recording = Recording(job)
        world = World(platform, recording, random.Random(seed), self._say)
        world.expected = Expected(before.dead_letters, max(map(abs, before.imbalances), default=0))
        watch = Watch(platform)
        observer = Observer(platform.live_addresses, platform.api_key)
        try:
            await recording.start()
            await observer.start()
            await recording.wait_accepted(WARM_UP_ORDERS)
            act_began = time.monotonic()
            await scenario.act(world)
            healed_at = time.monotonic()
            await platform.heal()
            await watch.wait_caught_up(CATCH_UP_SECONDS_MAX, is_at_rest=False)
            recovered_at = time.monotonic()
            observer_seconds = await _follow(platform, observer)
            await asyncio.sleep(max(0.0, HEALTHY_SECONDS - (observer_seconds or 0.0)))
            healthy_until = time.monotonic()
            notes = await recording.end()
            await watch.wait_caught_up(CATCH_UP_SECONDS_MAX, is_at_rest=True)
            truth = await read_rows(platform.database)
            observed = await observer.wait_equals(truth, OBSERVER_SECONDS_MAX)
        finally:
            await observer.close()
            await recording.abandon()
            await watch.close()
        platform.note_ends()
        verdict = judge(notes, await read_facts(platform, prefix), world.expected)
        ended = world.fault_ended or healed_at
        add_latencies(verdict, notes, world.fault_began or act_began, ended)
        since = min(ended, healed_at)
        recovery = max(recovered_at - since, last_failure(notes.attempts, since))
        verdict.recovery_seconds = round(recovery, 1)
        verdict.throughput_after_percent = throughput_percent(notes, recovered_at, healthy_until)
        verdict.observer_seconds = observer_seconds
        verdict.observer_connects = observer.connects
        if not world.expected.is_history_lost:
            verdict.problems += observer.problems + observed
        verdict.figures = world.figures
        if notes.skipped:
            verdict.figures["requests_skipped_by_recorder"] = notes.skipped
        for name, part in platform.parts.items():
            ends = part.unasked_ends[ends_before[name] :]
            if ends:
                verdict.problems.append(f"{name} ended by itself: exit codes {ends}")
        verdict.peak_memory_mb = round(
            max(part.peak_memory_bytes for part in platform.parts.values()) / 2**20, 1
        )
        verdict.problems += world.problems
        if not verdict.accepted:
            verdict.problems.append("nothing was accepted")
        return _shortened(verdict)


async def _follow(platform: Platform, observer: Observer) -> float | None:
    """Seconds until a browser shows what the database shows now; None: it did not come so far."""
    began = time.monotonic()
    goals = await read_goals(platform.database)
    try:
        await observer.wait_reaches(goals, OBSERVER_SECONDS_MAX)
    except TimeoutError:
        observer.problems.append(
            f"observer: not where the database was, {OBSERVER_SECONDS_MAX:.0f} s later"
        )
        return None
    return round(time.monotonic() - began, 2)


def seed_of(seed: int, name: str) -> int:
    """A scenario's own seed: the same whichever scenarios run before it."""
    return int.from_bytes(blake2b(f"{seed} {name}".encode(), digest_size=6).digest(), "big")


def _shortened(verdict: Verdict) -> Verdict:
    left_out = len(verdict.problems) - PROBLEMS_MAX
    if left_out > 0:
        verdict.problems[PROBLEMS_MAX:] = [f"and {left_out} more"]
    return verdict
