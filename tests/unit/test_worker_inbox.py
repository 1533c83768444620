"""A batch closes at N records, or T ms after its oldest, and takes what arrived meanwhile."""

from __future__ import annotations

import asyncio

from coffee_rt.runtime.clock import SystemClock
from coffee_rt.streams.contract import Delivery, EntryId
from coffee_rt.worker.inbox import PLENTY_RECORDS, Inbox


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


def wanted() -> asyncio.Event:
    """The main lane is idle."""
    event = asyncio.Event()
    event.set()
    return event


async def test_full_batch_is_taken_at_once_and_the_rest_waits() -> None:
    inbox = an_inbox()
    inbox.put(deliveries(4, records=3))
    inbox.put(deliveries(2, records=3, start=10))
    taken = await inbox.take(wanted())
    assert taken is not None
    assert [delivery.entry_id.ms for delivery in taken] == [1, 2, 3, 4]
    assert not inbox.is_full
    inbox.close()
    assert len(await inbox.take(wanted()) or []) == 2
    assert await inbox.take(wanted()) is None


async def test_bytes_close_a_batch_too() -> None:
    inbox = an_inbox(records_max=1000, bytes_max=50)
    inbox.put(deliveries(10, records=10))
    assert len(await inbox.take(wanted()) or []) == 5


async def test_small_batch_waits_for_its_linger() -> None:
    inbox = an_inbox(linger_seconds=0.03)
    loop = asyncio.get_running_loop()
    started = loop.time()
    inbox.put(deliveries(1))
    assert len(await inbox.take(wanted()) or []) == 1
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
    assert len(await inbox.take(wanted()) or []) == 6
    await reading


async def test_reader_that_hangs_does_not_hold_a_batch_back() -> None:
    inbox = an_inbox(linger_seconds=0.0)
    inbox.put(deliveries(1))
    gathering = inbox.round
    hanging = asyncio.create_task(gathering.wait_due())
    await asyncio.sleep(0)
    assert len(await inbox.take(wanted()) or []) == 1
    await hanging


async def test_full_inbox_makes_readers_wait_until_a_batch_is_taken() -> None:
    inbox = an_inbox()
    inbox.put(deliveries(10))
    waiting = asyncio.create_task(inbox.wait_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await inbox.take(wanted())
    await waiting


async def test_hurry_makes_everything_due() -> None:
    inbox = an_inbox()
    inbox.put(deliveries(1))
    inbox.hurry()
    assert len(await inbox.take(wanted()) or []) == 1
    await inbox.wait_room()


async def test_a_small_batch_waits_for_the_lane_and_gathers_meanwhile() -> None:
    inbox, idle = an_inbox(records_max=10_000, linger_seconds=0.0), asyncio.Event()
    inbox.put(deliveries(1))
    taking = asyncio.create_task(inbox.take(idle))
    await asyncio.sleep(0.01)
    assert not taking.done()
    inbox.put(deliveries(1, start=2))
    idle.set()
    taken = await asyncio.wait_for(taking, 5)
    assert taken is not None
    assert len(taken) == 2


async def test_a_batch_worth_it_is_taken_before_the_lane_is_idle() -> None:
    inbox = an_inbox(records_max=10_000, linger_seconds=0.0, bytes_max=10**9)
    inbox.put(deliveries(1, records=PLENTY_RECORDS))
    assert await asyncio.wait_for(inbox.take(asyncio.Event()), 5) is not None


async def test_a_reader_whose_entries_went_with_the_batch_before_reads_on() -> None:
    inbox = an_inbox(linger_seconds=0.0)
    one, two = deliveries(2)
    inbox.put([one])
    gathering = inbox.round
    sweeping = asyncio.create_task(gathering.wait_due())
    await asyncio.sleep(0)
    taking = asyncio.create_task(inbox.take(wanted()))
    await sweeping  # Due: the batch now waits for this reader's last look.
    inbox.put([two])
    early = asyncio.create_task(inbox.round.wait_due())
    await asyncio.sleep(0)
    gathering.leave()
    assert await taking == [one, two]
    await asyncio.wait_for(early, 5)
