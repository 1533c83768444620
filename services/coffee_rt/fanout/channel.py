"""A channel: one thing to subscribe to, with its audiences. Base of the views' and the orders' channels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any

from coffee_rt.fanout import metrics
from coffee_rt.fanout.frames import Frame
from coffee_rt.fanout.protocol import Resume
from coffee_rt.fanout.subscriptions import Audience, Subscription, Versions, key_of


class Channel(ABC):
    """Owned by the hub, which calls `flush` when something changed and `beat` every heartbeat."""

    name: str
    dimensions: tuple[str, ...]

    def __init__(self) -> None:
        self._audiences: dict[tuple[Any, ...], Audience] = {}
        self.subscriptions: dict[Subscription, None] = {}

    @property
    @abstractmethod
    def position(self) -> tuple[int, Versions]:
        """Where the channel is now: (seq, lane versions)."""

    @property
    @abstractmethod
    def is_changed(self) -> bool:
        """Whether there is anything to flush."""

    @abstractmethod
    def open(
        self, subscription: Subscription, resume: Resume | None
    ) -> Coroutine[Any, Any, None] | None:
        """Prepare what the subscription is sent first; a coroutine when that takes a load.

        Raises Rejected. The session sends whatever is ready afterwards."""

    @abstractmethod
    def flush(self) -> None:
        """Send what changed to all members."""

    @abstractmethod
    def beat(self) -> None:
        """Tell members what they were not told because nothing matched."""

    @abstractmethod
    def next_frame(self, subscription: Subscription) -> Frame | None:
        """The next frame of a subscription that is not in sync; None once it is (or waits for a load)."""

    def default_since(self, now: float) -> int:
        """Unix seconds a subscription that names none begins at."""
        return 0

    def check_since(self, since: int, now: float) -> int:
        """The start that is kept for a wish; equal for wishes that mean the same. Raises Rejected."""
        return 0

    def add(self, subscription: Subscription) -> None:
        self.subscriptions[subscription] = None
        metrics.subscriptions.inc()

    def drop(self, subscription: Subscription) -> None:
        """Forget a subscription, at once and for good; idempotent."""
        if subscription in self.subscriptions:
            del self.subscriptions[subscription]
            metrics.subscriptions.dec()
        self.part(subscription)
        subscription.is_closed = True
        subscription.parts = None

    def part(self, subscription: Subscription) -> None:
        """Take a subscription out of its audience."""
        audience = subscription.audience
        if audience is not None:
            audience.leave(subscription)
            if not audience.members:
                self._audiences.pop(audience.key, None)

    def part_all(self) -> None:
        """Take every subscription out of its audience, and forget the audiences."""
        for subscription in self.subscriptions:
            self.part(subscription)
        self._audiences.clear()

    def join(self, subscription: Subscription) -> None:
        """The subscription has been told everything up to now."""
        key = key_of(subscription)
        audience = self._audiences.get(key)
        if audience is None:
            audience = self._audiences[key] = Audience(subscription, *self.position)
        audience.join(subscription)

    def is_current(self, subscription: Subscription) -> bool:
        return (subscription.seq, subscription.told) == self.position

    def forget_empty_audiences(self) -> None:
        """Those whose last member fell behind rather than left."""
        for key in [key for key, audience in self._audiences.items() if not audience.members]:
            del self._audiences[key]
