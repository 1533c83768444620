"""Entry of order_api: `coffee-rt order-api`."""

from __future__ import annotations

import gc

from coffee_rt.order_api.http_protocol import order_api_protocol
from coffee_rt.order_api.settings import OrderApiSettings
from coffee_rt.order_api.wiring import open_order_api
from coffee_rt.runtime import lifecycle as runtime
from coffee_rt.runtime.environment import load
from coffee_rt.runtime.http import http_limits
from coffee_rt.runtime.lifecycle import Lifecycle, serve_http

GARBAGE_OBJECTS = 20_000
"""New objects between two looks for cycles: some hundred requests."""


async def main(lifecycle: Lifecycle, settings: OrderApiSettings) -> None:
    """Serve until drained; orders under way are answered before the log is closed."""
    async with open_order_api(settings, lifecycle) as order_api:
        limits = http_limits(settings)._replace(
            head_bytes_max=settings.header_bytes_max,
            head_seconds_max=settings.header_seconds_max,
            body_seconds_max=settings.body_seconds_max,
        )
        settle_memory()
        await serve_http(
            order_api.app,
            settings,
            lifecycle,
            order_api_protocol(order_api.app, limits),
            order_api.doorkeeper.tend,
            lifespan="off",
            proxy_headers=False,
            date_header=False,
        )


def settle_memory() -> None:
    """What was made at the start lives as long as the process: the collector need not look at it again,
    and requests leave hardly any cycles, so it may come more rarely (its pauses were the slowest answers)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS, 20, 50)


def run(settings: OrderApiSettings | None = None) -> int:
    """The process's exit code. Settings come from the environment unless given."""
    return runtime.run("order-api", main, settings or load(OrderApiSettings))
