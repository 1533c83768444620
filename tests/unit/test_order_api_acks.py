"""Acknowledgement levels: what was published is heard, what was lost is asked for, in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from coffee_rt.channels.memory import MemoryChannels
from coffee_rt.channels.messages import Stored, StoredEntry, ViewChange, encode
from coffee_rt.order_api.acks import ASK_SECONDS_MAX, Ack, Acks
from coffee_rt.runtime.clock import SystemClock
from coffee_rt.streams.contract import EntryId, Position

POSITION = Position(0, EntryId(1_763_700_000_000, 0), bytes(16))
LONG_SECONDS = 30.0


async def _is_settled(position: Position) -> bool:
    return True


async def _is_not_settled(position: Position) -> bool:
    return False


@asynccontextmanager
async def listening(
    channels: MemoryChannels, is_settled: Callable[[Position], Awaitable[bool]]
) -> AsyncIterator[Acks]:
    acks = Acks(channels, is_settled, SystemClock(), waits_max=10)
    listener = asyncio.create_task(acks.run())
    await asyncio.sleep(0)  # It subscribes in its first step.
    try:
        yield acks
    finally:
        listener.cancel()
        with suppress(asyncio.CancelledError):
            await listener


def commit(xid: int = 7, lanes: dict[str, list[int]] | None = None, timeline: str = "") -> bytes:
    entry = StoredEntry(POSITION.shard, str(POSITION.entry_id), POSITION.batch_id)
    return encode(Stored(xid, [entry], lanes or {}, timeline=timeline))


def folded(epoch: str, floor: int) -> bytes:
    return encode(ViewChange("sales", epoch, 0, 2, 1, floor, []))


async def waits(acks: Acks, seconds: float) -> Ack:
    """The level reached, asked for within half of the long wait: nobody may wait it out."""
    async with asyncio.timeout(LONG_SECONDS / 2):
        return await acks.wait({POSITION}, Ack.STORED, seconds)


async def test_commit_is_heard_before_and_during_the_wait() -> None:
    channels = MemoryChannels()
    async with listening(channels, _is_not_settled) as acks:
        during = asyncio.create_task(waits(acks, LONG_SECONDS))
        await asyncio.sleep(0)
        await channels.publish("stored", commit())
        assert await during is Ack.STORED
        assert await waits(acks, LONG_SECONDS) is Ack.STORED


async def test_lost_publication_is_asked_for_within_a_wait_shorter_than_the_pause() -> None:
    async with listening(MemoryChannels(), _is_settled) as acks:
        assert await waits(acks, ASK_SECONDS_MAX / 2) is Ack.STORED


async def test_gap_in_the_publications_is_asked_about_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("coffee_rt.order_api.acks.ASK_SECONDS_MAX", LONG_SECONDS)
    channels = MemoryChannels()
    async with listening(channels, _is_settled) as acks:
        waiting = asyncio.create_task(waits(acks, 2 * LONG_SECONDS))
        await asyncio.sleep(0)
        channels.interrupt()
        assert await waiting is Ack.STORED


async def test_floors_of_another_timeline_make_nothing_visible() -> None:
    """A promoted PostgreSQL gives the transaction ids of lost commits again, below the floors known."""
    channels = MemoryChannels()
    async with listening(channels, _is_not_settled) as acks:
        await channels.publish("view:sales", folded("1.7.1", floor=1_000))
        await channels.publish("stored", commit(xid=900, lanes={"sales": [0]}, timeline="7.2"))
        assert await waits(acks, LONG_SECONDS) is Ack.STORED
        assert await acks.wait({POSITION}, Ack.VISIBLE, 0.05) is Ack.STORED
        await channels.publish("view:sales", folded("1.7.2", floor=900))
        assert await acks.wait({POSITION}, Ack.VISIBLE, 0.05) is Ack.STORED
        await channels.publish("view:sales", folded("1.7.2", floor=901))
        assert await acks.wait({POSITION}, Ack.VISIBLE, LONG_SECONDS) is Ack.VISIBLE


async def test_what_a_promotion_may_have_taken_back_is_asked_about_again() -> None:
    """PostgreSQL was promoted after the commit was heard: the log is set back for what the new one lacks."""
    async with listening(MemoryChannels(), _is_not_settled) as acks:
        acks.hear("view:sales", folded("1.7.1", floor=1))
        acks.hear("stored", commit(timeline="7.1"))
        assert await waits(acks, 0.05) is Ack.STORED
        acks.hear("view:sales", folded("1.7.2", floor=1))
        assert await waits(acks, 0.05) is Ack.LOGGED
        # Stored again, from the log.
        acks.hear("stored", commit(timeline="7.2"))
        assert await waits(acks, LONG_SECONDS) is Ack.STORED


async def test_log_that_hangs_makes_no_answer_late() -> None:
    async def hang(position: Position) -> bool:
        await asyncio.Event().wait()
        raise AssertionError

    async with listening(MemoryChannels(), hang) as acks:
        assert await waits(acks, 0.05) is Ack.LOGGED
