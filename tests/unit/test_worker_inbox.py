"""A batch closes at N records, or T ms after its oldest, and takes what arrived meanwhile."""

from __future__ import annotations

import asyncio

from coffee_rt.runtime.clock import SystemClock
from coffee_rt.streams.contract import Delivery, EntryId
from coffee_rt.worker.inbox import Inbox


def deliveries(count: int, records: int = 1, start: int = 1) -> list[Delivery]:
    return [
        Delivery(0, EntryId(start + i, 0), 1, bytes(16), 1, records, b"x" * records, 1, 1)
        for i in range(count)
    ]


def an_inbox(records_max: int = 10, linger_seconds: float = 60.0, bytes_max: int = 10**6) -> Inbox:
    return Inbox(
        SystemClock(),
        records_max=records_max,
        bytes_max=bytes_max,
        linger_seconds=linger_seconds,
    )


async def test_full_batch_is_taken_at_once_and_the_rest_waits() -> None:
    inbox = an_inbox()
    inbox.put(deliveries(4, records=3))
    inbox.put(deliveries(2, records=3, start=10))
    taken = await inbox.take()
    assert taken is not None
    assert [delivery.entry_id.ms for delivery in taken] == [1, 2, 3, 4]
    assert not inbox.is_full
    inbox.close()
    assert len(await inbox.take() or []) == 2
    assert await inbox.take() is None


async def test_bytes_close_a_batch_too() -> None:
    inbox = an_inbox(records_max=1000, bytes_max=50)
    inbox.put(deliveries(10, records=10))
    assert len(await inbox.take() or []) == 5


async def test_small_batch_waits_for_its_linger() -> None:
    inbox = an_inbox(linger_seconds=0.03)
    loop = asyncio.get_running_loop()
    started = loop.time()
    inbox.put(deliveries(1))
    assert len(await inbox.take() or []) == 1
    assert loop.time() - started >= 0.029


async def test_readers_look_once_more_before_a_batch_is_taken() -> None:
    inbox = an_inbox(linger_seconds=0.01)
    inbox.put(deliveries(1))
    gathering = inbox.round

    async def read_again() -> None:
        await gathering.wait_due()
        inbox.put(deliveries(5, start=10))
        gathering.leave()

    reading = asyncio.create_task(read_again())
    assert len(await inbox.take() or []) == 6
    await reading


async def test_reader_that_hangs_does_not_hold_a_batch_back() -> None:
    inbox = an_inbox(linger_seconds=0.0)
    inbox.put(deliveries(1))
    gathering = inbox.round
    hanging = asyncio.create_task(gathering.wait_due())
    await asyncio.sleep(0)
    assert len(await inbox.take() or []) == 1
    await hanging


async def test_full_inbox_makes_readers_wait_until_a_batch_is_taken() -> None:
    inbox = an_inbox()
    inbox.put(deliveries(10))
    waiting = asyncio.create_task(inbox.wait_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await inbox.take()
    await waiting


async def test_hurry_makes_everything_due() -> None:
    inbox = an_inbox()
    inbox.put(deliveries(1))
    inbox.hurry()
    assert len(await inbox.take() or []) == 1
    await inbox.wait_room()
