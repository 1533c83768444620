"""Operators that send dead letters again: Redrive objects in a cluster of memory, worked off by the real core.

Two may be at it at once, as a leader that was thought dead and its successor are.
"""

from __future__ import annotations

from typing import Any, cast

from coffee_rt.operator.contract import Cluster
from coffee_rt.operator.one_shots import OneShots, is_finished
from coffee_rt.operator.pipelines import PipelineChanges
from coffee_rt.operator.redriving import PLURAL, Redriving
from tests.simulation.fussy import FussyRedriver
from tests.simulation.loop import Process
from tests.simulation.remote import Remote
from tests.simulation.world import World

PARKED = "unstorable-entry"


async def run_redriver(world: World, process: Process) -> None:
    # Of its own: nothing is shared by two operators but the database.
    redriver = FussyRedriver(world.database, world.fussiness, world.clock.now)
    remote: Any = Remote(world.network, world.postgresql, redriver)
    work = OneShots(
        PLURAL,
        Redriving(remote, world.breaker_of(process, "postgresql")),
        changes=PipelineChanges(),
        cluster=cast(Cluster, Remote(world.network, world.kubernetes, world.cluster)),
        clock=world.clock_of(process),
        log=world.log_of(process),
    )
    world.parts[process.name].core = work
    await work.run()


def ask_for_redrive(world: World) -> None:
    """Somebody makes a Redrive of all letters there are; operators hear of it."""
    number = len(world.cluster.objects) + 1
    made = world.cluster.put(PLURAL, f"redrive-{number}", {"letters": {"all": True}, "limit": 100})
    for name, part in world.parts.items():
        if name.startswith("redriver") and part.is_up:
            assert part.process is not None
            part.process.run(part.core.changes.note, made.ref.uid, made.generation)


def is_redriving(world: World) -> bool:
    """Whether a Redrive is not finished, as far as anybody wrote it down."""
    return not all(is_finished(found.status) for found in world.cluster.objects.values())


def parked_letters(world: World) -> int:
    """Letters that a redrive could store."""
    return sum(
        letter.redriven_at_us is None and letter.code == PARKED
        for letter in world.database.dead_letters
    )
