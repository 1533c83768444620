"""A small HTTP load generator: one process, raw protocols, keep-alive connections.

Closed loop: every connection sends its next request when its answer has come: finds capacity. Open loop:
requests start on a fixed schedule whatever the answers do, and latency counts from the scheduled moment, so
that a stall is not hidden by the requests it held back. Talks to loopback only; ends by itself.

Run as `python -m coffee_rt.bench.load` with a JSON `Job` on standard input; writes a JSON `Outcome`.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import deque
from typing import cast

import msgspec
import uvloop

from coffee_rt.bench.results import percentile
from coffee_rt.runtime.settings import LOOPBACK


class Job(msgspec.Struct):
    port: int
    path: str
    connections: int
    seconds: float
    rate: float = 0.0
    """Requests a second, open loop; 0: closed loop."""
    warmup_seconds: float = 0.5
    host: str = "127.0.0.1"
    headers: dict[str, str] = {}
    bodies: list[str] = []
    """Sent in turn; `{n}` becomes the request's number."""
    idempotency_prefix: str = ""
    """With it, each request carries Idempotency-Key: prefix + number."""


class Outcome(msgspec.Struct):
    requests: int
    seconds: float
    rate: float
    """Answers of 2xx a second."""
    p50_ms: float
    p99_ms: float
    max_ms: float
    statuses: dict[str, int]
    errors: int
    unsent: int = 0


class _Run:
    """What the connections share: the requests to send, and the tally."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.number = random.getrandbits(40)
        self.latencies: list[float] = []
        self.statuses: dict[bytes, int] = {}
        self.errors = 0
        self.counting_from = 0.0
        self.until = 0.0
        self.idle: deque[_Connection] = deque()
        self.waiting: deque[float] = deque()
        self._bodies = [body.encode() for body in job.bodies]
        head = [f"POST {job.path} HTTP/1.1", f"Host: {job.host}:{job.port}"]
        head += [f"{name}: {value}" for name, value in job.headers.items()]
        self._head = ("\r\n".join(head) + "\r\n").encode()
        self._whole = [
            self._head + b"Content-Length: %d\r\n\r\n" % len(body) + body for body in self._bodies
        ]
        self._key = job.idempotency_prefix.encode()

    def next_request(self) -> bytes:
        self.number += 1
        index = self.number % len(self._bodies)
        if not self._key:
            return self._whole[index]
        body = self._bodies[index]
        return b"%bIdempotency-Key: %b%d\r\nContent-Length: %d\r\n\r\n%b" % (
            self._head,
            self._key,
            self.number,
            len(body),
            body,
        )


class _Connection(asyncio.Protocol):
    def __init__(self, run: _Run) -> None:
        self.run = run
        self.buffer = b""
        self.started = 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self.run.job.rate:
            self.run.idle.append(self)
        else:
            self.send(time.perf_counter())

    def send(self, started: float) -> None:
        self.started = started
        assert self.transport is not None
        self.transport.write(self.run.next_request())

    def data_received(self, data: bytes) -> None:
        data = self.buffer + data if self.buffer else data
        end = data.find(b"\r\n\r\n")
        if end < 0 or len(data) < end + 4 + content_length(data, end):
            self.buffer = data
            return
        self.buffer = b""
        self._answered(data[9:12])

    def _answered(self, status: bytes) -> None:
        run = self.run
        now = time.perf_counter()
        if now >= run.counting_from:
            if now > run.until and not run.job.rate:
                return
            run.latencies.append(now - self.started)
            run.statuses[status] = run.statuses.get(status, 0) + 1
        if not run.job.rate:
            if now < run.until:
                self.send(now)
        elif run.waiting:
            self.send(run.waiting.popleft())
        else:
            run.idle.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        if time.perf_counter() < self.run.until:
            self.run.errors += 1


def content_length(data: bytes, end: int) -> int:
    start = data.find(b"ontent-length: ", 0, end)
    if start < 0:
        start = data.find(b"ontent-Length: ", 0, end)
    if start < 0:
        return 0
    return int(data[start + 15 : data.find(b"\r", start, end + 1)])


async def run_job(job: Job) -> Outcome:
    """Carry out a job. Raises ValueError for a host that is not loopback."""
    if job.host not in LOOPBACK:
        raise ValueError("load is only ever sent to loopback")
    loop = asyncio.get_running_loop()
    run = _Run(job)
    began = time.perf_counter()
    run.counting_from = began + job.warmup_seconds
    run.until = run.counting_from + job.seconds
    connections = [
        (await loop.create_connection(lambda: _Connection(run), job.host, job.port))[1]
        for _ in range(job.connections)
    ]
    if job.rate:
        await _send_on_schedule(run, job)
    else:
        await asyncio.sleep(max(0.0, run.until - time.perf_counter()))
    for connection in connections:
        if connection.transport is not None:
            connection.transport.close()
    return _outcome(run, job)


async def _send_on_schedule(run: _Run, job: Job) -> None:
    start = time.perf_counter()
    sent = 0
    while (now := time.perf_counter()) < run.until:
        due = int((now - start) * job.rate)
        while sent < due:
            scheduled = start + sent / job.rate
            sent += 1
            if run.idle:
                run.idle.popleft().send(scheduled)
            else:
                run.waiting.append(scheduled)
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.2)


def _outcome(run: _Run, job: Job) -> Outcome:
    latencies = sorted(run.latencies)
    return Outcome(
        requests=len(latencies),
        seconds=job.seconds,
        rate=sum(n for status, n in run.statuses.items() if status[:1] == b"2") / job.seconds,
        p50_ms=round(percentile(latencies, 0.5) * 1000, 3),
        p99_ms=round(percentile(latencies, 0.99) * 1000, 3),
        max_ms=round(latencies[-1] * 1000, 3) if latencies else 0.0,
        statuses={status.decode(): count for status, count in run.statuses.items()},
        errors=run.errors,
        unsent=len(run.waiting),
    )


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    outcome = uvloop.run(run_job(job))
    sys.stdout.buffer.write(msgspec.json.encode(outcome))


if __name__ == "__main__":
    main()
