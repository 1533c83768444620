"""The clients of a scenario, in a process of their own that nothing ever hurts: `python -m tests.chaos.recorder`.

In comes a `Job` as one line of JSON; out go orders at a bounded rate, whatever is answered, and notes (`notes.py`)
of every order and every attempt. An order whose outcome is unknown is repeated under its key at once, or after
healing, or never, as its fate says. The line `end` stops the schedule: what is unsettled is repeated until it is
settled, then a sample of accepted ones is sent once more. A line a fifth of a second tells how far it is.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import aiohttp
import msgspec

from tests.chaos.notes import Answer, Attempt, Job, Sent, Skipped

STORES = ("uptown", "harbour", "station")
DRINKS = ("latte", "tea", "americano", "mocha")
BATCH_ORDERS = 5
AGAIN_AT_END = 40
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.2, 2.0
"""Between attempts at one order, doubled from one to the next: a crowd that repeats at once would be the overload
that it waits for."""
SETTLE_SECONDS_MAX = 60.0
NOTHING_DONE = "temporarily-away"


@dataclass
class Request:
    """A single order, or a batch of several under one key."""

    key: str
    orders: list[Sent]
    body: bytes
    client: int
    tries: int = 0

    @property
    def is_batch(self) -> bool:
        return len(self.orders) > 1


class Recorder:
    """One run. Owned by its process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.counts = dict.fromkeys(("ok", "refused", "away", "unknown", "denied"), 0)
        self.ending = asyncio.Event()
        self.skipped = 0
        self._chance = random.Random(job.seed)
        self._later_chance = random.Random(job.seed + 1)
        """Of what follows answers, whose order differs from run to run: what is sent first must not."""
        self._numbers = itertools.count(1)
        self._notes = Path(job.notes).open("ab")  # noqa: SIM115 - for the life of the process
        self._encoder = msgspec.json.Encoder()
        self._sessions: list[aiohttp.ClientSession] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self._later: list[Request] = []
        self._accepted: list[Request] = []

    async def run(self) -> None:
        headers = {
            "Authorization": f"Bearer {self.job.api_key}",
            "Content-Type": "application/json",
        }
        timeout = aiohttp.ClientTimeout(total=self.job.load.timeout_seconds)
        for _ in range(self.job.load.clients):
            connector = aiohttp.TCPConnector(limit=0)
            self._sessions.append(
                aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector)
            )
        telling = asyncio.create_task(self._tell())
        try:
            await self._send_on_schedule()
            if self._under_way:
                await asyncio.wait(self._under_way)
            await asyncio.gather(*(self._settle(request) for request in self._later))
            sample = self._later_chance.sample(
                self._accepted, min(AGAIN_AT_END, len(self._accepted))
            )
            await asyncio.gather(*(self._settle(request) for request in sample))
        finally:
            telling.cancel()
            for session in self._sessions:
                await session.close()
            self._note(Skipped(self.skipped))
            self._notes.close()

    async def _send_on_schedule(self) -> None:
        load = self.job.load
        orders_a_request = 1 + load.batch_share * (BATCH_ORDERS - 1)
        step = orders_a_request / load.rate
        due = time.monotonic()
        while not self.ending.is_set():
            due += step
            wait = due - time.monotonic()
            if wait > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.ending.wait(), wait)
            if len(self._under_way) >= load.under_way_max:
                self.skipped += 1
                continue
            task = asyncio.create_task(self._place(self._make()))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    def _make(self) -> Request:
        chance, number = self._chance, next(self._numbers)
        count = BATCH_ORDERS if chance.random() < self.job.load.batch_share else 1
        key = f"{self.job.prefix}{number}"
        fate = chance.choices(("retried", "later", "left"), (45, 45, 10))[0]
        orders = []
        for index in range(count):
            sent = Sent(
                name=key if count == 1 else f"{key}/{index}",
                store=self.job.prefix + chance.choice(STORES),
                drink=chance.choice(DRINKS),
                price_minor=chance.randrange(1, 10_000),
                quantity=chance.randrange(1, 5),
                # Over some hours, so that views have more than one bucket of it.
                ordered_at=int(time.time()) - chance.randrange(0, 4 * 3600),
                is_bad=chance.random() < self.job.load.bad_share,
                fate=cast("Literal['retried', 'later', 'left']", fate),
            )
            orders.append(sent)
            self._note(sent)
        bodies = [self._body(order) for order in orders]
        body = self._encoder.encode(bodies if count > 1 else bodies[0])
        return Request(key, orders, body, number % len(self._sessions))

    def _body(self, sent: Sent) -> dict[str, Any]:
        return {
            "store": sent.store,
            "drink": sent.drink,
            "price": "free" if sent.is_bad else f"{sent.price_minor / 100:.2f}",
            "quantity": sent.quantity,
            "ordered_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(sent.ordered_at)),
            "note": sent.name,
        }

    async def _place(self, request: Request) -> None:
        """Send it once, then what its fate says."""
        if await self._try(request):
            self._accepted.append(request)
            if self._later_chance.random() < self.job.load.again_share:
                await self._try(request)
            return
        fate = request.orders[0].fate
        if fate == "later":
            self._later.append(request)
        elif fate == "retried":
            await self._settle(request)

    async def _settle(self, request: Request) -> None:
        """Repeat until every order of it is known; limited once the schedule has ended."""
        until = 0.0
        pause = PAUSE_SECONDS_MIN
        while not await self._try(request):
            if self.ending.is_set():
                until = until or time.monotonic() + SETTLE_SECONDS_MAX
                if time.monotonic() > until:
                    return
            await asyncio.sleep(pause * (0.5 + self._later_chance.random()))
            pause = min(2 * pause, PAUSE_SECONDS_MAX)

    async def _try(self, request: Request) -> bool:
        """One attempt; whether everything about the request is known after it."""
        session = self._sessions[request.client]
        addresses = self.job.addresses
        address = addresses[(request.client + request.tries) % len(addresses)]
        path = "/api/v1/orders/batch" if request.is_batch else "/api/v1/orders"
        is_first = request.tries == 0
        request.tries += 1
        began = time.monotonic()
        results: list[tuple[Answer, dict[str, Any]]]
        try:
            async with session.post(
                address + path, data=request.body, headers={"Idempotency-Key": request.key}
            ) as response:
                document = msgspec.json.decode(await response.read())
                status = response.status
            if request.is_batch and status == 202:
                results = [(_read(one["status"], one), one) for one in document["results"]]
            else:
                document["status"] = status
                results = [(_read(status, document), document)] * len(request.orders)
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as error:
            results = [("unknown", {"type": type(error).__name__})] * len(request.orders)
        seconds = time.monotonic() - began
        for order, (answer, told) in zip(request.orders, results, strict=True):
            self.counts[answer] += 1
            problem = told.get("problem", told)
            attempt = Attempt(
                order.name,
                began,
                seconds,
                answer,
                told.get("order_id", ""),
                str(problem.get("type", "")).rpartition(":")[2],
                bool(told.get("duplicate")),
                int(told.get("status", 0)),
                is_first,
            )
            self._note(attempt)
        return all(answer in ("ok", "refused", "denied") for answer, _ in results)

    def _note(self, item: Sent | Attempt | Skipped) -> None:
        self._notes.write(self._encoder.encode(item) + b"\n")

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            self._notes.flush()
            line = self._encoder.encode(self.counts | {"under_way": len(self._under_way)})
            sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()


def _read(status: int, document: dict[str, Any]) -> Answer:
    """What an answer means for one order."""
    if status in (200, 202):
        return "ok"
    problem = document.get("problem", document)
    code = str(problem.get("type", "")).rpartition(":")[2]
    if status == 429 or (status == 503 and code and code != "unknown-outcome"):
        return "away"
    if status >= 500 or status == 408:
        return "unknown"
    return "denied" if status in (401, 403, 404, 405) else "refused"


async def _main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    recorder = Recorder(job)
    loop = asyncio.get_running_loop()

    def end() -> None:
        # `end`, or the harness is gone.
        loop.remove_reader(sys.stdin.fileno())
        recorder.ending.set()

    loop.add_reader(sys.stdin.fileno(), end)
    await recorder.run()


if __name__ == "__main__":
    asyncio.run(_main())
