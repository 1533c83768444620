"""Who wants what of a channel, and how one frame reaches all who want the same. Pure.

Subscriptions that want the same (tenant, filter, id, kind of connection) form an audience and are sent the
same bytes. The in-sync ones are its members. One whose socket is congested leaves the members and becomes
lagging: it remembers only what it was last told (`seq`, `told`), so its outbox is bounded by nothing it does;
once its socket has drained it is sent the difference, the newest values only, and joins again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from coffee_rt.fanout import metrics
from coffee_rt.fanout.frames import Frame
from coffee_rt.fanout.protocol import Filter
from coffee_rt.fanout.sockets import Socket

if TYPE_CHECKING:
    from coffee_rt.fanout.channel import Channel
    from coffee_rt.fanout.session import Session

Versions = tuple[int, ...]


class Subscription:
    """One session's interest in one channel. Owned by the session; dropped with it."""

    __slots__ = (
        "audience",
        "channel",
        "filter",
        "id",
        "is_closed",
        "is_waiting",
        "parts",
        "seq",
        "session",
        "since",
        "socket",
        "tenant",
        "told",
    )

    def __init__(
        self,
        session: Session,
        channel: Channel,
        id_: int,
        tenant: int,
        wanted: Filter,
        since: int,
    ) -> None:
        self.session = session
        self.socket = session.socket
        self.channel = channel
        self.id = id_
        self.tenant = tenant
        self.filter = wanted
        self.since = since
        self.parts: deque[Frame] | None = None
        """Frames to send before any change: the rest of a snapshot."""
        self.seq = 0
        self.told: Versions = ()
        self.audience: Audience | None = None
        """Set while in sync."""
        self.is_waiting = False
        """Something is being loaded for it; it is sent nothing meanwhile."""
        self.is_closed = False

    def queue(self, frames: Iterable[Frame]) -> None:
        """Replace what was still to be sent."""
        self.parts = deque(frames)


class Audience:
    """Members that are sent the same bytes; `seq` and `told` are what all of them know at least."""

    __slots__ = ("encode", "filter", "id", "key", "members", "seq", "since_max", "tenant", "told")

    def __init__(self, subscription: Subscription, seq: int, told: Versions) -> None:
        self.key = key_of(subscription)
        self.tenant = subscription.tenant
        self.filter = subscription.filter
        self.id = subscription.id
        self.encode = subscription.socket.encode
        self.members: dict[Subscription, Socket] = {}
        self.seq = seq
        self.told = told
        self.since_max = 0
        """No member's `since` is later."""

    def broadcast(self, frame: Frame, members: dict[Subscription, Socket] | None = None) -> None:
        """Write a frame to all members (or those given) whose sockets take it; the others fall behind.

        The one loop whose cost is multiplied by every browser: no call in it but the write itself.
        """
        data = self.encode(frame)
        slow: list[Subscription] = []
        sent = 0
        for member, socket in (self.members if members is None else members).items():
            if socket.is_congested:
                slow.append(member)
            else:
                socket.write(data)
                sent += 1
        metrics.frames.labels(frame.type).inc(sent)
        metrics.frame_bytes.inc(sent * len(data))
        for member in slow:
            self.leave(member)
            member.session.lagging[member] = None

    def join(self, subscription: Subscription) -> None:
        self.members[subscription] = subscription.socket
        self.since_max = max(self.since_max, subscription.since)
        subscription.audience = self

    def leave(self, subscription: Subscription) -> None:
        """No longer in sync: from now on it knows what the audience knew."""
        self.members.pop(subscription, None)
        subscription.seq = self.seq
        subscription.told = self.told
        subscription.audience = None


def key_of(subscription: Subscription) -> tuple[Any, ...]:
    return (
        subscription.tenant,
        subscription.filter,
        subscription.id,
        type(subscription.socket),
    )
