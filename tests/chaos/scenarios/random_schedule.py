"""All faults in a random order, drawn from the run's seed, several at once now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.chaos.platform import SERVERS, Shape
from tests.chaos.proxy import FaultProxy
from tests.chaos.scenario import World, scenario

SHAPE = Shape(order_apis=2, aggregators=2)
LINK_FAULTS: dict[str, Callable[[FaultProxy], Any]] = {
    "latency": lambda link: link.latency(0.1, 0.2),
    "narrow": lambda link: link.bandwidth(64 * 1024),
    "reset": lambda link: link.reset(),
    "half open": lambda link: link.half_open(),
    "cut after 2000 bytes": lambda link: link.cut_after(2000),
    "swallowed answers": lambda link: link.swallow_replies(),
    "answers lost, then reset": lambda link: link.swallow_replies(then_reset=True),
    "black hole": lambda link: link.black_hole(),
    "refused": lambda link: link.refuse(),
}


@dataclass(frozen=True)
class Fault:
    """One thing that is done to a part, or to a link (`a>b`)."""

    what: str
    name: str
    detail: str = ""


@dataclass(frozen=True)
class Round:
    """Faults at once, how long they last, and the quiet after they are healed."""

    faults: tuple[Fault, ...]
    lasts_seconds: float
    pause_seconds: float


def rounds(
    chance: Random, links: Collection[tuple[str, str]], parts: Collection[str]
) -> Iterator[Round]:
    """Without end, from the seed alone, whatever happens meanwhile: one to three faults at once."""
    while True:
        faults = tuple(
            _draw(chance, sorted(links), sorted(parts)) for _ in range(chance.choice((1, 1, 2, 3)))
        )
        yield Round(faults, chance.uniform(0.5, 4), chance.uniform(0.2, 2))


def _draw(chance: Random, links: Sequence[tuple[str, str]], parts: Sequence[str]) -> Fault:
    what = chance.choice(("kill -9", "kill -9", "pause", "end", "link", "link", "link"))
    if what == "link":
        return Fault(what, ">".join(chance.choice(links)), chance.choice(sorted(LINK_FAULTS)))
    return Fault(what, chance.choice(parts if what == "end" else sorted((*parts, *SERVERS))))


async def hurt_at_random(world: World, seconds: float) -> None:
    """Rounds for so long: the faults of each are healed before the next."""
    until = time.monotonic() + seconds
    number = 0
    for each in rounds(world.chance, world.platform.links, world.platform.parts):
        if time.monotonic() >= until:
            break
        async with world.fault():
            for fault in each.faults:
                number += 1
                world.say(f"{number:4} {fault.what} {fault.name} {fault.detail}".rstrip())
                await _do(world, fault)
            await world.sleep(each.lasts_seconds)
            await world.platform.heal()
        await world.sleep(each.pause_seconds)
    world.figure("faults", number)


async def _do(world: World, fault: Fault) -> None:
    platform, what, name = world.platform, fault.what, fault.name
    if what == "link":
        part, _, server = name.partition(">")
        LINK_FAULTS[fault.detail](platform.link(part, server))
        return
    running = (
        platform.servers[name].is_running if name in SERVERS else platform.parts[name].is_running
    )
    if not running or name in platform.frozen:
        return
    if what == "kill -9":
        await platform.kill(name)
    elif what == "pause":
        platform.freeze(name)
    else:
        code, _seconds = await platform.terminate(name)
        world.expect(code == 0, f"{name} ended with {code} after SIGTERM")


@scenario("random", fault="faults at random, 20 s (longer: scripts/chaos random)", shape=SHAPE)
async def random_schedule(world: World) -> None:
    await hurt_at_random(world, 20)
