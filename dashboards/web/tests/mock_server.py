"""A stand-in for the fan-out process, to look at the page while working on it. Only a fixture.

It serves the built page with the real content security policy and speaks docs/protocol.md over one made-up
café chain: `python tests/mock_server.py --port 8090 --rate 20`. `POST /api/v1/orders` adds an order. It keeps
its own rows; nothing is stored. `--empty` starts without history, `--token T` asks for a key.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import time
import uuid
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

PAGE = Path(__file__).parents[3] / "services" / "coffee_rt" / "fanout" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
LANES = 8
DRINKS = {
    "latte": 450, "cappuccino": 420, "flat white": 430, "americano": 320, "espresso": 250,
    "cold brew": 480, "mocha": 510, "chai latte": 470, "filter coffee": 300, "hot chocolate": 440,
}  # fmt: skip
STORES = {"uptown": 5, "downtown": 8, "central": 6, "southend": 3, "harbour": 2, "airport": 4}


class View:
    """Rows of one view with the version of each lane."""

    def __init__(self, name: str, bucket: int, dimensions: list[str], measures: list[str]) -> None:
        self.name, self.bucket = name, bucket
        self.dimensions, self.measures = dimensions, measures
        self.columns = ["bucket", *dimensions, *measures, "lane", "version", "newest_at_ms"]
        self.versions = [0] * LANES
        self.rows: dict[tuple[Any, ...], dict[str, Any]] = {}

    def add(self, order: dict[str, Any]) -> None:
        bucket = order["ordered_at_ms"] // 1000 // self.bucket * self.bucket
        key = (bucket, *(order[name] for name in self.dimensions))
        lane = hash(key) % LANES
        row = self.rows.setdefault(key, {"bucket": bucket, "lane": lane, "newest_at_ms": 0})
        row.update({name: order[name] for name in self.dimensions})
        amounts = {
            "orders": 1,
            "quantity": order["quantity"],
            "revenue": round(float(order["price"]) * 100) * order["quantity"],
        }
        for name in self.measures:
            row[name] = row.get(name, 0) + amounts[name]
        row["newest_at_ms"] = max(row["newest_at_ms"], order["accepted_at_ms"])
        self.versions[lane] += 1
        row["version"] = self.versions[lane]

    def rows_above(self, versions: list[int], since: int) -> list[list[Any]]:
        return [
            [row[column] for column in self.columns]
            for row in self.rows.values()
            if row["version"] > versions[row["lane"]] and row["bucket"] >= since
        ]


class Shop:
    """All state of the stand-in."""

    def __init__(self) -> None:
        self.epoch = f"1.{random.getrandbits(40)}.1"
        self.views = {
            "view:hourly": View(
                "hourly", 3600, ["store", "drink"], ["orders", "quantity", "revenue"]
            ),
            "view:minutely": View("minutely", 60, ["store"], ["orders", "revenue"]),
        }
        self.orders: list[dict[str, Any]] = []

    def add(self, order: dict[str, Any]) -> None:
        for view in self.views.values():
            view.add(order)
        self.orders = [order, *self.orders[:199]]


def make_order(at_ms: int, **given: Any) -> dict[str, Any]:
    drink = random.choices(list(DRINKS), weights=range(len(DRINKS) + 4, 4, -1))[0]
    store = random.choices(list(STORES), weights=list(STORES.values()))[0]
    late = random.choice([0] * 39 + [900_000])
    order = {
        "order_id": str(uuid.uuid4()),
        "store": store,
        "drink": drink,
        "price": f"{DRINKS[drink] / 100:.2f}",
        "quantity": random.choice([1, 1, 1, 2, 3]),
        "ordered_at_ms": at_ms - late,
        "accepted_at_ms": at_ms,
    }
    return {**order, **given}


def rhythm(at_ms: int) -> float:
    """Share of the busiest hour's orders: two peaks a day."""
    hour = at_ms / 3_600_000 % 24
    return 0.1 + 0.9 * math.exp(-((hour - 8.5) ** 2) / 4) + 0.6 * math.exp(-((hour - 17) ** 2) / 10)


def fill_history(shop: Shop, orders_a_minute: float) -> None:
    now = int(time.time() * 1000)
    at = now - now % 86_400_000
    while at < now:
        for _ in range(round(orders_a_minute * rhythm(at) * random.uniform(0.7, 1.3))):
            shop.add(make_order(at + random.randrange(60_000) - 60_000))
        at += 60_000


class Session:
    """One browser: what it follows, and which versions it was told."""

    def __init__(self, shop: Shop, socket: web.WebSocketResponse) -> None:
        self.shop, self.socket = shop, socket
        self.views: dict[int, tuple[View, list[int], int]] = {}
        self.tickers: dict[int, tuple[list[str] | None, set[str]]] = {}

    async def say(self, **message: Any) -> None:
        await self.socket.send_str(json.dumps(message))

    async def follow(self, message: dict[str, Any]) -> None:
        ident, channel = message["id"], message["channel"]
        if channel == "orders":
            self.tickers[ident] = ((message.get("filter") or {}).get("store"), set())
            await self.push_orders(ident, is_first=True)
        elif (view := self.shop.views.get(channel)) is None:
            await self.say(type="error", id=ident, code="unknown-view", detail="no such view")
        else:
            since = message.get("since", 0)
            resume = message.get("resume")
            if resume and resume["epoch"] == self.shop.epoch:
                self.views[ident] = (view, resume["versions"], since)
                await self.push_view(ident)
                return
            self.views[ident] = (view, list(view.versions), since)
            await self.say(
                type="snapshot", id=ident, channel=channel, epoch=self.shop.epoch,
                versions=view.versions, columns=view.columns, money=["revenue"], decimals=2,
                rows=view.rows_above([0] * LANES, since), part=1, parts=1,
            )  # fmt: skip

    async def push_view(self, ident: int) -> None:
        view, told, since = self.views[ident]
        lanes = [[at, v, told[at]] for at, v in enumerate(view.versions) if v > told[at]]
        if lanes:
            rows = view.rows_above(told, since)
            self.views[ident] = (view, list(view.versions), since)
            await self.say(type="delta", id=ident, lanes=lanes, rows=rows)

    async def push_orders(self, ident: int, *, is_first: bool = False) -> None:
        stores, told = self.tickers[ident]
        fresh = [
            order
            for order in self.shop.orders[:50]
            if order["order_id"] not in told and (stores is None or order["store"] in stores)
        ]
        told.update(order["order_id"] for order in fresh)
        if fresh or is_first:
            await self.say(type="orders", id=ident, orders=fresh)

    async def push(self) -> None:
        while not self.socket.closed:
            for ident in list(self.views):
                await self.push_view(ident)
            for ident in list(self.tickers):
                await self.push_orders(ident)
            await asyncio.sleep(0.05)

    async def beat(self) -> None:
        while not self.socket.closed:
            await self.say(type="heartbeat", at_ms=int(time.time() * 1000))
            await asyncio.sleep(2)


async def serve_socket(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    session = Session(request.app["shop"], socket)
    if request.app["token"]:
        try:
            token = (await socket.receive_json(timeout=3))["token"]
        except TimeoutError:
            await socket.close(code=4401, message=b"no hello in time")
            return socket
        if token != request.app["token"]:
            await session.say(type="error", code="unknown-key", detail="no such API key")
            await socket.close(code=1008, message=b"unknown-key")
            return socket
    now = int(time.time() * 1000)
    await session.say(type="welcome", session="mock", heartbeat_seconds=2, server_ms=now)
    tasks = [asyncio.create_task(session.push()), asyncio.create_task(session.beat())]
    try:
        async for frame in socket:
            if frame.type is not WSMsgType.TEXT:
                continue
            message = json.loads(frame.data)
            if message["type"] == "subscribe":
                await session.follow(message)
            elif message["type"] == "unsubscribe":
                session.views.pop(message["id"], None)
                session.tickers.pop(message["id"], None)
    finally:
        for task in tasks:
            task.cancel()
    return socket


async def post_order(request: web.Request) -> web.Response:
    order = make_order(int(time.time() * 1000), **await request.json())
    request.app["shop"].add(order)
    return web.json_response({"order_id": order["order_id"]}, status=202)


async def serve_page(request: web.Request) -> web.StreamResponse:
    name = request.match_info["name"] or "index.html"
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
    return web.FileResponse(PAGE / name, headers=headers)


async def sell(shop: Shop, rate: float) -> None:
    while rate > 0:
        await asyncio.sleep(random.expovariate(rate * rhythm(time.time() * 1000)))
        shop.add(make_order(int(time.time() * 1000)))


async def start(app: web.Application) -> None:
    app["selling"] = asyncio.create_task(sell(app["shop"], app["rate"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument(
        "--rate", type=float, default=1.0, help="orders a second at the busiest hour"
    )
    parser.add_argument("--empty", action="store_true", help="no history and no sales")
    parser.add_argument("--token", default="", help="ask for this key")
    options = parser.parse_args()
    app = web.Application()
    app["shop"], app["token"] = Shop(), options.token
    app["rate"] = 0.0 if options.empty else options.rate
    if not options.empty:
        fill_history(app["shop"], options.rate * 60)
    app.router.add_get("/ws", serve_socket)
    app.router.add_post("/api/v1/orders", post_order)
    app.router.add_get("/{name:.*}", serve_page)
    app.on_startup.append(start)
    web.run_app(app, host="127.0.0.1", port=options.port, print=None)


if __name__ == "__main__":
    main()
