"""One client's session, whatever carries it: what it asks for, and what it is sent next.

Nothing is queued for a session but a few control messages and the rest of a snapshot: changes it has not
been sent yet are looked up when its socket can take them (see `subscriptions`). So a slow browser costs no
memory and slows nobody, and is sent the newest values whenever it is ready for any.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from coffee_rt.errors import CoffeeRtError, Overload, Rejected
from coffee_rt.fanout import metrics
from coffee_rt.fanout.allowance import Allowance
from coffee_rt.fanout.channel import Channel
from coffee_rt.fanout.frames import Frame, message
from coffee_rt.fanout.protocol import (
    CLOSE_BAD_MESSAGE,
    CLOSE_NO_TOKEN,
    CLOSE_TOO_MANY,
    Hello,
    Ping,
    Subscribe,
    Unsubscribe,
    close_code_of,
    parse_filter,
    parse_message,
)
from coffee_rt.fanout.sockets import Socket
from coffee_rt.fanout.subscriptions import Subscription


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What one session may do."""

    subscriptions_max: int = 16
    messages_per_second: float = 20.0
    """Messages and WebSocket pings together."""
    messages_burst: int = 100
    outbox_frames_max: int = 256
    """Control messages waiting for a congested socket; past it the session is closed."""


class SessionHost(Protocol):
    """What a session needs of the hub."""

    @property
    def channels(self) -> Mapping[str, Channel]: ...
    @property
    def is_listed(self) -> bool:
        """Whether `channels` is complete."""

    @property
    def limits(self) -> SessionLimits: ...
    def now(self) -> float: ...
    def monotonic(self) -> float: ...
    def run_work(self, work: Coroutine[Any, Any, None]) -> None:
        """In the background."""

    def authorize(self, token: str | None) -> int:
        """The tenant a token may read. Raises Rejected or Overload."""

    def enter(self, token: str | None) -> int:
        """The same for a session that is counted as one of its key's from now on, until it is forgotten."""

    def welcome(self, session: Session) -> Frame: ...
    def forget(self, session: Session) -> None: ...


class Session:
    """Owned by the hub from `hub.open` until the adapter calls `on_closed`. One event loop only."""

    __slots__ = (
        "_allowance",
        "_host",
        "_outbox",
        "heard_at",
        "id",
        "is_closed",
        "kind",
        "lagging",
        "opened_at",
        "socket",
        "subscriptions",
        "tenant",
        "token",
    )

    def __init__(self, host: SessionHost, socket: Socket, id_: str, kind: str) -> None:
        self._host = host
        self.socket = socket
        self.id = id_
        self.kind = kind
        self.tenant: int | None = None
        """None until the session has shown a token (or needs none)."""
        self.token: str | None = None
        self.opened_at = host.monotonic()
        self.heard_at = self.opened_at
        self.subscriptions: dict[int, Subscription] = {}
        self.lagging: dict[Subscription, None] = {}
        """Subscriptions that are not in sync, in the order they are served."""
        self.is_closed = False
        self._outbox: deque[Frame] | None = None
        limits = host.limits
        self._allowance = Allowance(
            limits.messages_per_second, limits.messages_burst, self.opened_at
        )

    def admit(self, tenant: int, token: str | None = None) -> None:
        """The session, which has entered, may read a tenant's data from now on; it is welcomed."""
        self.tenant = tenant
        self.token = token
        self.send(self._host.welcome(self))

    def recheck(self) -> None:
        """Ask again whether the token may read: keys have changed since. Keys that can't be checked now
        (PostgreSQL is away) end no session."""
        if self.token is None or self.is_closed:
            return
        try:
            if self._host.authorize(self.token) != self.tenant:
                raise Rejected("bad-api-key", "The API key is another tenant's now.", status=401)
        except Rejected as error:
            self.fail(error)
        except CoffeeRtError:
            return

    def on_message(self, text: bytes) -> None:
        """A message of the client."""
        if not self.on_activity():
            return
        try:
            received = parse_message(text)
            if isinstance(received, Ping):
                self.send(message("pong", at=received.at))
            elif isinstance(received, Hello):
                self._greet(received)
            elif self.tenant is None:
                self.close(CLOSE_NO_TOKEN, "say hello first")
            elif isinstance(received, Subscribe):
                self._subscribe(received, self.tenant)
            else:
                self._unsubscribe(received)
        except Rejected as error:
            self._tell(None, error.code, str(error))
            self.close(CLOSE_BAD_MESSAGE, "bad message")

    def on_activity(self) -> bool:
        """Count a message or ping; False when the session was closed for sending too many."""
        self.heard_at = self._host.monotonic()
        if not self._allowance.take(self.heard_at):
            self.close(CLOSE_TOO_MANY, "too many messages")
        return not self.is_closed

    def on_writable(self) -> None:
        """The socket has drained."""
        self.pump()

    def on_closed(self) -> None:
        """The connection is gone; idempotent."""
        self.is_closed = True
        for subscription in self.subscriptions.values():
            subscription.channel.drop(subscription)
        self.subscriptions.clear()
        self.lagging.clear()
        self._outbox = None
        self._host.forget(self)

    def on_ready(self, subscription: Subscription) -> None:
        """What a subscription waited for has been loaded."""
        if not subscription.is_closed:
            self.lagging[subscription] = None
            self.pump()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self._host.run_work(work)

    def send(self, frame: Frame) -> None:
        """A control message: before any change that is not written yet."""
        if self.is_closed:
            return
        if self._outbox is None and not self.socket.is_congested:
            self._write(frame)
            return
        if self._outbox is None:
            self._outbox = deque()
        self._outbox.append(frame)
        if len(self._outbox) > self._host.limits.outbox_frames_max:
            self.close(CLOSE_TOO_MANY, "too slow")

    def pump(self) -> None:
        """Write what is due until the socket is congested or everything is in sync."""
        while not self.is_closed and not self.socket.is_congested:
            if self._outbox:
                self._write(self._outbox.popleft())
                continue
            self._outbox = None
            if not self._pump_subscription():
                return

    def _pump_subscription(self) -> bool:
        """Write one frame of the first subscription that has one; False when none has."""
        for subscription in list(self.lagging):
            frame = subscription.channel.next_frame(subscription)
            if frame is not None:
                self._write(frame)
                # To the end of the queue: a large snapshot must not starve the others.
                if self.lagging.pop(subscription, self) is None:
                    self.lagging[subscription] = None
                return True
            self.lagging.pop(subscription, None)
        return False

    def replace(self, old: Subscription, new: Subscription, reason: str) -> None:
        """Go on with another subscription under the same id, from a snapshot."""
        self.lagging.pop(old, None)
        self.subscriptions[new.id] = new
        new.channel.add(new)
        metrics.resets.labels(reason).inc()
        self.send(message("reset", id=new.id, reason=reason))
        work = new.channel.open(new, None)
        if work is not None:
            self.run(work)
        self.lagging[new] = None
        self.pump()

    def refuse(self, id_: int, code: str, detail: str) -> None:
        """End a subscription that can't be served, and say so; the session goes on."""
        self._drop(id_)
        self._tell(id_, code, detail)

    def close(self, code: int, reason: str) -> None:
        if not self.is_closed:
            metrics.closed.labels(str(code)).inc()
            self.socket.close(code, reason)
            self.on_closed()

    def _write(self, frame: Frame) -> None:
        data = self.socket.encode(frame)
        self.socket.write(data)
        metrics.frames.labels(frame.type).inc()
        metrics.frame_bytes.inc(len(data))

    def _greet(self, hello: Hello) -> None:
        if self.tenant is not None:
            return
        try:
            self.admit(self._host.enter(hello.token), hello.token)
        except CoffeeRtError as error:
            self.fail(error)

    def fail(self, error: CoffeeRtError) -> None:
        """Refuse the session for what checking its token gave."""
        code = error.code if isinstance(error, Rejected | Overload) else "unavailable"
        closing = close_code_of(error)
        if closing != CLOSE_TOO_MANY:
            # Else the limit has counted it, by its own name.
            metrics.refused.labels("token").inc()
        self._tell(None, code, str(error))
        self.close(closing, code)

    def _subscribe(self, wish: Subscribe, tenant: int) -> None:
        try:
            subscription = self._plan(wish, tenant)
        except Rejected as error:
            metrics.refused.labels("subscription").inc()
            self._tell(wish.id, error.code, str(error))
            return
        # The same id again replaces the subscription: that is how a client repairs a gap.
        self._drop(wish.id)
        self.subscriptions[wish.id] = subscription
        subscription.channel.add(subscription)
        work = subscription.channel.open(subscription, wish.resume)
        if work is not None:
            self.run(work)
        self.lagging[subscription] = None
        self.pump()

    def _plan(self, wish: Subscribe, tenant: int) -> Subscription:
        """Raises Rejected when the wish can't be met."""
        limit = self._host.limits.subscriptions_max
        if wish.id not in self.subscriptions and len(self.subscriptions) >= limit:
            raise Rejected("too-many-subscriptions", f"at most {limit} a session", status=429)
        channel = self._host.channels.get(wish.channel)
        if channel is None and not self._host.is_listed:
            raise Rejected("loading", "the views are not loaded yet: try again", "/channel", 503)
        if channel is None:
            known = ", ".join(sorted(self._host.channels))
            raise Rejected("unknown-view", f"no such channel; known: {known}", "/channel", 404)
        wanted = parse_filter(wish.filter, channel.dimensions)
        now = self._host.now()
        since = channel.default_since(now) if wish.since is None else wish.since
        return Subscription(self, channel, wish.id, tenant, wanted, channel.check_since(since, now))

    def _unsubscribe(self, wish: Unsubscribe) -> None:
        self._drop(wish.id)

    def _drop(self, id_: int) -> None:
        subscription = self.subscriptions.pop(id_, None)
        if subscription is not None:
            subscription.channel.drop(subscription)
            self.lagging.pop(subscription, None)

    def _tell(self, id_: int | None, code: str, detail: str) -> None:
        if id_ is None:
            self.send(message("error", code=code, detail=detail))
        else:
            self.send(message("error", id=id_, code=code, detail=detail))
