"""Arrivals that do not wait for answers: an open-loop client population in a process of its own.

Requests come on a fixed schedule through several phases of different rates; time counts from the moment one was
meant to be sent. One that finds no idle connection opens another, up to a bound; beyond it it is not sent, and
counted. A client that is not answered in time gives up and hangs up, as real ones do. What was
offered, answered, refused and given up is told for each tenth of a second.

Run as `python -m coffee_rt.bench.arrivals FILE` with a JSON `Arrivals` on standard input; writes a JSON `Account` into
the file: it is megabytes, of which a pipe lost the end.
Talks to loopback only; ends by itself.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from pathlib import Path
from typing import cast

import msgspec
import uvloop

from coffee_rt.bench.load import content_length
from coffee_rt.runtime.files import ensure_open_files
from coffee_rt.runtime.settings import LOOPBACK

WINDOW_SECONDS = 0.1
OPENED_AT_ONCE = 256
"""New connections under way at once: more is a connection storm, which is measured elsewhere."""


class Phase(msgspec.Struct):
    rate: float
    seconds: float


class Arrivals(msgspec.Struct):
    port: int
    path: str
    phases: list[Phase]
    connections: int
    """Open from the start."""
    connections_max: int
    patience_seconds: float
    """A client not answered for so long gives up."""
    headers: dict[str, str] = {}
    bodies: list[str] = []
    host: str = "127.0.0.1"


class Window(msgspec.Struct):
    """A tenth of a second, by the moments requests were meant to be sent."""

    offered: int = 0
    accepted: int = 0
    refused: int = 0
    """429 or 503 with Retry-After."""
    other: int = 0
    given_up: int = 0
    unsent: int = 0
    """All connections were taken by requests not answered yet."""
    broken: int = 0
    """The connection was closed or could not be opened."""
    accepted_ms: list[float] = []
    refused_ms: list[float] = []


class Account(msgspec.Struct):
    windows: list[Window]
    connections: int
    """Open at most."""
    cpu_share: float
    """Of one core, used by this process: near 1 it was the bottleneck, and offered less than it should."""
    statuses: dict[str, int]


class _Client(asyncio.Protocol):
    """One connection. `due` is when its request was meant to be sent; 0 while it is idle."""

    __slots__ = ("buffer", "crowd", "due", "transport")

    def __init__(self, crowd: _Crowd) -> None:
        self.crowd = crowd
        self.buffer = b""
        self.due = 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.crowd.free(self)

    def data_received(self, data: bytes) -> None:
        data = self.buffer + data if self.buffer else data
        end = data.find(b"\r\n\r\n")
        if end < 0 or len(data) < end + 4 + content_length(data, end):
            self.buffer = data
            return
        self.buffer = b""
        head = data[:end].lower()
        is_last = b"\nconnection: close" in head
        self.crowd.answered(self, data[9:12], b"\nretry-after:" in head, is_last)

    def connection_lost(self, error: Exception | None) -> None:
        self.crowd.lost(self)


class _Crowd:
    """All clients, and the account of what became of their requests."""

    def __init__(self, job: Arrivals) -> None:
        self.job = job
        seconds = sum(phase.seconds for phase in job.phases)
        self.windows = [Window(accepted_ms=[], refused_ms=[]) for _ in range(round(seconds * 10))]
        self.statuses: dict[bytes, int] = {}
        self.idle: list[_Client] = []
        self.waiting: deque[float] = deque()
        self.under_way: deque[tuple[float, _Client]] = deque()
        self.open = self.open_max = self.opening = 0
        self.began = 0.0
        self.is_over = False
        self._tasks: set[asyncio.Task[None]] = set()
        lines = [f"POST {job.path} HTTP/1.1", f"Host: {job.host}:{job.port}"]
        head = "\r\n".join(lines + [f"{name}: {value}" for name, value in job.headers.items()])
        self._requests = [
            f"{head}\r\nContent-Length: {len(body.encode())}\r\n\r\n{body}".encode()
            for body in job.bodies
        ]
        self._next = 0

    def window(self, due: float) -> Window:
        at = int((due - self.began) / WINDOW_SECONDS)
        return self.windows[min(max(at, 0), len(self.windows) - 1)]

    def arrive(self, due: float) -> None:
        self.window(due).offered += 1
        if self.idle:
            self._send(self.idle.pop(), due)
            return
        if self.open + self.opening < self.job.connections_max and self.opening < OPENED_AT_ONCE:
            self.waiting.append(due)
            self.opening += 1
            task = asyncio.ensure_future(self.connect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            # No queue here: whoever were sent late would be old when they arrive, and that is our doing.
            self.window(due).unsent += 1

    async def connect(self) -> None:
        try:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: _Client(self), self.job.host, self.job.port)
            self.open += 1
            self.open_max = max(self.open_max, self.open)
        except OSError:
            if self.waiting:
                self.window(self.waiting.popleft()).broken += 1
        finally:
            self.opening -= 1

    def _send(self, client: _Client, due: float) -> None:
        client.due = due
        self.under_way.append((due, client))
        self._next = (self._next + 1) % len(self._requests)
        assert client.transport is not None
        client.transport.write(self._requests[self._next])

    def answered(self, client: _Client, status: bytes, has_hint: bool, is_last: bool) -> None:
        due, client.due = client.due, 0.0
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if due:
            window, spent_ms = self.window(due), (time.perf_counter() - due) * 1000
            if status[:1] == b"2":
                window.accepted += 1
                window.accepted_ms.append(spent_ms)
            elif status in (b"429", b"503") and has_hint:
                window.refused += 1
                window.refused_ms.append(spent_ms)
            else:
                window.other += 1
        if is_last:
            assert client.transport is not None
            client.transport.close()
        else:
            self.free(client)

    def free(self, client: _Client) -> None:
        assert client.transport is not None
        if client.transport.is_closing():
            return
        if self.waiting:
            self._send(client, self.waiting.popleft())
        else:
            self.idle.append(client)

    def lost(self, client: _Client) -> None:
        self.open -= 1
        if client.due and not self.is_over:
            self.window(client.due).broken += 1
        client.due = 0.0
        if client in self.idle:
            self.idle.remove(client)

    def give_up(self, now: float) -> None:
        """Hang up where patience is over; forget those whose turn never came."""
        limit = now - self.job.patience_seconds
        while self.under_way and self.under_way[0][0] < limit:
            due, client = self.under_way.popleft()
            if client.due == due:
                client.due = 0.0
                self.window(due).given_up += 1
                assert client.transport is not None
                client.transport.abort()
        while self.waiting and self.waiting[0] < limit:
            self.window(self.waiting.popleft()).given_up += 1


async def run_arrivals(job: Arrivals) -> Account:
    """Carry out a job. Raises ValueError for a host that is not loopback."""
    if job.host not in LOOPBACK:
        raise ValueError("load is only ever sent to loopback")
    ensure_open_files(job.connections_max + 256)
    crowd = _Crowd(job)
    for start in range(0, job.connections, OPENED_AT_ONCE):
        count = min(OPENED_AT_ONCE, job.connections - start)
        crowd.opening += count
        await asyncio.gather(*(crowd.connect() for _ in range(count)))
    crowd.began = begins = time.perf_counter()
    cpu = time.process_time()
    for phase in job.phases:
        await _carry_out(crowd, phase, begins)
        begins += phase.seconds
    cpu_share = (time.process_time() - cpu) / (time.perf_counter() - crowd.began)
    over_at = time.perf_counter() + job.patience_seconds
    while (crowd.waiting or crowd.under_way) and (now := time.perf_counter()) < over_at + 0.1:
        crowd.give_up(now)
        await asyncio.sleep(0.01)
    crowd.is_over = True
    statuses = {status.decode(): count for status, count in crowd.statuses.items()}
    return Account(crowd.windows, crowd.open_max, round(cpu_share, 2), statuses)


async def _carry_out(crowd: _Crowd, phase: Phase, begins: float) -> None:
    sent, ends = 0, begins + phase.seconds
    while (now := time.perf_counter()) < ends:
        due_count = int((now - begins) * phase.rate)
        while sent < due_count:
            crowd.arrive(begins + sent / phase.rate)
            sent += 1
        crowd.give_up(now)
        await asyncio.sleep(0.001)


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Arrivals)
    account = uvloop.run(run_arrivals(job))
    Path(sys.argv[1]).write_bytes(msgspec.json.encode(account))


if __name__ == "__main__":
    main()
