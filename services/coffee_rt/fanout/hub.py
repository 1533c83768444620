"""The heart of fanout: hears what changed, keeps each view's recent rows, and tells every session.

Subscribes first, then loads, then applies what is newer: nothing falls between. Whatever a message says is
checked against versions, so each may be lost, late or doubled. Knows no Redis, no picows and no wall clock:
the wiring brings them, a simulation brings others.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import msgspec

from coffee_rt.channels.contract import Channels
from coffee_rt.channels.messages import (
    ViewChange,
    decode_beacon,
    decode_recent_orders,
    decode_view_change,
)
from coffee_rt.errors import Bug, CoffeeRtError, Retryable
from coffee_rt.fanout import metrics
from coffee_rt.fanout.authority import KeySessions
from coffee_rt.fanout.beacons import (
    SILENCE_SECONDS,
    Heard,
    heard_in_beacon,
    heard_in_poll,
)
from coffee_rt.fanout.channel import Channel
from coffee_rt.fanout.contract import (
    Catalogue,
    LaneVersions,
    RecentOrderReader,
    SnapshotReader,
)
from coffee_rt.fanout.frames import Frame, message
from coffee_rt.fanout.orders_channel import OrdersChannel
from coffee_rt.fanout.protocol import CLOSE_DRAIN, CLOSE_NO_TOKEN
from coffee_rt.fanout.recent_orders import OrdersLoader
from coffee_rt.fanout.rows import Verdict
from coffee_rt.fanout.session import Session, SessionLimits
from coffee_rt.fanout.sockets import Socket
from coffee_rt.fanout.view_channel import ViewLimits
from coffee_rt.fanout.view_channels import ViewChannels
from coffee_rt.runtime.clock import Clock

REST_SHARE = 0.1
"""Rest after a round of sending, by the time it took. Larger: fewer frames under full load; smaller: publications
queue up for longer."""


@dataclass(frozen=True, slots=True)
class HubLimits:
    """Pace and bounds of the whole process."""

    view: ViewLimits = field(default_factory=ViewLimits)
    session: SessionLimits = field(default_factory=SessionLimits)
    frame_interval_seconds: float = 0.01
    """At most one frame a channel in so long. Smaller: fresher by milliseconds, more frames."""
    linger_seconds: float = 0.002
    """Publications of one commit's lanes that arrive this close together travel in one frame."""
    heartbeat_seconds: float = 2.0
    hello_seconds_max: float = 5.0
    drain_seconds: float = 5.0
    """Over so long sessions are closed and told to come back elsewhere."""


WATCH_SECONDS = 0.25
HOUSEKEEPING_SECONDS = 60.0
DRAIN_STEPS = 20


class Hub:
    """Owned by the wiring, which runs `run` and gives it sessions by `open`. One event loop only.

    `authorize` names the tenant a token may read (or raises); `needs_token` is false where keys are off.
    """

    def __init__(
        self,
        *,
        messages: Channels,
        catalogue: Catalogue,
        reader: SnapshotReader,
        orders: RecentOrderReader,
        versions: LaneVersions,
        authorize: Callable[[str | None], int],
        needs_token: bool,
        clock: Clock,
        decimals: int = 2,
        limits: HubLimits | None = None,
        key_sessions: KeySessions | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
        on_health: Callable[[bool, str], None] = lambda is_ready, detail: None,
    ) -> None:
        self.hub_limits = limits or HubLimits()
        self.authorize = authorize
        self.key_sessions = key_sessions or KeySessions()
        self.is_draining = False
        self._messages = messages
        self._versions = versions
        self._needs_token = needs_token
        self._clock = clock
        self._uniform = uniform
        self._on_health = on_health
        self._tasks: asyncio.TaskGroup | None = None
        self._sessions: dict[Session, None] = {}
        self._unknown: dict[Session, None] = {}
        self._session_number = 0
        self._listeners: list[Callable[[], None]] = []
        self._dirty = asyncio.Event()
        self._beacon_at = self._news_at = clock.monotonic()
        self._is_poll_wanted = False
        self._is_refresh_wanted = True
        self.views = ViewChannels(
            catalogue=catalogue,
            reader=reader,
            clock=clock,
            uniform=uniform,
            limits=self.hub_limits.view,
            decimals=decimals,
            start=self._start,
            on_loaded=self._on_loaded,
            on_other_shape=self._want_refresh,
        )
        self.orders = OrdersChannel()
        self._orders_loader = OrdersLoader(self.orders, orders, clock, decimals, self._on_loaded)
        self.orders.loader = self._orders_loader

    # What sessions need (SessionHost).

    @property
    def channels(self) -> dict[str, Channel]:
        channels: dict[str, Channel] = {
            channel.name: channel for channel in self.views.channels.values()
        }
        channels[self.orders.name] = self.orders
        return channels

    @property
    def is_listed(self) -> bool:
        return self.views.is_listed

    @property
    def limits(self) -> SessionLimits:
        return self.hub_limits.session

    def now(self) -> float:
        return self._clock.now()

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def run_work(self, work: Coroutine[Any, Any, None]) -> None:
        self._start(work)

    def enter(self, token: str | None) -> int:
        tenant = self.authorize(token)
        self.key_sessions.enter(token)
        return tenant

    def welcome(self, session: Session) -> Frame:
        self._unknown.pop(session, None)
        return message(
            "welcome",
            session=session.id,
            heartbeat_seconds=self.hub_limits.heartbeat_seconds,
            server_ms=int(self._clock.now() * 1000),
        )

    def forget(self, session: Session) -> None:
        if session in self._sessions:
            del self._sessions[session]
            metrics.sessions.labels(session.kind).dec()
            if session.tenant is not None:
                self.key_sessions.leave(session.token)
        self._unknown.pop(session, None)

    # What adapters need.

    @property
    def session_count(self) -> int:
        return len(self._sessions)

    def open(self, socket: Socket, kind: str, token: str | None = None) -> Session:
        """A session for a new connection. With a token (or where none is needed) it is welcomed at once,
        else it must say hello in time."""
        self._session_number += 1
        session = Session(self, socket, f"{self._session_number:x}", kind)
        self._sessions[session] = None
        metrics.sessions.labels(kind).inc()
        if token is None and self._needs_token:
            self._unknown[session] = None
            return session
        try:
            session.admit(self.enter(token), token)
        except CoffeeRtError as error:
            session.fail(error)
        return session

    def recheck_keys(self) -> None:
        """Keys have changed: sessions of those that are no longer valid end."""
        for session in list(self._sessions):
            session.recheck()

    def listen(self, on_change: Callable[[], None]) -> None:
        """Call `on_change` after every flush (the dashboard's feed recomputes then)."""
        self._listeners.append(on_change)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with (
            self._messages.subscribe("view:*", "beacon", "orders", "catalogue") as subscription,
            asyncio.TaskGroup() as tasks,
        ):
            self._tasks = tasks
            for work in (self._watch(), self._flush(), self._beat(), self._orders_loader.run()):
                self._start(work)
            async for item in subscription:
                self._on_item(item)

    async def drain(self) -> None:
        """Send every session away, spread over `drain_seconds`: told at once, closed bit by bit."""
        self.is_draining = True
        self._on_health(False, "draining")
        seconds = self.hub_limits.drain_seconds
        sessions = list(self._sessions)
        for session in sessions:
            session.send(message("drain", retry_after_ms=int(self._uniform(0, seconds) * 1000)))
        for step in range(min(DRAIN_STEPS, len(sessions))):
            await self._clock.sleep(seconds / DRAIN_STEPS)
            for session in sessions[step::DRAIN_STEPS]:
                session.close(CLOSE_DRAIN, "restart")

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        if self._tasks is None:
            raise Bug("the hub is not running")
        return self._tasks.create_task(work)

    def _on_loaded(self) -> None:
        self._dirty.set()
        if not self.is_draining:
            is_ready = self.views.is_loaded
            self._on_health(is_ready, "" if is_ready else "loading views")

    def _want_refresh(self) -> None:
        self._is_refresh_wanted = True

    def _on_item(self, item: tuple[str, bytes] | None) -> None:
        if item is None:
            self._on_missed()
            return
        topic, body = item
        try:
            if topic == "beacon":
                self._beacon_at = self._clock.monotonic()
                self._hear(heard_in_beacon(decode_beacon(body)))
                self._news_at = self._beacon_at
            elif topic == "orders":
                self.orders.apply(decode_recent_orders(body).orders)
                self._dirty.set()
            elif topic == "catalogue":
                self._is_refresh_wanted = True
            else:
                self._on_change(decode_view_change(body))
        except (msgspec.DecodeError, KeyError, TypeError, ValueError, OverflowError):
            # Anybody who can publish could send it; what it meant to say, the beacon repeats.
            metrics.publications.labels("bad").inc()

    def _on_missed(self) -> None:
        self._is_poll_wanted = True
        self._is_refresh_wanted = True
        for tenant in self.orders.tenants:
            self._orders_loader.request_orders(tenant)

    def _on_change(self, change: ViewChange) -> None:
        channel = self.views.channels.get(change.view)
        if channel is None:
            self._is_refresh_wanted = True
            return
        verdict = channel.apply(change)
        metrics.publications.labels(verdict.value).inc()
        if change.newest_at_ms:
            age = self._clock.now() - change.newest_at_ms / 1000
            metrics.publication_age_seconds.observe(max(0.0, age))
        if verdict is Verdict.APPLIED:
            self._dirty.set()
        elif verdict is Verdict.OTHER_EPOCH:
            self.views.repair(change.view).request_view()
        elif verdict is not Verdict.STALE:
            self.views.repair(change.view).request_lanes(is_urgent=verdict is Verdict.RELOAD)

    def _hear(self, heard: Heard) -> None:
        if self.views.hear(heard):
            self._is_refresh_wanted = True

    async def _watch(self) -> None:
        """Whatever is due by time: the catalogue, silence of the beacon, hellos, old rows."""
        kept_at = self._clock.monotonic()
        while True:
            if self._is_refresh_wanted:
                await self._refresh()
            if self._is_poll_wanted or self._silence() > SILENCE_SECONDS:
                await self._poll()
            if self._clock.monotonic() - kept_at > HOUSEKEEPING_SECONDS:
                kept_at = self._clock.monotonic()
                self._is_refresh_wanted = True
                self.views.prune()
            self._expire_hellos()
            await self._clock.sleep(WATCH_SECONDS)

    def _silence(self) -> float:
        return self._clock.monotonic() - self._beacon_at

    def _expire_hellos(self) -> None:
        latest = self._clock.monotonic() - self.hub_limits.hello_seconds_max
        for session in [session for session in self._unknown if session.opened_at < latest]:
            session.close(CLOSE_NO_TOKEN, "no token in time")

    async def _refresh(self) -> None:
        self._is_refresh_wanted = False
        try:
            await self.views.refresh()
        except Retryable:
            metrics.reload_failures.inc()
            self._is_refresh_wanted = True

    async def _poll(self) -> None:
        """Ask PostgreSQL for what the beacon would have said."""
        is_silent = self._silence() > SILENCE_SECONDS
        self._is_poll_wanted = False
        if is_silent:
            metrics.beacon_silences.inc()
        try:
            epochs, lanes = await self._versions.lane_versions()
        except Retryable:
            metrics.reload_failures.inc()
            self._is_poll_wanted = not is_silent
        else:
            metrics.reloads.labels("poll").inc()
            self._hear(heard_in_poll(epochs, lanes))
            self._news_at = self._clock.monotonic()
        if is_silent:
            # As if a beacon had come: the next poll is a silence away, at random so pods spread.
            spread = self._uniform(0.0, 1.0)
            self._beacon_at = self._clock.monotonic() - spread

    async def _flush(self) -> None:
        """Send what changed: at once in a channel that rested, else at most once in an interval; with a
        rest after each round, in which publications are heard and sessions come and go."""
        flushed_at: dict[str, float] = {}
        took = 0.0
        while True:
            await self._dirty.wait()
            await self._clock.sleep(max(self.hub_limits.linger_seconds, REST_SHARE * took))
            self._dirty.clear()
            began = self._clock.monotonic()
            due_before = began - self.hub_limits.frame_interval_seconds
            # Each channel at its own pace: the ticker, heard first, must not make the views wait.
            for channel in self.channels.values():
                if not channel.is_changed:
                    continue
                if flushed_at.get(channel.name, due_before) > due_before:
                    self._dirty.set()  # Looked at again after the linger.
                    continue
                flushed_at[channel.name] = began
                channel.flush()
            took = self._clock.monotonic() - began
            metrics.flush_seconds.observe(took)
            for on_change in self._listeners:
                on_change()

    async def _beat(self) -> None:
        """Heartbeats: a browser cannot see pings, so it is told that the silence is not a dead line."""
        while True:
            await self._clock.sleep(self.hub_limits.heartbeat_seconds)
            for channel in self.channels.values():
                channel.beat()
            news_ms = int((self._clock.monotonic() - self._news_at) * 1000)
            frame = message("heartbeat", at_ms=int(self._clock.now() * 1000), news_ms=news_ms)
            lagging = 0
            for session in list(self._sessions):
                lagging += len(session.lagging)
                if session.tenant is not None and not session.socket.is_congested:
                    session.socket.write(session.socket.encode(frame))
            metrics.lagging.set(lagging)
