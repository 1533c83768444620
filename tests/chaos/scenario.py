"""Scenarios: what one is, where all are, and the world it is given.

A scenario is an `async def name(world)` under `@scenario`. The load runs already when it is called and goes on
until after it; it does harm (inside `async with world.fault():` where only part of it is harm) and may heal it or
leave that to the runner, which heals everything, waits until the platform has caught up, and compares. What else must hold is said with
`world.expect(...)`; figures worth a column with `world.figure(...)`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from tests.chaos.notes import Load
from tests.chaos.platform import Platform, Shape
from tests.chaos.recording import Recording
from tests.chaos.verdict import Expected

Act = Callable[["World"], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """One entry of the registry."""

    name: str
    fault: str
    """What is done, in a few words for the table."""
    act: Act
    is_smoke: bool
    is_negative_control: bool
    shape: Shape
    load: Load
    is_alone: bool
    """Needs a platform nobody used before, and leaves it to nobody."""


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    name: str,
    *,
    fault: str,
    smoke: bool = False,
    negative_control: bool = False,
    shape: Shape = Shape(),  # noqa: B008 - frozen
    load: Load = Load(),  # noqa: B008 - frozen
    alone: bool = False,
) -> Callable[[Act], Act]:
    """Register a scenario. `negative_control`: it must LOSE orders, to show that the harness would see it."""

    def register(act: Act) -> Act:
        assert name not in SCENARIOS, f"two scenarios are called {name}"
        SCENARIOS[name] = Scenario(name, fault, act, smoke, negative_control, shape, load, alone)
        return act

    return register


def load_scenarios() -> dict[str, Scenario]:
    """All of them: every module in tests/chaos/scenarios is imported."""
    for path in sorted((Path(__file__).parent / "scenarios").glob("*.py")):
        if path.stem != "__init__":
            import_module(f"tests.chaos.scenarios.{path.stem}")
    return SCENARIOS


@dataclass
class World:
    """What a scenario acts on. One a run of a scenario."""

    platform: Platform
    recording: Recording
    chance: random.Random
    """Seeded: the run's randomness comes from here alone."""
    say: Callable[[str], None]
    expected: Expected = field(default_factory=Expected)
    problems: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    fault_began: float | None = None
    fault_ended: float | None = None
    """Of the monotonic clock: the first fault's begin, the last one's end."""

    @asynccontextmanager
    async def fault(self, what: str = "") -> AsyncIterator[None]:
        """The span in which the platform is hurt; several add up to one."""
        if what:
            self.say(what)
        if self.fault_began is None:
            self.fault_began = time.monotonic()
        try:
            yield
        finally:
            self.fault_ended = time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """The fault lasts, or the load flows, for so long."""
        await asyncio.sleep(seconds)

    async def accepted(self, more: int, seconds_max: float = 60.0) -> None:
        """Until so many more orders were accepted. Raises RuntimeError when they don't come."""
        await self.recording.wait_accepted(more, seconds_max)

    async def until(
        self, condition: Callable[[], bool | Awaitable[bool]], what: str, seconds_max: float = 60.0
    ) -> None:
        """Until a condition holds; RuntimeError says what did not come."""
        end = time.monotonic() + seconds_max
        while True:
            outcome = condition()
            if outcome if isinstance(outcome, bool) else await outcome:
                return
            if time.monotonic() > end:
                raise RuntimeError(f"{what}: not within {seconds_max:.0f} s")
            await asyncio.sleep(0.05)

    def expect(self, is_so: bool, otherwise: str) -> None:
        """A promise of this scenario alone; `otherwise` is told when it is broken."""
        if not is_so:
            self.problems.append(otherwise)

    def figure(self, name: str, value: float) -> None:
        """A number for the report, never a verdict."""
        self.figures[name] = round(value, 3)
