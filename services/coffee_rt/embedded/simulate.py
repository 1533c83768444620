"""A café chain posting orders through the public HTTP API, as its tills would.

`plan_action` decides what is sent (pure, seeded: the same seed plays the same orders, apart from their
times); `Simulation` sends it, open-loop: the rate doesn't drop because an answer is late, up to a limit of
requests under way. A day's rhythm passes in twenty minutes, stores and drinks have their popularity; some
orders are late, some requests are repeated with their key as after a lost answer, some come as a batch.
"""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import aiohttp

from coffee_rt.embedded.server_process import ServerProblem

UNDER_WAY_MAX = 512
"""Requests at once; at the limit the simulation waits, and says how far it fell behind."""

ATTEMPTS_MAX = 6
REPORT_SECONDS = 5.0
REQUEST_SECONDS_MAX = 30.0

LATE_SHARE = 0.005
RETRY_SHARE = 0.01
BATCH_SHARE = 0.02
BATCH_RECORDS_MAX = 20

STORES = {"uptown": 4, "downtown": 6, "central": 5, "southend": 2, "harbour": 2, "station": 5}
DRINKS: dict[str, tuple[int, int]] = {
    "cappuccino": (8, 420),
    "latte": (9, 450),
    "americano": (6, 350),
    "espresso": (5, 280),
    "flat white": (6, 440),
    "mocha": (3, 490),
    "cold brew": (2, 470),
    "chai latte": (2, 480),
}
"""Popularity and price in hundredths."""

DAY_SECONDS = 1200.0
"""A day in the café, shortened so that its morning and evening are seen while one watches."""

OPENS_AT = 16.0
"""The hour a run begins in: an afternoon of about the asked rate."""

RHYTHM_DEPTH = 0.35
"""1 would be true to life; then a night's dashboard is empty and a rush is 2.3 times the asked rate."""

_HOURS = (5, 3, 2, 2, 4, 15, 45, 90, 100, 80, 65, 60, 70, 72, 60, 58, 55, 50, 42, 35, 28, 20, 14, 8)
_MEAN = sum(_HOURS) / len(_HOURS)


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """`per_second` is the mean over a simulated day; `seconds` 0 means until cancelled."""

    address: str
    per_second: float
    seconds: float
    seed: int
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Action:
    """One request: its path, body, key, and whether it is sent twice."""

    path: str
    body: Any
    key: str
    is_repeated: bool
    records: int


@dataclass(slots=True)
class Tally:
    """What came of the requests."""

    accepted: int = 0
    repeated: int = 0
    refused: int = 0
    waited: int = 0
    failed: int = 0
    mismatched: int = 0
    latencies: list[float] = field(default_factory=list)


def rhythm(elapsed_seconds: float) -> float:
    """How busy the café is after so long; 1.0 on average over a simulated day."""
    hour = (OPENS_AT + elapsed_seconds / DAY_SECONDS * 24) % 24
    part = hour % 1
    busy = _HOURS[int(hour)] * (1 - part) + _HOURS[(int(hour) + 1) % 24] * part
    return 1 + RHYTHM_DEPTH * (busy / _MEAN - 1)


def plan_order(chance: random.Random, now: float) -> dict[str, Any]:
    """One order as a till sends it at `now` (Unix seconds)."""
    drink = _weighted(chance, {name: weight for name, (weight, _) in DRINKS.items()})
    price = DRINKS[drink][1] + chance.choice((0, 0, 0, 30, 60))
    ordered_at = now - chance.random() * 2
    if chance.random() < LATE_SHARE:
        # A till that was offline and sends what it kept.
        ordered_at = now - chance.uniform(600, 6 * 3600)
    order: dict[str, Any] = {
        "store": _weighted(chance, STORES),
        "drink": drink,
        "price": f"{price // 100}.{price % 100:02d}",
        "quantity": chance.choices((1, 2, 3, 4), (80, 14, 4, 2))[0],
        "ordered_at": datetime.fromtimestamp(ordered_at, UTC).isoformat(),
    }
    if chance.random() < 0.3:
        order["customer_id"] = f"guest-{chance.randrange(5000)}"
    if chance.random() < 0.2:
        order["attributes"] = {"milk": chance.choice(("oat", "soy", "whole"))}
    return order


def plan_action(chance: random.Random, now: float) -> Action:
    """The next request."""
    key = str(UUID(int=chance.getrandbits(128), version=4))
    is_repeated = chance.random() < RETRY_SHARE
    if chance.random() < BATCH_SHARE:
        records = chance.randint(2, BATCH_RECORDS_MAX)
        orders = [plan_order(chance, now) for _ in range(records)]
        return Action("/api/v1/orders/batch", orders, key, is_repeated, records)
    return Action("/api/v1/orders", plan_order(chance, now), key, is_repeated, 1)


def orders_per_request() -> float:
    """Mean orders of a planned request."""
    return 1 - BATCH_SHARE + BATCH_SHARE * (2 + BATCH_RECORDS_MAX) / 2


class Simulation:
    """One run. Owned by one task; requests are tasks of their own."""

    def __init__(self, options: SimulationOptions, session: aiohttp.ClientSession) -> None:
        self._options = options
        self._session = session
        self._chance = random.Random(options.seed)
        # Another run plays the same orders at other times: under the same keys they would be conflicts.
        self._run = secrets.token_hex(4)
        self._jitter = random.Random()
        self._slots = asyncio.Semaphore(UNDER_WAY_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self.tally = Tally()

    async def run(self) -> None:
        """Post until the time is over, then wait for what is under way."""
        begun = time.monotonic()
        due = begun
        while True:
            now = time.monotonic()
            if self._options.seconds and now - begun >= self._options.seconds:
                break
            if due > now:
                await asyncio.sleep(due - now)
            due += self._gap(now - begun)
            await self._slots.acquire()
            task = asyncio.create_task(self._perform(plan_action(self._chance, time.time())))
            self._tasks.add(task)
            task.add_done_callback(self._done)
        await asyncio.gather(*self._tasks)

    def _gap(self, elapsed_seconds: float) -> float:
        """Seconds to the next request: exponential, so that arrivals bunch as people do."""
        per_second = self._options.per_second * rhythm(elapsed_seconds) / orders_per_request()
        return self._chance.expovariate(per_second)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.release()

    async def _perform(self, action: Action) -> None:
        begun = time.monotonic()
        answer = await self._send(action)
        if answer is None:
            return
        self.tally.accepted += action.records
        self.tally.latencies.append(time.monotonic() - begun)
        if action.is_repeated:
            # As a till whose answer got lost: the same key must give the same order.
            again = await self._send(action)
            self.tally.repeated += 1
            if again is not None and _order_ids(again) != _order_ids(answer):
                self.tally.mismatched += 1

    def key_of(self, action: Action) -> str:
        """The same for each repetition within this run."""
        return f"{self._run}-{action.key}"

    async def _send(self, action: Action) -> Any:
        """The answer's JSON; None when it was refused or stayed unanswered."""
        headers = {"Idempotency-Key": self.key_of(action)}
        for attempt in range(ATTEMPTS_MAX):
            try:
                async with self._session.post(
                    action.path, json=action.body, headers=headers
                ) as response:
                    if response.status < 300:
                        return await response.json()
                    if response.status not in (429, 503) and response.status < 500:
                        self.tally.refused += action.records
                        return None
                    pause = float(response.headers.get("Retry-After", "0") or 0)
            except (aiohttp.ClientError, TimeoutError):
                pause = 0.0
            self.tally.waited += 1
            await asyncio.sleep(max(pause, self._jitter.random() * min(10.0, 0.2 * 2**attempt)))
        self.tally.failed += action.records
        return None


async def run_simulation(options: SimulationOptions, say: Callable[[str], None]) -> int:
    """Play until the time is over or the task is cancelled; 1 when a repetition made another order.

    Raises ServerProblem when nothing answers at the address.
    """
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    async with aiohttp.ClientSession(
        options.address,
        headers=headers,
        connector=aiohttp.TCPConnector(limit=UNDER_WAY_MAX),
        timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS_MAX),
    ) as session:
        await _check_address(session, options.address)
        simulation = Simulation(options, session)
        say(f"Posting {options.per_second:g} orders a second (a day's mean) to {options.address}")
        reporter = asyncio.create_task(_report(simulation.tally, say))
        try:
            await simulation.run()
        finally:
            reporter.cancel()
            say(_summary(simulation.tally))
        return 1 if simulation.tally.mismatched else 0


async def _check_address(session: aiohttp.ClientSession, address: str) -> None:
    try:
        async with session.get("/livez") as response:
            await response.read()
    except (aiohttp.ClientError, TimeoutError, ValueError):
        raise ServerProblem(
            f"Nothing answers at {address}. Start it with `coffee-rt up`, or give its address."
        ) from None


async def _report(tally: Tally, say: Callable[[str], None]) -> None:
    before = 0
    while True:
        await asyncio.sleep(REPORT_SECONDS)
        p50, p99 = _percentiles(tally.latencies)
        tally.latencies.clear()
        say(
            f"  {(tally.accepted - before) / REPORT_SECONDS:7.1f} orders/s   "
            f"p50 {p50 * 1000:5.1f} ms   p99 {p99 * 1000:6.1f} ms   {_summary(tally)}"
        )
        before = tally.accepted


def _summary(tally: Tally) -> str:
    text = f"accepted {tally.accepted}, repeated {tally.repeated}"
    for count, what in (
        (tally.refused, "refused"),
        (tally.waited, "tried again later"),
        (tally.failed, "given up"),
        (tally.mismatched, "REPEATED UNDER ANOTHER ID"),
    ):
        if count:
            text += f", {what} {count}"
    return text


def _percentiles(values: list[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 0.0
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[math.ceil(len(ordered) * 0.99) - 1]


def _order_ids(answer: Any) -> list[Any]:
    results = answer.get("results", [answer]) if isinstance(answer, dict) else answer
    return [result.get("order_id") for result in results]


def _weighted(chance: random.Random, weights: dict[str, int]) -> str:
    return chance.choices(list(weights), list(weights.values()))[0]
