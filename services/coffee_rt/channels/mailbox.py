"""What a subscription has received and its reader has not yet taken: bounded, and honest about loss.

Past its bounds a mailbox throws away everything it holds and leaves one None in its place. The reader
then repairs itself from PostgreSQL, which costs less than working through a backlog of stale messages.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from coffee_rt.channels.metrics import dropped_messages

MESSAGES_MAX = 20_000
"""A few seconds of the busiest topics. Larger only delays the repair of a reader that is stuck."""
BYTES_MAX = 32 * 1024 * 1024
"""Keeps a process whose reader is stuck below its memory limit."""


class Mailbox:
    """An open subscription's buffer. One writer and one reader task; lives as long as the subscription.

    Cancelling a waiting reader loses nothing.
    """

    def __init__(self, messages_max: int = MESSAGES_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._items: deque[tuple[str, bytes] | None] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._is_closed = False

    def put(self, topic: str, body: bytes) -> None:
        """Add a message, or trade everything for one None where it would pass a bound."""
        if len(self._items) >= self._messages_max or self._bytes + len(body) > self._bytes_max:
            dropped_messages.inc(len(self._items) + 1)
            self._items.clear()
            self._bytes = 0
            self.put_gap()
            return
        self._items.append((topic, body))
        self._bytes += len(body)
        self._arrived.set()

    def put_gap(self) -> None:
        """Say that messages may have been missed here; two gaps in a row are one."""
        if not self._items or self._items[-1] is not None:
            self._items.append(None)
        self._arrived.set()

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def close(self) -> None:
        """End the iteration; what is still inside is not read any more."""
        self._is_closed = True
        self._arrived.set()

    def __aiter__(self) -> AsyncIterator[tuple[str, bytes] | None]:
        return self

    async def __anext__(self) -> tuple[str, bytes] | None:
        while not self._is_closed:
            if self._items:
                item = self._items.popleft()
                if item is not None:
                    self._bytes -= len(item[1])
                return item
            self._arrived.clear()
            await self._arrived.wait()
        raise StopAsyncIteration
