"""What only a share of the runs has, drawn after the rest: an intake, poison and redrives, refusals."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from tests.simulation.fussy import POISON_DRINK
from tests.simulation.plan import Event, Plan, Trap, Wish, draw_core, draw_traps

OUTAGES = ("redis away", "cut off", "cut off", "both away")
"""What an intake is for. `cut off`: some order_api can't connect to Redis."""
MORE_EVENTS = ("cut off", "both away", "log full", "poison ends", "redrive")
_INTAKE, _REFUSALS = 0.35, 0.12
_POISON, _POISON_BESIDE_INTAKE = 0.1, 0.3
_NO_LIMIT = 1_000_000


def draw_plan(seed: int) -> Plan:
    """The whole plan of a seed."""
    plan = draw_core(seed)
    chance = random.Random(f"shares {seed}")
    if chance.random() < _INTAKE:
        plan = _with_intake(plan, chance)
    if chance.random() < (_POISON_BESIDE_INTAKE if plan.has_intake else _POISON):
        plan = _with_poison(plan, chance)
    if chance.random() < _REFUSALS:
        plan = _with_refusals(plan, chance)
    return plan


def _with_intake(plan: Plan, chance: random.Random) -> Plan:
    """Two order_api at least, so that one may be cut off and another not."""
    parts = list(plan.parts)
    if "api-2" not in parts:
        parts.insert(1, "api-2")

    def change(wish: Wish) -> Wish:
        has_name = wish.key is not None or wish.is_client_id
        return replace(
            wish,
            is_raced=wish.is_raced or (has_name and chance.random() < 0.2),
            is_recalled=has_name and chance.random() < 0.4,
        )

    events = [
        Event(_moment(plan, chance), chance.choice(OUTAGES), chance.uniform(0.2, 1.6))
        for _ in range(chance.randint(1, 3))
    ]
    return replace(
        _with_events(plan, events),
        parts=parts,
        clock_errors={"api-2": chance.choice((0.0, -2.0, 3.0)), **plan.clock_errors},
        wishes=_changed(plan, change),
        has_intake=True,
        intake_records_max=3 if chance.random() < 0.15 else _NO_LIMIT,
    )


def _with_poison(plan: Plan, chance: random.Random) -> Plan:
    """Some orders break connections until it ends; operators send again what was parked."""

    def change(wish: Wish) -> Wish:
        if chance.random() > (0.4 if plan.has_intake else 0.25):
            return wish
        is_recalled = plan.has_intake and (wish.key is not None or wish.is_client_id)
        return replace(wish, drink=POISON_DRINK, is_recalled=is_recalled)

    ends_at = chance.uniform(*((0.7, 0.8) if plan.has_intake else (0.4, 0.6))) * plan.fault_seconds
    is_lasting = chance.random() < 0.3 and plan.intake_records_max == _NO_LIMIT
    ends = [] if is_lasting else [Event(ends_at, "poison ends")]
    events = [
        Event(chance.uniform(ends_at, plan.fault_seconds - 0.1), "redrive")
        for _ in range(chance.randint(1, 2))
    ]
    if plan.has_intake:
        # So that what was parked from one place is repeated to the other.
        events.append(Event(ends_at, "redis away", 0.2 * plan.fault_seconds))
    redrivers = ["redriver-1", "redriver-2"][: chance.randint(1, 2)]
    traps = {
        part: [Trap(chance.randint(1, 80), trap.kind, trap.seconds) for trap in traps]
        for part, traps in draw_traps(chance, redrivers).items()
    }
    return replace(
        _with_events(plan, [*ends, *events]),
        parts=[*plan.parts, *redrivers],
        clock_errors={**dict.fromkeys(redrivers, 0.0), **plan.clock_errors},
        traps=plan.traps | traps,
        wishes=_changed(plan, change),
        recall_at=ends_at + 0.1 if plan.has_intake else 0.0,
        is_poisoned=True,
        is_poison_lasting=is_lasting,
    )


def _with_refusals(plan: Plan, chance: random.Random) -> Plan:
    """Narrow queues, and a log that is full for a while. Some clients do not come again."""

    def change(wish: Wish) -> Wish:
        return replace(wish, is_impatient=chance.random() < 0.4)

    events = [
        Event(_moment(plan, chance), chance.choice(("log full", "redis freeze")), 0.8)
        for _ in range(chance.randint(1, 2))
    ]
    if plan.has("promotion"):
        # A full log lets acknowledged entries go at once: what a promotion takes back is lost then.
        events = [event for event in events if event.kind != "log full"]
    return replace(
        _with_events(plan, events),
        wishes=_changed(plan, change),
        has_refusals=True,
        # What fails alone is undelivered to nobody, and a backlog all the same: all others would be refused.
        is_poison_lasting=False,
    )


def _moment(plan: Plan, chance: random.Random) -> float:
    return chance.uniform(0.1, plan.fault_seconds - 0.2)


def _with_events(plan: Plan, events: list[Event]) -> Plan:
    return replace(plan, events=sorted([*plan.events, *events], key=lambda event: event.at))


def _changed(plan: Plan, change: Callable[[Wish], Wish]) -> list[list[Wish]]:
    return [[change(wish) for wish in wishes] for wishes in plan.wishes]
