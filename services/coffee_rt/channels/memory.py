"""Channels within one process, for tests and simulations, with the real ones' ways to fail at hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from coffee_rt.channels.mailbox import BYTES_MAX, MESSAGES_MAX, Mailbox
from coffee_rt.errors import Retryable


class MemoryChannels:
    """One bus: everyone who holds the same instance hears each other. Delivery is immediate, in order.

    `is_away` makes publishing fail and loses messages; `interrupt()` is a reconnect of every subscriber.
    """

    def __init__(self, *, messages_max: int = MESSAGES_MAX, bytes_max: int = BYTES_MAX) -> None:
        self.is_away = False
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._subscriptions: dict[Mailbox, tuple[frozenset[str], tuple[str, ...]]] = {}

    async def publish(self, topic: str, *bodies: bytes) -> None:
        if self.is_away:
            raise Retryable("the channels are away")
        for mailbox, (topics, prefixes) in self._subscriptions.items():
            if topic in topics or (prefixes and topic.startswith(prefixes)):
                for body in bodies:
                    self._deliver(mailbox, topic, body)

    def _deliver(self, mailbox: Mailbox, topic: str, body: bytes) -> None:
        """To one subscriber. A simulation loses, doubles and delays here."""
        mailbox.put(topic, body)

    @asynccontextmanager
    async def subscribe(self, *topics: str) -> AsyncIterator[Mailbox]:
        mailbox = Mailbox(self._messages_max, self._bytes_max)
        prefixes = tuple(topic[:-1] for topic in topics if topic.endswith("*"))
        exact = frozenset(topic for topic in topics if not topic.endswith("*"))
        self._subscriptions[mailbox] = (exact, prefixes)
        try:
            yield mailbox
        finally:
            del self._subscriptions[mailbox]
            mailbox.close()

    def interrupt(self) -> None:
        """Every subscription is told that it may have missed something."""
        for mailbox in self._subscriptions:
            mailbox.put_gap()

    async def close(self) -> None:
        for mailbox in self._subscriptions:
            mailbox.close()
