"""One run from one integer: build, torment, heal, wait for rest, judge."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from unittest.mock import patch

from tests.simulation import oracle
from tests.simulation.browsers import Browser
from tests.simulation.clients import Clients
from tests.simulation.events import Misfortunes
from tests.simulation.loop import Stuck
from tests.simulation.processes import MAINS
from tests.simulation.shares import draw_plan
from tests.simulation.world import World

REST_SECONDS_MAX = 40.0
"""After healing, until nothing is under way any more (I9, I10)."""
BROWSER_SECONDS_MAX = 5.0
"""After that, until every browser shows the truth (I7)."""
LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to. Equal for equal seeds, whatever machine or interpreter it ran on."""

    seed: int
    failures: tuple[str, ...]
    fingerprint: int
    steps: int
    seconds: float
    """Virtual ones."""
    happened: Counter[str]
    trace: list[str] = field(default_factory=list, compare=False)


def simulate(seed: int, *, is_traced: bool = False) -> Outcome:
    """Run a seed."""
    with _determined(seed):
        world = World(draw_plan(seed), seed, is_traced=is_traced)
        try:
            _Run(world).play()
        except Stuck as error:
            world.fail(str(error))
        finally:
            for part in world.parts.values():
                if part.process is not None:
                    part.process.kill()
            world.loop.world.kill()
            world.loop.close()
    return Outcome(
        seed=seed,
        failures=tuple(world.failures),
        fingerprint=world.fingerprint,
        steps=world.loop.steps,
        seconds=round(world.loop.now, 6),
        happened=world.count(),
        trace=world.lines,
    )


@contextmanager
def _determined(seed: int) -> Iterator[None]:
    """Everything the cores draw comes from the seed: jitter, ids."""
    state = random.getstate()
    random.seed(f"cores {seed}")
    entropy = SimpleNamespace(urandom=random.Random(f"ids {seed}").randbytes)
    try:
        with (
            patch("coffee_rt.domain.ids.os", entropy),
            # So that chores of every hour are done within a run.
            patch("coffee_rt.worker.care.HOUR_SECONDS", 2.0),
            patch("coffee_rt.worker.care.FIRST_HOURLY_SECONDS_MAX", 2.0),
            patch("coffee_rt.worker.care.INTAKE_MARGIN_MS", 1_000),
            patch("coffee_rt.order_api.background.WATCH_SECONDS", 0.2),
            # As slow as answers are here: how well a producer can know Redis's clock.
            patch("coffee_rt.streams.memory_groups.FIND_BEFORE_MS", 250),
        ):
            yield
    finally:
        random.setstate(state)


class _Run:
    def __init__(self, world: World) -> None:
        self._world = world
        self._clients = Clients(world)
        self._misfortunes = Misfortunes(world)
        self._browsers = [
            Browser(world, f"browser {number}") for number in range(world.plan.browsers)
        ]
        self._rested_at: float | None = None
        self._look_at = 0.0

    def play(self) -> None:
        world = self._world
        for name in world.plan.parts:
            world.add(name, MAINS[name.partition("-")[0]], traps=world.plan.traps.get(name, []))
        world.add("clients", self._clients.run)
        world.add("operator", self._misfortunes.run)
        for number, browser in enumerate(self._browsers):
            world.add(f"browser {number}", browser.run)
        world.loop.drive(self._is_over)
        if not world.failures:
            for text in oracle.violations(world, self._clients):
                world.fail(text)
        for crash in world.loop.crashes:
            world.fail(crash)

    def _is_over(self) -> bool:
        world, now = self._world, self._world.loop.now
        if world.failures:
            return True
        if not world.is_healed and now >= world.plan.fault_seconds:
            self._heal()
        if not world.is_healed or now < self._look_at:
            return False
        self._look_at = now + LOOK_SECONDS
        reasons = list(self._reasons())
        if reasons:
            self._rested_at = None
            if now > world.plan.fault_seconds + REST_SECONDS_MAX:
                world.fail(f"no rest {REST_SECONDS_MAX} s after healing: {'; '.join(reasons)}")
            return False
        if self._rested_at is None:
            self._rested_at = now
        lagging = list(oracle.behind(world, self._browsers))
        if lagging and now - self._rested_at > BROWSER_SECONDS_MAX:
            world.fail("; ".join(lagging))
        return not lagging

    def _reasons(self) -> Iterator[str]:
        """Why the run is not at rest."""
        world = self._world
        if world.fussiness.is_poisoned:
            held_up = list(oracle.held_up(world, self._clients))
            if held_up:
                yield from held_up
                return
            world.note("the poison ends")
            world.fussiness.is_poisoned = False
        yield from oracle.unrest(world, self._clients)

    def _heal(self) -> None:
        world = self._world
        world.heal()
        operator = world.parts["operator"].process
        assert operator is not None
        operator.start(self._misfortunes.settle_views())
        if world.plan.is_poisoned:
            operator.start(self._misfortunes.settle_letters())
