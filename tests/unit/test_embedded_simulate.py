"""The simulated café is repeatable, and has what a real one has."""

from __future__ import annotations

import random
from collections import Counter
from datetime import datetime

import aiohttp
import pytest

from coffee_rt.embedded.simulate import (
    BATCH_SHARE,
    DAY_SECONDS,
    DRINKS,
    STORES,
    Action,
    Simulation,
    SimulationOptions,
    orders_per_request,
    plan_action,
    rhythm,
)

NOW = 1_800_000_000.0


def _actions(seed: int, count: int) -> list[Action]:
    chance = random.Random(seed)
    return [plan_action(chance, NOW) for _ in range(count)]


def _orders(actions: list[Action]) -> list[dict[str, object]]:
    orders: list[dict[str, object]] = []
    for action in actions:
        orders += action.body if isinstance(action.body, list) else [action.body]
    return orders


def test_the_same_seed_plays_the_same_orders() -> None:
    assert _actions(7, 50) == _actions(7, 50)
    assert _actions(7, 50) != _actions(8, 50)


def test_all_stores_and_drinks_sell_the_popular_ones_more() -> None:
    orders = _orders(_actions(1, 3000))
    stores = Counter(str(order["store"]) for order in orders)
    assert set(stores) == set(STORES)
    assert {order["drink"] for order in orders} == set(DRINKS)
    assert stores["downtown"] > 2 * stores["southend"]


def test_some_are_late_some_repeated_some_in_batches() -> None:
    actions = _actions(1, 3000)
    orders = _orders(actions)
    late = [
        order
        for order in orders
        if NOW - datetime.fromisoformat(str(order["ordered_at"])).timestamp() > 60
    ]
    assert 0 < len(late) < len(orders) * 0.02
    assert any(action.is_repeated for action in actions)
    batches = [action for action in actions if action.path.endswith("/batch")]
    assert len(batches) == pytest.approx(3000 * BATCH_SHARE, rel=0.5)


def test_every_request_has_a_key_of_its_own() -> None:
    actions = _actions(1, 500)
    assert len({action.key for action in actions}) == len(actions)


async def test_a_second_run_of_a_seed_has_other_keys() -> None:
    """Its orders have other times, so under the first run's keys each would be refused as a conflict."""
    [action] = _actions(7, 1)
    options = SimulationOptions("http://127.0.0.1:1", 1.0, 1.0, 7)
    async with aiohttp.ClientSession() as session:
        first, second = Simulation(options, session), Simulation(options, session)
    assert first.key_of(action) == first.key_of(action)
    assert first.key_of(action) != second.key_of(action)


def test_requests_carry_as_many_orders_as_the_rate_counts_on() -> None:
    actions = _actions(3, 20_000)
    mean = sum(action.records for action in actions) / len(actions)
    assert mean == pytest.approx(orders_per_request(), rel=0.05)


def test_a_simulated_day_has_the_asked_rate_on_average() -> None:
    moments = [rhythm(DAY_SECONDS * step / 2400) for step in range(2400)]
    assert sum(moments) / len(moments) == pytest.approx(1.0, abs=0.01)
    assert max(moments) > 1.3
    assert min(moments) > 0.5
