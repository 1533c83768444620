"""What the order API is compared with: a bare echo on the same server, and the two usual ways to build it.

    echo       answers a POST with a fixed 202: what the HTTP server alone can do (the ceiling)
    xadd       FastAPI, a pydantic model, one XADD a request
    insert     FastAPI, a pydantic model, one INSERT and COMMIT a request

Run as `python -m coffee_rt.bench.apps NAME`; COFFEE_RT_HTTP_PORT, _REDIS_URL and _DATABASE_URL apply.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import asyncpg
import redis.asyncio
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field

from coffee_rt.runtime.environment import load
from coffee_rt.runtime.settings import DatabaseSettings, ProcessSettings, RedisSettings

STREAM = "baseline"
Sender = Callable[[dict[str, Any]], Awaitable[None]]


class PlacedOrder(BaseModel):
    """The usual model."""

    store: str = Field(max_length=128)
    drink: str = Field(max_length=128)
    price: Decimal = Field(gt=0, decimal_places=2)
    quantity: int = Field(1, gt=0)
    ordered_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class Settings(ProcessSettings):
    redis: RedisSettings = Field(default_factory=RedisSettings)
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)


async def echo(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Sender) -> None:
    """Reads the body, answers as many bytes as the order API does."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send(
        {
            "type": "http.response.start",
            "status": 202,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(ECHO_BODY)),
                (b"location", b"/api/v1/orders/019a7afd-1e00-7000-8053-8077f6bdb694"),
            ],
        }
    )
    await send({"type": "http.response.body", "body": ECHO_BODY})


ECHO_BODY = (
    b'{"order_id":"019a7afd-1e00-7000-8053-8077f6bdb694","position":"0.1763000000000-0.'
    b'019a7afd1e007000805380778077f6bdb","ack":"logged","duplicate":false}'
)


def xadd_app(url: str) -> FastAPI:
    """One XADD a request."""
    client = redis.asyncio.Redis.from_url(url, max_connections=256)
    app = FastAPI()

    @app.post("/api/v1/orders", status_code=202)
    async def place(order: PlacedOrder) -> dict[str, str]:
        order_id = str(uuid4())
        fields: dict[Any, Any] = {"order_id": order_id}
        fields |= {name: str(value) for name, value in order.model_dump().items()}
        await client.xadd(STREAM, fields)
        return {"order_id": order_id}

    app.add_api_route("/readyz", lambda: {"status": "ok"})
    return app


def insert_app(url: str) -> FastAPI:
    """One INSERT and COMMIT a request."""
    pools: list[Any] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        create: Any = asyncpg.create_pool
        connecting = create(url, min_size=16, max_size=32)
        async with connecting as pool:
            await pool.execute(
                "CREATE TABLE IF NOT EXISTS baseline (order_id uuid PRIMARY KEY, store text, "
                "drink text, price numeric(14, 2), quantity int, ordered_at timestamptz)"
            )
            pools.append(pool)
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/api/v1/orders", status_code=202)
    async def place(order: PlacedOrder) -> dict[str, str]:
        order_id = uuid4()
        await pools[0].execute(
            "INSERT INTO baseline VALUES ($1, $2, $3, $4, $5, $6)",
            order_id,
            order.store,
            order.drink,
            order.price,
            order.quantity,
            order.ordered_at,
        )
        return {"order_id": str(order_id)}

    app.add_api_route("/readyz", lambda: {"status": "ok"})
    return app


def main(name: str) -> None:
    settings = load(Settings)
    builders: dict[str, Callable[[], Any]] = {
        "echo": lambda: echo,
        "xadd": lambda: xadd_app(settings.redis.url),
        "insert": lambda: insert_app(settings.database.url),
    }
    uvicorn.run(
        builders[name](),
        host=settings.http_host,
        port=settings.http_port,
        http="httptools",
        loop="uvloop",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main(sys.argv[1])
