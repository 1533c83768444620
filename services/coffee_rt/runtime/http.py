"""Serves an ASGI application within bounds until the drain begins; signals stay with the lifecycle."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any

import uvicorn

from coffee_rt.runtime.http_bounds import BoundedProtocol, HttpLimits, bounded
from coffee_rt.runtime.listen_queue import ListenQueue
from coffee_rt.runtime.settings import ProcessSettings, SettingsError

if TYPE_CHECKING:
    from coffee_rt.runtime.lifecycle import Lifecycle

KEEP_ALIVE_SECONDS = 75
"""Longer than an ingress keeps idle connections, so that it is the ingress that closes them."""


LOOKS_FOR_UNREAD = 4
"""Looks for answers that nobody reads within the time they may wait."""


Serve = Callable[[socket.socket], Coroutine[Any, Any, None]]
"""Makes a connection taken out of the queue one of the server's."""
Tend = Callable[[ListenQueue, Serve], Coroutine[Any, Any, None]]


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve_http(
    app: Any,
    settings: ProcessSettings,
    lifecycle: Lifecycle,
    protocol: type[BoundedProtocol] | None = None,
    tend: Tend | None = None,
    **options: Any,
) -> None:
    """Listen on `http_host:http_port` until the drain; then requests under way are answered first.

    `protocol` is what `bounded` made, by default with the bounds of all processes; `tend` looks after the queue of
    each listener until the drain (it must not touch it afterwards); `options` go to uvicorn.
    Raises SettingsError when the port is taken. `lifecycle.wait_listening()` tells the real port.
    """
    served = protocol or bounded(http_limits(settings))
    config = uvicorn.Config(
        app,
        **{
            "host": settings.http_host,
            "port": settings.http_port,
            "log_config": None,
            "log_level": "warning",
            "access_log": False,
            "loop": "none",
            "http": served,
            "ws": "none",
            "server_header": False,
            "headers": [("x-content-type-options", "nosniff")],
            "backlog": 4096,
            "timeout_keep_alive": KEEP_ALIVE_SECONDS,
            "timeout_graceful_shutdown": max(1, int(settings.grace_seconds * 0.6)),
            **options,
        },
    )
    server = _Server(config)
    watchers = [
        lifecycle.spawn(_stop_on_drain(server, lifecycle, tend), "http-drain"),
        lifecycle.spawn(_cut_unread(served, lifecycle), "http-unread"),
    ]
    try:
        await server.serve()
    except SystemExit:
        # uvicorn's way of saying that it could not bind (it has logged why).
        raise SettingsError(
            f"cannot listen on {settings.http_host}:{settings.http_port}: the port is in use or "
            "not allowed; choose another with COFFEE_RT_HTTP_PORT"
        ) from None
    finally:
        for watcher in watchers:
            watcher.cancel()


def http_limits(settings: ProcessSettings) -> HttpLimits:
    """The bounds of all processes."""
    return HttpLimits(
        answer_seconds_max=settings.http_answer_seconds_max,
        connections_max=settings.http_connections_max,
    )


async def _cut_unread(protocol: type[BoundedProtocol], lifecycle: Lifecycle) -> None:
    while True:
        await lifecycle.clock.sleep(protocol.limits.answer_seconds_max / LOOKS_FOR_UNREAD)
        now = lifecycle.clock.monotonic()
        for connection in list(protocol.opened):
            if connection.is_unread(now):
                connection.cut()


async def _stop_on_drain(server: _Server, lifecycle: Lifecycle, tend: Tend | None) -> None:
    while not server.started:
        if lifecycle.is_draining:
            break
        await lifecycle.clock.sleep(0.01)
    for listener in getattr(server, "servers", []):
        for listening in listener.sockets:
            lifecycle.set_listening(*listening.getsockname()[:2])
            if tend is not None:
                lifecycle.spawn(_tend(server, tend, listening.fileno()), "http-queue")
    await lifecycle.wait_drain()
    server.should_exit = True


async def _tend(server: _Server, tend: Tend, fileno: int) -> None:
    served: type[BoundedProtocol] = server.config.http_protocol_class  # type: ignore[assignment]

    async def serve(connection: socket.socket) -> None:
        def made() -> BoundedProtocol:
            queue.is_accepted()
            # As uvicorn makes them for its own listener.
            return served(config=server.config, server_state=server.server_state, app_state={})

        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(made, connection)
        except OSError:
            # It left meanwhile.
            connection.close()

    queue = ListenQueue(fileno, lambda: served.made_total)
    try:
        await tend(queue, serve)
    finally:
        queue.forget()
