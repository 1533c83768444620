"""WebSocket `/ws/dashboard` for clients of the published coffee-rt: the whole dashboard object as one text
frame, at once after connecting and then whenever something changed, at most once a second.

Computed once for all sockets of a tenant, from the views (PostgreSQL), and only while somebody looks.
"""

from __future__ import annotations

import asyncio
from typing import Any

from coffee_rt.domain.dashboard import (
    RECENT_ORDERS,
    TOP_DRINKS_DAYS,
    build_dashboard,
    choose_view,
    measure_name,
)
from coffee_rt.domain.views import Aggregate, Field, ViewDefinition
from coffee_rt.errors import CoffeeRtError, Overload, Rejected, Retryable
from coffee_rt.fanout import metrics
from coffee_rt.fanout.allowance import Allowance
from coffee_rt.fanout.contract import RecentOrderReader, ViewQueries
from coffee_rt.fanout.frames import Frame, encode
from coffee_rt.fanout.hub import Hub
from coffee_rt.fanout.protocol import CLOSE_DRAIN, CLOSE_POLICY, CLOSE_TOO_MANY, close_code_of
from coffee_rt.fanout.sockets import Socket
from coffee_rt.runtime.clock import Clock
from coffee_rt.store.view_contract import ViewQuery

INTERVAL_SECONDS = 1.0
IDLE_SECONDS_MAX = 30.0
"""Sent again after so long without a change too: the published one did, and the hour moves on."""
DRINKS_MAX = 10_000


class DashboardSession:
    """One socket; it listens to nothing the client says, and only so often."""

    __slots__ = ("_allowance", "_feed", "_sent", "is_closed", "socket", "tenant", "token")

    def __init__(
        self, feed: DashboardFeed, socket: Socket, tenant: int, token: str | None = None
    ) -> None:
        self._feed = feed
        self._allowance = feed.allowance()
        self.socket = socket
        self.tenant = tenant
        self.token = token
        self.is_closed = False
        self._sent: Frame | None = None

    def show(self, frame: Frame) -> None:
        """Send a frame unless it was the last one; a congested socket gets the newest later."""
        if not self.socket.is_congested and frame is not self._sent and not self.is_closed:
            self._sent = frame
            self.socket.write(self.socket.encode(frame))
            metrics.frames.labels("dashboard").inc()

    def on_message(self, text: bytes) -> None:
        """Clients of this route say nothing; what they say is ignored, and counted."""
        self.on_activity()

    def on_activity(self) -> bool:
        if not self._allowance.take(self._feed.monotonic()):
            self.close(CLOSE_TOO_MANY, "too many messages")
        return not self.is_closed

    def on_writable(self) -> None:
        self._feed.show_newest(self)

    def on_closed(self) -> None:
        self.is_closed = True
        self._feed.forget(self)

    def close(self, code: int, reason: str) -> None:
        if not self.is_closed:
            self.socket.close(code, reason)
            self.on_closed()


class DashboardFeed:
    """Owned by the wiring, which runs `run`. Whom the hub lets in may look."""

    def __init__(
        self,
        hub: Hub,
        *,
        reader: ViewQueries,
        orders: RecentOrderReader,
        clock: Clock,
        decimals: int,
    ) -> None:
        self._hub = hub
        self._reader = reader
        self._orders = orders
        self._clock = clock
        self._decimals = decimals
        self._sessions: dict[int, dict[DashboardSession, None]] = {}
        self._newest: dict[int, tuple[float, dict[str, Any], Frame]] = {}
        self._is_changed = True
        self._wake = asyncio.Event()
        hub.listen(self._on_change)

    def open(self, socket: Socket, token: str | None) -> DashboardSession:
        """A session for a new connection; it is sent the newest object at once, or as soon as there is one."""
        try:
            tenant = self._hub.enter(token)
        except CoffeeRtError as error:
            session = DashboardSession(self, socket, -1)
            reason = error.code if isinstance(error, Rejected | Overload) else "away"
            session.close(close_code_of(error), reason)
            return session
        session = DashboardSession(self, socket, tenant, token)
        self._sessions.setdefault(tenant, {})[session] = None
        metrics.sessions.labels("dashboard").inc()
        self.show_newest(session)
        self._wake.set()
        return session

    def forget(self, session: DashboardSession) -> None:
        sessions = self._sessions.get(session.tenant, {})
        if session in sessions:
            del sessions[session]
            metrics.sessions.labels("dashboard").dec()
            self._hub.key_sessions.leave(session.token)
            if not sessions:
                del self._sessions[session.tenant]
                self._newest.pop(session.tenant, None)

    def show_newest(self, session: DashboardSession) -> None:
        newest = self._newest.get(session.tenant)
        if newest is not None:
            session.show(newest[2])

    def allowance(self) -> Allowance:
        """What one of its sessions may say."""
        limits = self._hub.limits
        return Allowance(limits.messages_per_second, limits.messages_burst, self._clock.monotonic())

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def recheck_keys(self) -> None:
        """Keys have changed: sessions of those that are no longer valid end."""
        for sessions in list(self._sessions.values()):
            for session in list(sessions):
                self._recheck(session)

    def _recheck(self, session: DashboardSession) -> None:
        if session.token is None:
            return
        try:
            is_valid = self._hub.authorize(session.token) == session.tenant
        except Rejected:
            is_valid = False
        except CoffeeRtError:
            return
        if not is_valid:
            session.close(CLOSE_POLICY, "bad-api-key")

    def close(self) -> None:
        """Send all sessions away."""
        for sessions in list(self._sessions.values()):
            for session in list(sessions):
                session.close(CLOSE_DRAIN, "restart")

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            is_changed, self._is_changed = self._is_changed, False
            for tenant in list(self._sessions):
                await self._refresh(tenant, is_changed)
            await self._clock.sleep(INTERVAL_SECONDS)
            if self._sessions:
                self._wake.set()

    def _on_change(self) -> None:
        self._is_changed = True

    async def _refresh(self, tenant: int, is_changed: bool) -> None:
        """Compute a tenant's object where that may give another one, and send it."""
        now = self._clock.now()
        known = self._newest.get(tenant)
        is_due = known is None or now - known[0] >= IDLE_SECONDS_MAX
        if not is_changed and not is_due:
            return
        try:
            body = await self._compute(tenant, now)
        except Retryable:
            metrics.reload_failures.inc()
            self._is_changed = True
            return
        except Rejected:
            # The view is just being replaced: next second there is another.
            self._is_changed = True
            return
        if known is not None and not is_due and _is_same(known[1], body):
            return
        frame = Frame("dashboard", encode(body))
        sessions = self._sessions.get(tenant)
        if sessions is None:
            return
        self._newest[tenant] = (now, body, frame)
        for session in list(sessions):
            session.show(frame)

    async def _compute(self, tenant: int, now: float) -> dict[str, Any]:
        definitions = [channel.rows.definition for channel in self._hub.views.channels.values()]
        view = choose_view(definitions, ["drink"], 3600)
        hour = int(now) // 3600 * 3600
        month = hour - TOP_DRINKS_DAYS * 86400
        recent = await self._orders.recent_orders(tenant, RECENT_ORDERS)
        return build_dashboard(
            now_us=int(now * 1_000_000),
            decimals=self._decimals,
            hour_drinks=await self._drinks(view, tenant, hour, hour + 3600),
            month_drinks=await self._drinks(view, tenant, month, hour + 3600),
            recent=[stored.order for stored in recent],
        )

    async def _drinks(
        self, view: ViewDefinition | None, tenant: int, start: int, end: int
    ) -> list[dict[str, Any]]:
        """Drinks of a span, best first, as {"drink", "orders", "revenue"}."""
        if view is None:
            return []
        orders = measure_name(view, Aggregate.COUNT, Field.ORDERS)
        revenue = measure_name(view, Aggregate.SUM, Field.REVENUE)
        if orders is None or revenue is None:
            return []
        answer = await self._reader.query(
            ViewQuery(
                view=view.name,
                tenant=tenant,
                start=start,
                end=end,
                group_by=("drink",),
                is_total=True,
                order_by=orders,
                limit=DRINKS_MAX,
            )
        )
        return [
            {"drink": row["drink"], "orders": row[orders], "revenue": row[revenue]}
            for row in answer.rows
        ]


def _is_same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return {**left, "server_timestamp": ""} == {**right, "server_timestamp": ""}
