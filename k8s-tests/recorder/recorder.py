"""Posts orders from inside the cluster, writes down every answer, and follows a view over WebSockets.

The client side of the promise: runs in a pod of its own that no test touches, from the product's image. Each order has
its own Idempotency-Key; one whose outcome is unknown is repeated under the same key until it is known. Ends when the
file `stop` appears (or after SECONDS_MAX): then what is still unknown is resolved, and a JSON object is written to
`result.json` beside `ids.txt` with the id of every accepted order.

Environment: ORDER_API, WEBSOCKET (addresses), API_KEY, RUN (the begin of its stores' names), ORDERS_PER_SECOND, SOCKETS, FOLDER, SECONDS_MAX.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp

VIEW = "hourly"
ATTEMPT_SECONDS_MAX = 10.0
RESOLVE_SECONDS_MAX = 120.0
SILENCE_SECONDS_MAX = 5.0
KEY_SECONDS_MAX = 30.0
"""A pod that was ready before the installation's key was made learns of it at its next look."""
STORES = tuple(
    f"{os.environ['RUN']} {name}" for name in ("uptown", "downtown", "central", "southend")
)
DRINKS = ("latte", "americano", "cappuccino", "tea")


class Orders:
    """Open loop: an order starts every so often whatever became of the others."""

    def __init__(self, address: str, key: str, rate: float) -> None:
        self._url = f"{address}/api/v1/orders"
        self._headers = {"Authorization": f"Bearer {key}"}
        self._rate = rate
        self._under_way: set[asyncio.Task[None]] = set()
        self.accepted: dict[str, str] = {}
        """Key -> order id."""
        self.refused: list[str] = []
        self.unresolved: list[str] = []
        self.sum_minor = 0
        self.retries: Counter[str] = Counter()
        self.resolve_until = float("inf")
        self.seconds: list[float] = []
        self.gap_seconds_max = 0.0
        self._accepted_at = time.monotonic()
        self._known_until = time.monotonic() + KEY_SECONDS_MAX

    async def run(self, session: aiohttp.ClientSession, stop: asyncio.Event) -> None:
        begun, number = time.monotonic(), 0
        while not stop.is_set():
            task = asyncio.create_task(self._place(session, number))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            number += 1
            await asyncio.sleep(max(0.0, begun + number / self._rate - time.monotonic()))
        self.resolve_until = time.monotonic() + RESOLVE_SECONDS_MAX
        await asyncio.gather(*self._under_way)

    async def _place(self, session: aiohttp.ClientSession, number: int) -> None:
        key = uuid.uuid4().hex
        minor, quantity = 100 + number % 900, 1 + number % 3
        body = {
            "store": STORES[number % 4],
            "drink": DRINKS[number // 4 % 4],
            "price": f"{minor // 100}.{minor % 100:02}",
            "quantity": quantity,
        }
        headers = self._headers | {"Idempotency-Key": key}
        pause = 0.05
        while True:
            begun = time.monotonic()
            try:
                async with session.post(self._url, json=body, headers=headers) as answer:
                    status, text = answer.status, await answer.text()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                status, text = 0, type(error).__name__
            if 200 <= status < 300:
                self._accept(key, json.loads(text)["order_id"], minor * quantity, begun)
                return
            is_unknown = status == 401 and time.monotonic() < self._known_until
            if 400 <= status < 500 and status != 429 and not is_unknown:
                self.refused.append(f"{status} {text[:200]}")
                return
            self.retries[f"{status or text}"] += 1
            if time.monotonic() > self.resolve_until:
                self.unresolved.append(key)
                return
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(2.0, pause * 2)

    def _accept(self, key: str, order_id: str, minor: int, begun: float) -> None:
        now = time.monotonic()
        self.accepted[key] = order_id
        self.sum_minor += minor
        self.seconds.append(now - begun)
        self.gap_seconds_max = max(self.gap_seconds_max, now - self._accepted_at)
        self._accepted_at = now


class Socket:
    """A browser: snapshot, changes, and after a break the rest from where it was (docs/protocol.md)."""

    def __init__(self, address: str, key: str) -> None:
        self._url = f"{address}/ws"
        self._headers = {"Authorization": f"Bearer {key}"}
        self.rows: dict[tuple[Any, ...], list[Any]] = {}
        self.versions: list[int] = []
        self.columns: list[str] = []
        self.epoch = ""
        self.counts: Counter[str] = Counter()
        self._known_until = time.monotonic() + KEY_SECONDS_MAX

    async def run(self, session: aiohttp.ClientSession, stop: asyncio.Event) -> None:
        while not stop.is_set():
            pause = 0.2
            try:
                pause = await self._session(session, stop)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self.counts[f"broken: {type(error).__name__}"] += 1
            self.counts["connections"] += 1
            await asyncio.sleep(pause * (0.5 + random.random()))

    async def _session(self, session: aiohttp.ClientSession, stop: asyncio.Event) -> float:
        """Until it breaks or `stop`; seconds to wait before the next."""
        pause = 0.2
        async with session.ws_connect(self._url, headers=self._headers) as socket:
            await socket.send_json(self._subscription())
            while not stop.is_set():
                message = await socket.receive(timeout=SILENCE_SECONDS_MAX)
                if message.type is not aiohttp.WSMsgType.TEXT:
                    self.counts[f"closed: {socket.close_code}"] += 1
                    return pause
                said = json.loads(message.data)
                if said["type"] == "drain":
                    pause = said["retry_after_ms"] / 1000
                elif said["type"] == "error" and (
                    said["code"] == "loading"
                    or (said["code"] == "bad-api-key" and time.monotonic() < self._known_until)
                ):
                    self.counts[said["code"]] += 1
                    return pause
                elif said["type"] == "error":
                    raise SystemExit(f"the server refuses: {said}")
                elif not self.take(said):
                    self.counts["gaps"] += 1
                    await socket.send_json(self._subscription())
        return pause

    def _subscription(self) -> dict[str, Any]:
        wish: dict[str, Any] = {"type": "subscribe", "id": 1, "channel": f"view:{VIEW}"}
        wish["filter"] = {"store": STORES}
        if self.versions:
            wish["resume"] = {"epoch": self.epoch, "versions": self.versions}
        return wish

    def take(self, said: dict[str, Any]) -> bool:
        """Apply a message; False where something is missing before it."""
        kind = said["type"]
        if kind == "snapshot":
            if said["part"] == 1:
                self._note_regression(said)
                self.rows.clear()
                self.counts["snapshots"] += 1
            self.columns, self.epoch = said["columns"], said["epoch"]
            self.versions = list(said["versions"])
            self._take_rows(said["rows"])
        elif kind == "delta":
            if any(previous > self.versions[lane] for lane, _, previous in said["lanes"]):
                return False
            self._take_rows(said["rows"])
            for lane, version, _ in said["lanes"]:
                self.versions[lane] = max(version, self.versions[lane])
            self.counts["deltas"] += 1
        elif kind == "versions":
            self.versions = list(map(max, self.versions, said["versions"]))
        elif kind == "reset":
            self.counts[f"reset: {said['reason']}"] += 1
        return True

    def _note_regression(self, said: dict[str, Any]) -> None:
        """A snapshot of the same epoch that is older than what is known would show less than before."""
        if said["epoch"] == self.epoch and any(
            new < known for new, known in zip(said["versions"], self.versions, strict=False)
        ):
            self.counts["regressions"] += 1

    def _take_rows(self, rows: list[list[Any]]) -> None:
        version = self.columns.index("version")
        for row in rows:
            # A key is the bucket and the dimensions: the texts at the row's begin.
            key = (row[0], *(value for value in row[1:] if isinstance(value, str)))
            known = self.rows.get(key)
            if known is None or known[version] < row[version]:
                self.rows[key] = row

    def total(self, measure: str) -> int:
        at = self.columns.index(measure)
        return sum(row[at] for row in self.rows.values())


async def main() -> None:
    folder = Path(os.environ["FOLDER"])
    key = os.environ["API_KEY"]
    orders = Orders(os.environ["ORDER_API"], key, float(os.environ["ORDERS_PER_SECOND"]))
    sockets = [Socket(os.environ["WEBSOCKET"], key) for _ in range(int(os.environ["SOCKETS"]))]
    stop, leave = asyncio.Event(), asyncio.Event()
    timeout = aiohttp.ClientTimeout(total=ATTEMPT_SECONDS_MAX)
    async with (
        aiohttp.ClientSession(timeout=timeout) as posting,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as watching,
    ):
        followers = [asyncio.create_task(socket.run(watching, leave)) for socket in sockets]
        posts = asyncio.create_task(orders.run(posting, stop))
        ends_at = time.monotonic() + float(os.environ["SECONDS_MAX"])
        while not (folder / "stop").exists() and time.monotonic() < ends_at:
            _tell(folder / "progress.json", {"accepted": len(orders.accepted)})
            await asyncio.sleep(0.5)
        stop.set()
        await posts
        await _settle(sockets, len(orders.accepted))
        leave.set()
        await asyncio.gather(*followers, return_exceptions=True)
    (folder / "ids.txt").write_text("".join(f"{one}\n" for one in orders.accepted.values()))
    _tell(folder / "result.json", result(orders, sockets))
    # The result is read from here; the pod ends when the test deletes it.
    await asyncio.Event().wait()


async def _settle(sockets: list[Socket], orders: int) -> None:
    """Until every socket shows all orders, or it takes too long: then the result shows which did not."""
    deadline = time.monotonic() + RESOLVE_SECONDS_MAX
    while time.monotonic() < deadline:
        with suppress(ValueError):
            if all(socket.total("orders") >= orders for socket in sockets):
                return
        await asyncio.sleep(0.2)


def result(orders: Orders, sockets: list[Socket]) -> dict[str, Any]:
    seconds = sorted(orders.seconds) or [0.0]
    return {
        "accepted": len(orders.accepted),
        "refused": orders.refused[:20],
        "unresolved": orders.unresolved,
        "sum_minor": orders.sum_minor,
        "retries": dict(orders.retries),
        "p50_ms": round(seconds[len(seconds) // 2] * 1000, 1),
        "p99_ms": round(seconds[int(len(seconds) * 0.99)] * 1000, 1),
        "gap_seconds_max": round(orders.gap_seconds_max, 2),
        "sockets": [
            {
                "orders": socket.total("orders") if socket.columns else 0,
                "revenue": socket.total("revenue") if socket.columns else 0,
                "counts": dict(socket.counts),
            }
            for socket in sockets
        ],
    }


def _tell(path: Path, said: dict[str, Any]) -> None:
    staged = path.with_suffix(".new")
    staged.write_text(json.dumps(said))
    staged.replace(path)


if __name__ == "__main__":
    asyncio.run(main())
