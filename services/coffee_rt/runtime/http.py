"""Serves an ASGI application until the drain begins; signals stay with the lifecycle."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import uvicorn

from coffee_rt.runtime.settings import ProcessSettings, SettingsError

if TYPE_CHECKING:
    from coffee_rt.runtime.lifecycle import Lifecycle

KEEP_ALIVE_SECONDS = 75
"""Longer than an ingress keeps idle connections, so that it is the ingress that closes them."""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve_http(
    app: Any, settings: ProcessSettings, lifecycle: Lifecycle, **options: Any
) -> None:
    """Listen on `http_host:http_port` until the drain; then requests under way are answered first.

    `options` go to uvicorn. Raises SettingsError when the port is taken. `lifecycle.wait_listening()`
    tells the real port.
    """
    config = uvicorn.Config(
        app,
        **{
            "host": settings.http_host,
            "port": settings.http_port,
            "log_config": None,
            "log_level": "warning",
            "access_log": False,
            "loop": "none",
            "http": "httptools",
            "ws": "none",
            "server_header": False,
            "backlog": 4096,
            "timeout_keep_alive": KEEP_ALIVE_SECONDS,
            "timeout_graceful_shutdown": max(1, int(settings.grace_seconds * 0.6)),
            **options,
        },
    )
    server = _Server(config)
    watcher = lifecycle.spawn(_stop_on_drain(server, lifecycle), "http-drain")
    try:
        await server.serve()
    except SystemExit:
        # uvicorn's way of saying that it could not bind (it has logged why).
        raise SettingsError(
            f"cannot listen on {settings.http_host}:{settings.http_port}: the port is in use or "
            "not allowed; choose another with COFFEE_RT_HTTP_PORT"
        ) from None
    finally:
        watcher.cancel()


async def _stop_on_drain(server: _Server, lifecycle: Lifecycle) -> None:
    while not server.started:
        if lifecycle.is_draining:
            break
        await lifecycle.clock.sleep(0.01)
    for listener in getattr(server, "servers", []):
        for listening in listener.sockets:
            lifecycle.set_listening(*listening.getsockname()[:2])
    await lifecycle.wait_drain()
    server.should_exit = True
