"""Health of a process, and the routes every process answers: /livez, /readyz, /metrics.

/livez says only that the event loop turns: it touches no dependency, so an outage never becomes a crash
loop. /readyz is the conjunction of what the components last reported, and false while draining.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from coffee_rt.runtime import metrics

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PATHS = ("/livez", "/readyz", "/metrics")

READY = metrics.gauge(
    "coffee_rt_ready_ratio", "1 when the process is ready, else 0; /readyz says which part is not."
)


@dataclass(frozen=True, slots=True)
class ComponentHealth:
    is_ready: bool
    detail: str


class Health:
    """What the components of a process last said of themselves. Shared by all tasks.

    Not ready before the first component reported.
    """

    def __init__(self) -> None:
        self._components: dict[str, ComponentHealth] = {}
        self._is_draining = False

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    def set_draining(self) -> None:
        self._is_draining = True
        READY.set(0)

    def set(self, component: str, ready: bool, detail: str = "") -> None:
        """Report a component; the same name again replaces what it said before."""
        self._components[component] = ComponentHealth(ready, detail)
        READY.set(self.is_ready)

    def forget(self, component: str) -> None:
        self._components.pop(component, None)
        READY.set(self.is_ready)

    @property
    def is_ready(self) -> bool:
        return (
            not self._is_draining
            and bool(self._components)
            and all(component.is_ready for component in self._components.values())
        )

    def report(self) -> dict[str, Any]:
        """What /readyz answers."""
        status = "draining" if self._is_draining else "ready" if self.is_ready else "not ready"
        return {
            "status": status,
            "components": {
                name: {"ready": component.is_ready, "detail": component.detail}
                for name, component in sorted(self._components.items())
            },
        }


def answer(path: str, health: Health) -> tuple[int, str, bytes]:
    """(status, content type, body) of one of PATHS."""
    if path == "/metrics":
        return 200, metrics.CONTENT_TYPE, metrics.exposition()
    if path == "/readyz":
        status = 200 if health.is_ready else 503
        return status, "application/json", json.dumps(health.report()).encode()
    return 200, "application/json", b'{"status":"ok"}'


class HealthApp:
    """ASGI application of the three routes; 404 for everything else."""

    __name__ = "health"

    def __init__(self, health: Health) -> None:
        self._health = health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            return
        status, kind, body = 404, "application/json", b'{"detail":"Not Found"}'
        if scope["path"] in PATHS:
            status, kind, body = answer(scope["path"], self._health)
        headers = [
            (b"content-type", kind.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _live(receive: Receive, send: Send) -> None:
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return


def health_app(health: Health) -> HealthApp:
    """The routes as an application of its own, for processes that serve nothing else."""
    return HealthApp(health)


def add_health_routes(app: Any, health: Health) -> None:
    """Add the routes to a Starlette or FastAPI application (anything with its `add_route`)."""
    for path in PATHS:
        app.add_route(path, HealthApp(health), methods=["GET"], include_in_schema=False)
