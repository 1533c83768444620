"""Reads of history for live sessions: shared, fair among callers, not made for nobody, and never unbounded."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from coffee_rt.errors import Retryable
from coffee_rt.fanout.deep_reads import DeepReads
from coffee_rt.store.view_contract import SnapshotScope, ViewSnapshot
from tests.fanout_world import VirtualClock, settle


@dataclass
class HeldReader:
    """Answers a read when a test says so."""

    under_way: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    """By start."""
    asked: list[tuple[int, SnapshotScope | None]] = field(default_factory=list)

    async def snapshot(
        self, view: str, start: int, scope: SnapshotScope | None = None
    ) -> ViewSnapshot:
        self.asked.append((start, scope))
        self.under_way[start] = asyncio.get_running_loop().create_future()
        await self.under_way[start]
        del self.under_way[start]
        return ViewSnapshot(view, "e", [0], [])

    async def rows_above(self, view: str, lane: int, version: int, start: int) -> ViewSnapshot:
        raise AssertionError("not asked for here")


@pytest.fixture
def reader() -> HeldReader:
    return HeldReader()


@pytest.fixture
def reads(reader: HeldReader) -> DeepReads:
    return DeepReads(reader, VirtualClock(), random.Random(1).uniform, 100)


def a_wish(token: str, since: int, **changes: Any) -> Any:
    return SimpleNamespace(
        **{
            "session": SimpleNamespace(token=token),
            "channel": SimpleNamespace(dimensions=("store", "drink")),
            "tenant": 7,
            "filter": (),
            "since": since,
            "is_closed": False,
            **changes,
        }
    )


async def test_who_asks_for_many_waits_behind_nobody_but_itself(
    reads: DeepReads, reader: HeldReader
) -> None:
    many = [asyncio.create_task(reads.read("v", a_wish("greedy", n))) for n in range(50)]
    await settle()
    assert list(reader.under_way) == [0]
    other = asyncio.create_task(reads.read("v", a_wish("other", 1000)))
    await settle()
    assert list(reader.under_way) == [0, 1000]
    reader.under_way[1000].set_result(None)
    assert await other is not None
    for number in range(50):
        await settle()
        reader.under_way[number].set_result(None)
    assert None not in await asyncio.gather(*many)


async def test_what_nobody_waits_for_any_more_is_not_read(
    reads: DeepReads, reader: HeldReader
) -> None:
    wishes = [a_wish("greedy", number) for number in range(20)]
    tasks = [asyncio.create_task(reads.read("v", wish)) for wish in wishes]
    await settle()
    for wish in wishes[:-1]:
        wish.is_closed = True
    reader.under_way[0].set_result(None)
    for _ in wishes:
        await settle()
    assert [start for start, _ in reader.asked] == [0, 19]
    # Asked for anew, it is read after all.
    again = asyncio.create_task(reads.read("v", a_wish("other", 5)))
    await settle()
    for start in (5, 19):
        reader.under_way[start].set_result(None)
    assert await again is not None
    assert [await task is None for task in tasks] == [False, *[True] * 18, False]


async def test_the_same_is_read_once_and_only_as_much_as_may_be_sent(
    reads: DeepReads, reader: HeldReader
) -> None:
    wanted = ((1, frozenset({"tea"})),)
    tasks = [
        asyncio.create_task(reads.read("v", a_wish(token, 5, filter=wanted))) for token in "abc"
    ]
    await settle()
    [(start, scope)] = reader.asked
    assert (start, scope) == (5, SnapshotScope(7, (("drink", ("tea",)),), 101))
    reader.under_way[5].set_result(None)
    assert len({id(await task) for task in tasks}) == 1


async def test_an_outage_is_waited_out(reads: DeepReads, reader: HeldReader) -> None:
    clock = reads._clock
    assert isinstance(clock, VirtualClock)
    task = asyncio.create_task(reads.read("v", a_wish("a", 5)))
    await settle()
    reader.under_way[5].set_exception(Retryable("away"))
    await clock.advance(2)
    reader.under_way[5].set_result(None)
    assert await task is not None
