"""The one place of fanout where adapters meet logic."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.applications import Starlette

from coffee_rt.callers.identity import key_ring_of
from coffee_rt.callers.rate import RateLimiter
from coffee_rt.channels.redis import RedisChannels
from coffee_rt.fanout.app import build_app
from coffee_rt.fanout.authority import KeyAuthority, KeySessions, allow_anyone
from coffee_rt.fanout.dashboard_feed import DashboardFeed
from coffee_rt.fanout.door import Door
from coffee_rt.fanout.guarded import OPEN_SECONDS, GuardedStore
from coffee_rt.fanout.hub import Hub, HubLimits
from coffee_rt.fanout.page_files import PAGE_FOLDER, load_page
from coffee_rt.fanout.session import SessionLimits
from coffee_rt.fanout.settings import FanoutSettings
from coffee_rt.fanout.streams import LiveStreams
from coffee_rt.fanout.view_channel import ViewLimits
from coffee_rt.fanout.websocket_server import ServerLimits, WebSocketServer
from coffee_rt.redis_nodes.counts import SharedCounts
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.lifecycle import Lifecycle
from coffee_rt.runtime.settings import SettingsError
from coffee_rt.store.key_refresh import keep_fresh
from coffee_rt.store.pool import Pool, create_pool
from coffee_rt.store.queries import PostgresOrderReader
from coffee_rt.store.schema_wait import lacking_schema, wait_for_schema
from coffee_rt.store.view_catalogue import PostgresViewCatalogue
from coffee_rt.store.view_fold import PostgresViewFolder
from coffee_rt.store.view_reads import PostgresViewReader


@dataclass(slots=True)
class Fanout:
    """The process's parts, wired; `start` sets them going, `drain` sends everybody away."""

    settings: FanoutSettings
    lifecycle: Lifecycle
    hub: Hub
    dashboard: DashboardFeed
    server: WebSocketServer
    app: Starlette
    pool: Pool

    async def start(self) -> None:
        """Serve sockets, at once or as soon as the schema is there: what is loaded before would be nothing.
        Raises SettingsError when the port is taken."""
        if reason := await lacking_schema(self.pool):
            self._on_wait(reason)
            self.lifecycle.spawn(self._start_later(), "start")
        else:
            await self._serve()

    async def _start_later(self) -> None:
        await wait_for_schema(self.pool, self.lifecycle.clock, self._on_wait)
        await self._serve()

    def _on_wait(self, reason: str) -> None:
        self.lifecycle.health.set("views", False, reason)
        self.lifecycle.log.warning("start waits", reason=reason)

    async def _serve(self) -> None:
        settings = self.settings
        try:
            await self.server.start(settings.websocket_host, settings.websocket_port)
        except OSError as error:
            raise SettingsError(
                f"cannot listen on {settings.websocket_host}:{settings.websocket_port}: "
                f"{error.strerror}; choose another with COFFEE_RT_FANOUT_WEBSOCKET_PORT"
            ) from None
        self.lifecycle.log.info("listening for sockets", port=self.server.port)
        spawn = self.lifecycle.spawn
        spawn(self.hub.run(), "hub")
        spawn(self.dashboard.run(), "dashboard")
        spawn(self.server.run(), "pings")

    async def drain(self) -> None:
        """No new sessions; those that are open are told to go elsewhere, and closed bit by bit."""
        self.server.stop_listening()
        await self.hub.drain()
        self.dashboard.close()


@asynccontextmanager
async def wired(settings: FanoutSettings, lifecycle: Lifecycle) -> AsyncIterator[Fanout]:
    """The process with its connections open; closed again at the end."""
    clock = lifecycle.clock
    pool = await create_pool(settings.database, application_name="coffee-rt-fanout")
    messages = RedisChannels(settings.redis, namespace=settings.namespace)
    views = PostgresViewReader(pool, clock=clock)
    store = GuardedStore(
        CircuitBreaker(
            "postgresql",
            failures=settings.breaker_failures,
            open_seconds=min(OPEN_SECONDS, settings.breaker_open_seconds),
            clock=clock,
        ),
        catalogue=PostgresViewCatalogue(pool, clock=clock),
        snapshots=views,
        queries=views,
        orders=PostgresOrderReader(pool),
        versions=PostgresViewFolder(pool),
    )
    authority = await _authority(settings, pool, lifecycle)
    authorize = allow_anyone if authority is None else authority.tenant_of
    lifecycle.health.set("views", False, "loading views")
    hub = Hub(
        messages=messages,
        catalogue=store,
        reader=store,
        orders=store,
        versions=store,
        authorize=authorize,
        needs_token=settings.auth == "required",
        clock=clock,
        decimals=settings.currency_decimals,
        limits=_hub_limits(settings),
        key_sessions=KeySessions(0 if authority is None else settings.sessions_per_key_max),
        on_health=lambda is_ready, detail: lifecycle.health.set("views", is_ready, detail),
    )
    dashboard = DashboardFeed(
        hub,
        reader=store,
        orders=store,
        clock=clock,
        decimals=settings.currency_decimals,
    )
    if authority is not None:
        authority.listen(hub.recheck_keys)
        authority.listen(dashboard.recheck_keys)
    counts = SharedCounts(settings.redis, settings.namespace)
    rate = RateLimiter(counts, clock, "fanout")
    lifecycle.spawn(rate.run(settings.rate_settle_seconds), "rates")
    door = Door(
        sessions_max=settings.sessions_max,
        sessions_per_address_max=settings.sessions_per_address_max,
        rate=rate,
        connects_per_minute=settings.connects_per_minute,
        origins=settings.origins,
        trusted_proxies=settings.proxy_networks,
    )
    server = WebSocketServer(
        routes={
            "/ws": lambda socket, visitor: hub.open(socket, "websocket", visitor.token),
            "/ws/dashboard": lambda socket, visitor: dashboard.open(socket, visitor.token),
        },
        door=door,
        clock=clock,
        limits=ServerLimits(settings.message_bytes_max, settings.ping_seconds),
    )
    page = load_page(settings.page_folder or PAGE_FOLDER)
    app = build_app(LiveStreams(hub, door), page, lifecycle.health)
    try:
        yield Fanout(settings, lifecycle, hub, dashboard, server, app, pool)
    finally:
        await lifecycle.stop_tasks()
        await server.close()
        await messages.close()
        await counts.close()
        await pool.close()


def _hub_limits(settings: FanoutSettings) -> HubLimits:
    return HubLimits(
        view=ViewLimits(
            rows_max=settings.rows_max,
            delta_rows_max=settings.delta_rows_max,
            deep_rows_max=settings.deep_rows_max,
        ),
        session=SessionLimits(
            subscriptions_max=settings.subscriptions_max,
            messages_per_second=settings.messages_per_second_max,
            messages_burst=settings.messages_burst_max,
        ),
        frame_interval_seconds=settings.frame_interval_ms / 1000,
        heartbeat_seconds=settings.heartbeat_seconds,
        hello_seconds_max=settings.hello_seconds_max,
        drain_seconds=min(settings.drain_seconds, settings.grace_seconds / 3),
    )


async def _authority(
    settings: FanoutSettings, pool: Pool, lifecycle: Lifecycle
) -> KeyAuthority | None:
    """None where keys are off."""
    ring = key_ring_of(settings)
    if ring is None:
        return None
    authority = KeyAuthority(ring, lifecycle.clock)
    await keep_fresh(ring, pool, lifecycle, settings.keys_refresh_seconds, authority.on_refresh)
    return authority
