"""Reading one's own writes: wait until the entry at a position is stored."""

from __future__ import annotations

from coffee_rt.runtime.clock import Clock
from coffee_rt.store.contract import OrderReader
from coffee_rt.streams.contract import Position

POLL_SECONDS = 0.01


async def wait_until_stored(
    reader: OrderReader, position: Position, wait_seconds: float, clock: Clock
) -> bool:
    """Whether the primary has the position's entry, asked until it does or the wait is over."""
    deadline = clock.monotonic() + wait_seconds
    pause = POLL_SECONDS
    while not await reader.is_entry_stored(position.shard, position.batch_id):
        left = deadline - clock.monotonic()
        if left <= 0:
            return False
        await clock.sleep(min(pause, left))
        pause = min(pause * 2, 0.1)
    return True
