"""`coffee-rt smoke`: follows one order through a running installation, from its POST to a socket.

It speaks only the public HTTP and WebSocket interfaces: by the one address of an installation, or by those
of its processes (as `helm test` does). A new installation may still be starting and an API key may be seconds
old, so every step is tried until its time is over.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from coffee_rt.errors import CoffeeRtError

STORE = "smoke-test"
DRINK = "espresso"
"""Always the same: each other store would stay in the views for ever."""
PRICE = "0.01"
VIEW = "hourly"
RETRY_SECONDS = 0.5
SPAN_SECONDS = 3600


class SmokeFailure(CoffeeRtError):
    """The order did not get where it belongs; the text says where it was last seen."""


class _NotYet(Exception):
    """A step that may succeed when it is tried again."""


@dataclass(frozen=True, slots=True)
class SmokeOptions:
    """Where each process answers (often all the same), and how long a step may take."""

    orders_address: str
    query_address: str
    live_address: str
    api_key: str | None = field(repr=False)
    wait_seconds: float


async def run_smoke(options: SmokeOptions, say: Callable[[str], None]) -> None:
    """Raises SmokeFailure with a sentence; otherwise each step has said that it was done."""
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    timeout = aiohttp.ClientTimeout(total=options.wait_seconds + 5)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        smoke = Smoke(options, session, say)
        async with smoke.watching() as changed:
            before = await smoke.step("the view could be read", smoke.count)
            order = await smoke.step("an order was accepted", smoke.post)
            await smoke.step("it is stored", lambda: smoke.find(order))
            await smoke.step("it is in the view", lambda: smoke.count(order["position"], before))
            await smoke.step("it arrived over the WebSocket", lambda: asyncio.shield(changed))
    say("Orders go in, are stored, are seen, and arrive live.")


class Smoke:
    """The steps of one run. Each either returns or raises _NotYet with what it saw."""

    def __init__(
        self, options: SmokeOptions, session: aiohttp.ClientSession, say: Callable[[str], None]
    ) -> None:
        self._options = options
        self._session = session
        self._say = say
        self._key = uuid.uuid4().hex
        self._since = int(time.time()) - SPAN_SECONDS

    async def step(self, done: str, attempt: Callable[[], Awaitable[Any]]) -> Any:
        """Try until it succeeds; raises SmokeFailure when the time is over."""
        begun = time.monotonic()
        reason = "no answer"
        while (left := begun + self._options.wait_seconds - time.monotonic()) > 0:
            try:
                result = await asyncio.wait_for(attempt(), left)
            except _NotYet as error:
                reason = str(error)
            except (aiohttp.ClientError, OSError) as error:
                reason = str(error) or type(error).__name__
            except TimeoutError:
                break
            else:
                self._say(f"{done} ({time.monotonic() - begun:.2f} s)")
                return result
            await asyncio.sleep(RETRY_SECONDS)
        raise SmokeFailure(f"not within {self._options.wait_seconds:g} s: {done}; last: {reason}")

    async def post(self) -> dict[str, Any]:
        """Accepted under one idempotency key, however often it is tried."""
        url = f"{self._options.orders_address}/api/v1/orders?ack=stored&wait_ms=5000"
        body = {"store": STORE, "drink": DRINK, "price": PRICE, "note": "coffee-rt smoke"}
        headers = {"Idempotency-Key": self._key}
        async with self._session.post(url, json=body, headers=headers) as response:
            return await _json(response, 202)

    async def find(self, order: dict[str, Any]) -> None:
        url = f"{self._options.query_address}/api/v1/orders/{order['order_id']}"
        async with self._session.get(url) as response:
            found = await _json(response, 200)
        if found.get("state", "stored") != "stored":
            raise _NotYet(f"the order is {found['state']}")

    async def count(self, position: str | None = None, above: int = -1) -> int:
        """Orders of the smoke test's store in the view, at `position` or later."""
        span = {"from": str(self._since), "bucket": "total", "group_by": "store", "store": STORE}
        parameters = span if position is None else {**span, "position": position}
        url = f"{self._options.query_address}/api/v1/views/{VIEW}"
        async with self._session.get(url, params=parameters) as response:
            rows = (await _json(response, 200))["rows"]
        count = int(rows[0]["orders"]) if rows else 0
        if count <= above:
            raise _NotYet(f"the view has {count} orders of {STORE}, as before")
        return count

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[asyncio.Task[None]]:
        """A subscription to the view, open from before the order: the task ends with its first change. It reads all
        the while, because who answers no pings is taken for gone, and an order may take longer than that."""
        url = f"{self._options.live_address.replace('http', 'ws', 1)}/ws"

        async def connect() -> aiohttp.ClientWebSocketResponse:
            socket = await self._session.ws_connect(url)
            try:
                await _subscribe(socket)
            except BaseException:
                await socket.close()
                raise
            return socket

        socket = await self.step("a socket watches the view", connect)
        changed = asyncio.create_task(_wait_for_change(socket))
        try:
            yield changed
        finally:
            changed.cancel()
            with suppress(asyncio.CancelledError, SmokeFailure):
                await changed
            await socket.close()


async def _json(response: aiohttp.ClientResponse, status: int) -> dict[str, Any]:
    """The body of an answer; _NotYet for any other status (a key may be too new to be known)."""
    if response.status != status:
        raise _NotYet(f"{response.url.path} answered {response.status}: {await response.text()}")
    answer: dict[str, Any] = await response.json()
    return answer


async def _subscribe(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Until the snapshot is complete."""
    await socket.send_json(
        {"type": "subscribe", "id": 1, "channel": f"view:{VIEW}", "filter": {"store": [STORE]}}
    )
    while True:
        message = await _message(socket)
        if message["type"] == "snapshot" and message["part"] == message["parts"]:
            return
        if message["type"] == "error":
            raise _NotYet(f"the subscription ended: {message['detail']}")


async def _wait_for_change(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Raises SmokeFailure when the socket is closed before."""
    while True:
        try:
            message = await _message(socket)
        except (_NotYet, aiohttp.ClientError, OSError) as error:
            # Another socket would begin with a snapshot: the change could have been in it.
            raise SmokeFailure(str(error) or type(error).__name__) from None
        if message["type"] == "delta" and message["rows"]:
            return


async def _message(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    frame = await socket.receive()
    if frame.type is not aiohttp.WSMsgType.TEXT:
        raise _NotYet(f"the socket was closed with {socket.close_code}: {frame.extra or ''}")
    message: dict[str, Any] = frame.json()
    return message
