"""Turns: a line for each caller, bounded, and forgotten when nobody stands in it."""

from __future__ import annotations

import asyncio

import pytest

from coffee_rt.callers.turns import Turns
from coffee_rt.errors import Overload
from tests.fanout_world import settle


async def hold(turns: Turns, subject: str, until: asyncio.Event, told: list[str]) -> None:
    async with turns.take(subject):
        told.append(subject)
        await until.wait()


async def test_each_caller_has_its_own_turns_and_its_own_line() -> None:
    turns, end, told = Turns(2, 1, None), asyncio.Event(), list[str]()
    tasks = [asyncio.create_task(hold(turns, "a", end, told)) for _ in range(3)]
    await settle()
    assert told == ["a", "a"]
    with pytest.raises(Overload) as refusal:
        await hold(turns, "a", end, told)
    assert (refusal.value.status, refusal.value.code) == (429, "too-many-requests")
    tasks.append(asyncio.create_task(hold(turns, "b", end, told)))
    await settle()
    assert told == ["a", "a", "b"]
    end.set()
    await asyncio.gather(*tasks)
    assert told == ["a", "a", "b", "a"]
    assert turns._lines == {}


async def test_who_leaves_the_line_or_a_turn_makes_room() -> None:
    turns, never, told = Turns(1, 1, None), asyncio.Event(), list[str]()
    first, second = (asyncio.create_task(hold(turns, "a", never, told)) for _ in range(2))
    await settle()
    second.cancel()
    await settle()
    third = asyncio.create_task(hold(turns, "a", never, told))
    await settle()
    first.cancel()
    await settle()
    assert told == ["a", "a"]
    third.cancel()
    await asyncio.gather(first, second, third, return_exceptions=True)
    assert turns._lines == {}


async def test_a_turn_is_waited_for_no_longer_than_it_may() -> None:
    turns, never, told = Turns(1, 5, 0.01), asyncio.Event(), list[str]()
    first = asyncio.create_task(hold(turns, "a", never, told))
    await settle()
    with pytest.raises(Overload):
        await hold(turns, "a", never, told)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert turns._lines == {}
