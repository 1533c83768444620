"""What a run is made of, drawn from its seed before it begins: the platform, its orders, its misfortunes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from coffee_rt.domain.views import ViewDefinition
from coffee_rt.order_api.acks import Ack
from tests.builders import a_view
from tests.simulation.fussy import BAD_DRINK
from tests.simulation.network import Weather

STORES = ("uptown", "harbour")
DRINKS = ("latte", "mocha", "tea")
FAULT_SECONDS = 3.5
"""Of a run; then everything heals."""
LONG_SECONDS = 11.0
"""The same of a few runs, in which the ledger is compacted."""
FREEZE_SECONDS_MAX = 2.0

_NEVER_OR = (0.0, 0.0, 0.01, 0.04)


@dataclass(frozen=True, slots=True)
class Wish:
    """An order a client wants to have placed once. `twin` of the same number has the key with another body."""

    number: int
    key: bytes | None
    is_client_id: bool
    store: str
    drink: str
    price_minor: int
    quantity: int
    hours_ago: int
    is_twin: bool = False
    is_raced: bool = False
    """Sent to two processes at once."""
    is_repeated: bool = False
    """Sent again after its answer."""
    is_recalled: bool = False
    """Sent again after all others of its client."""
    is_impatient: bool = False
    """Given up when it is refused."""
    ack: Ack = Ack.LOGGED
    """How far the order shall be when it is answered, where that is soon."""

    @property
    def body(self) -> bytes:
        return b"%d %s %s %d" % (
            self.number,
            self.store.encode(),
            self.drink.encode(),
            self.price_minor,
        )


@dataclass(frozen=True, slots=True)
class Trap:
    """What befalls a process at one of its steps, counted from the one before."""

    step: int
    kind: str
    """kill, freeze or drain."""
    seconds: float
    """Until it goes on, or is started again."""


@dataclass(frozen=True, slots=True)
class Event:
    """What befalls a server, or what an operator does."""

    at: float
    kind: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    parts: list[str]
    fault_seconds: float
    wishes: list[list[Wish]]
    """By client."""
    weather: Weather
    bus_trouble: float
    traps: dict[str, list[Trap]]
    events: list[Event]
    clock_errors: dict[str, float]
    keep_seconds: float
    """How long the log keeps what was acknowledged."""
    browsers: int
    views: list[list[ViewDefinition]] = field(default_factory=list)
    """The definitions at the start, and after each `views` event."""
    has_intake: bool = False
    """order_api has the database's intake beside the log."""
    intake_records_max: int = 1_000_000
    recall_at: float = 0.0
    """Before it nobody sends again what was answered long ago."""
    is_poisoned: bool = False
    """Some orders break PostgreSQL's connections until it is mended; operators send dead letters again."""
    is_poison_lasting: bool = False
    """It is mended only when all others are stored: one that fails alone holds up nobody."""
    has_refusals: bool = False
    """Little is enough to have orders refused."""

    def has(self, *kinds: str) -> bool:
        return any(event.kind in kinds for event in self.events)


def draw_core(seed: int) -> Plan:
    """What every run has. The same for the same seed, whatever the platform does with it."""
    chance = random.Random(f"plan {seed}")
    parts = _draw_parts(chance)
    is_calm = chance.random() < 0.1
    seconds = LONG_SECONDS if chance.random() < 0.04 else FAULT_SECONDS
    events = [] if is_calm else _draw_events(chance, seconds)
    return Plan(
        parts=parts,
        fault_seconds=seconds,
        wishes=_draw_wishes(chance),
        weather=Weather() if is_calm else _draw_weather(chance),
        bus_trouble=0.0 if is_calm else chance.choice((0.0, 0.05, 0.3)),
        traps={} if is_calm else draw_traps(chance, parts),
        events=events,
        clock_errors={part: chance.choice((0.0, 0.0, 0.0, -2.0, 3.0)) for part in parts},
        # Longer than anything is lost for: what a promotion takes back must be in the log.
        keep_seconds=20.0 if any(e.kind == "promotion" for e in events) else 0.3,
        browsers=chance.randint(1, 2),
        views=_draw_views(chance, events),
    )


def _draw_parts(chance: random.Random) -> list[str]:
    numbers = {"api": 2, "worker": 2, "aggregator": 2, "pod": 2}
    return [
        f"{role}-{number}"
        for role, most in numbers.items()
        for number in range(1, chance.randint(1, most) + 1)
    ]


def _draw_wishes(chance: random.Random) -> list[list[Wish]]:
    clients: list[list[Wish]] = []
    number = 0
    for client in range(chance.randint(2, 4)):
        wishes: list[Wish] = []
        for _ in range(chance.randint(2, 6)):
            number += 1
            wish = _draw_wish(chance, client, number)
            wishes.append(wish)
        clients.append(wishes)
    return clients


def _draw_wish(chance: random.Random, client: int, number: int) -> Wish:
    identity = chance.choice(("key", "key", "key", "client-id", "both", "none"))
    has_key = identity in ("key", "both")
    return Wish(
        number=number,
        key=b"client %d order %d" % (client, number) if has_key else None,
        is_client_id=identity in ("client-id", "both"),
        store=chance.choice(STORES),
        drink=BAD_DRINK if chance.random() < 0.04 else chance.choice(DRINKS),
        price_minor=chance.randint(100, 900),
        quantity=chance.randint(1, 3),
        hours_ago=chance.choice((0, 0, 0, 1, 2)),
        is_raced=identity != "none" and chance.random() < 0.15,
        is_repeated=identity != "none" and chance.random() < 0.15,
        is_twin=identity == "key" and chance.random() < 0.1,
        ack=chance.choice((Ack.LOGGED, Ack.LOGGED, Ack.STORED, Ack.VISIBLE)),
    )


def _draw_weather(chance: random.Random) -> Weather:
    lost, unanswered, late = (chance.choice(_NEVER_OR) for _ in range(3))
    return Weather(lost, unanswered, late, chance.choice((0.0, 0.05, 0.3)))


def draw_traps(chance: random.Random, parts: list[str]) -> dict[str, list[Trap]]:
    traps: dict[str, list[Trap]] = {}
    for part in parts:
        if chance.random() < 0.6:
            traps[part] = [_draw_trap(chance) for _ in range(chance.randint(1, 3))]
    return traps


def _draw_trap(chance: random.Random) -> Trap:
    kind = chance.choice(("kill", "kill", "kill", "freeze", "freeze", "drain"))
    # Most of what matters is within a few hundred steps of a start; some of it much later.
    step = chance.randint(1, chance.choice((60, 250, 700)))
    return Trap(step, kind, chance.uniform(0.1, FREEZE_SECONDS_MAX))


EVENTS = (
    "redis away",
    "redis restart",
    "redis freeze",
    "postgresql away",
    "postgresql refuses",
    "postgresql restart",
    "postgresql freeze",
    "cut",
    "failover",
    "promotion",
    "group destroyed",
    "messages missed",
    "stranger",
    "views",
    "rebuild",
)


def _draw_events(chance: random.Random, seconds: float) -> list[Event]:
    events = []
    for _ in range(chance.randint(0, 5)):
        at = chance.uniform(0.1, seconds - 0.2)
        events.append(Event(at, chance.choice(EVENTS), chance.uniform(0.05, 1.2)))
    return sorted(events, key=lambda event: event.at)


def _draw_views(chance: random.Random, events: list[Event]) -> list[list[ViewDefinition]]:
    drawn = [[_draw_sales(chance)]]
    for _ in [event for event in events if event.kind == "views"]:
        definitions = [_draw_sales(chance)]
        if chance.random() < 0.5:
            definitions.append(_draw_prices(chance))
        drawn.append(definitions)
    return drawn


def _draw_sales(chance: random.Random) -> ViewDefinition:
    dimensions = chance.choice((["store", "drink"], ["store"]))
    return a_view("sales", lanes=chance.choice((1, 2, 3)), dimensions=dimensions)


def _draw_prices(chance: random.Random) -> ViewDefinition:
    measures = {"orders": "count", "least": {"min": "price"}, "most": {"max": "price"}}
    shown = {"filter": {"drink": ["latte", "tea"]}} if chance.random() < 0.5 else {}
    return a_view("prices", lanes=1, dimensions=["drink"], measures=measures, **shown)
