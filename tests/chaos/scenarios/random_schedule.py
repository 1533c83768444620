"""All faults in a random order, drawn from the run's seed, several at once now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
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


async def hurt_at_random(world: World, seconds: float) -> None:
    """Faults for so long: one to three at once, each healed before the next."""
    until = time.monotonic() + seconds
    number = 0
    while time.monotonic() < until:
        faults = [_draw(world) for _ in range(world.chance.choice((1, 1, 2, 3)))]
        lasts = world.chance.uniform(0.5, 4)
        pause = world.chance.uniform(0.2, 2)
        async with world.fault():
            for what, name, detail in faults:
                number += 1
                world.say(f"{number:4} {what} {name} {detail}".rstrip())
                await _do(world, what, name, detail)
            await world.sleep(lasts)
            await world.platform.heal()
        await world.sleep(pause)
    world.figure("faults", number)


def _draw(world: World) -> tuple[str, str, str]:
    """(what, part or link, which fault of a link): from the seed alone, whatever happens meanwhile."""
    chance = world.chance
    what = chance.choice(("kill -9", "kill -9", "pause", "end", "link", "link", "link"))
    if what == "link":
        ends = chance.choice(sorted(world.platform.links))
        return what, ">".join(ends), chance.choice(sorted(LINK_FAULTS))
    names = sorted(world.platform.parts) if what == "end" else sorted(world.platform.names)
    return what, chance.choice(names), ""


async def _do(world: World, what: str, name: str, detail: str) -> None:
    platform = world.platform
    if what == "link":
        part, _, server = name.partition(">")
        LINK_FAULTS[detail](platform.link(part, server))
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
