"""Live updates between processes: at-most-once messages with small bodies, on named topics.

Nothing here is the truth: every message can be lost, late or doubled, and every receiver can repair
itself from PostgreSQL (versions, beacon, polling). `redis.py` and `memory.py` implement it.

Topics (bodies are JSON, see `messages.py`):
    view:{name}   a fold's changed rows, from the aggregator, after its commit
    beacon        every second: all lanes' newest versions of every view
    orders        the newest stored orders, from workers, after their commit, sampled
    stored        entries just committed: what `ack=stored` and the aggregator's poke listen to
    catalogue     the set of views changed
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol


class Subscription(Protocol):
    """An open subscription. One task iterates it; closing ends the iteration."""

    def __aiter__(self) -> AsyncIterator[tuple[str, bytes] | None]:
        """(topic, body) in order of arrival; None whenever messages may have been missed (reconnected,
        or the receive buffer overflowed), so that the reader repairs itself."""


class Channels(Protocol):
    """Publish and subscribe. Shared by all tasks of a process; owned by the wiring."""

    async def publish(self, topic: str, *bodies: bytes) -> None:
        """Best effort, in order, in one round trip; raises Retryable when nobody confirmed them. Publishing
        again does no harm."""

    def subscribe(self, *topics: str) -> AbstractAsyncContextManager[Subscription]:
        """Subscribed when the context is entered; where the server is away then, the subscription goes on
        trying and its first item is None. A topic ending in `*` matches by prefix."""

    async def close(self) -> None: ...
