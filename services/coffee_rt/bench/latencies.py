"""From the POST to the frame, and to the row, while half of the capacity is used.

Probes travel beside an open-loop load through all processes: each is one order of a store of its own, posted
with `ack=stored`; its frame is the first that shows the store's count including it.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import psutil
import redis.asyncio
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from coffee_rt.bench.load import Job
from coffee_rt.bench.posts import CONNECTIONS, JSON, PATH, Progress, bodies
from coffee_rt.bench.results import Figure, percentile
from coffee_rt.bench.stack import Child, Stack, run_load
from coffee_rt.bench.workers import NAMESPACE, prepare_store
from coffee_rt.embedded.server_process import free_port
from coffee_rt.store.pool import Pool
from coffee_rt.streams.shards import LogKeys

VIEW = "hourly"
PROBE_STORES = 20
PROBES_PER_SECOND = 50
PROBE_PREFIX = "probe "
WAIT_SECONDS_MAX = 5.0
DRAIN_SECONDS_MAX = 120.0


@dataclass(slots=True)
class _Probes:
    """What was sent and not seen yet, by store; and how long the others took."""

    sent: dict[str, list[float]] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    to_frame: list[float] = field(default_factory=list)
    to_stored: list[float] = field(default_factory=list)
    levels: dict[str, int] = field(default_factory=dict)

    def send(self, store: str) -> None:
        self.sent.setdefault(store, []).append(time.perf_counter())

    def show(self, store: str, orders: int) -> None:
        """A frame says that a store has so many orders."""
        now = time.perf_counter()
        times = self.sent.get(store, [])
        for number in range(self.seen.get(store, 0), min(orders, len(times))):
            self.to_frame.append(now - times[number])
        self.seen[store] = max(orders, self.seen.get(store, 0))


class _Watcher(WSListener):
    """A browser's side of the probes."""

    def __init__(self, probes: _Probes) -> None:
        self._probes = probes
        self._columns: list[str] = []
        self.ready = asyncio.Event()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type != WSMsgType.TEXT:
            return
        message = msgspec.json.decode(frame.get_payload_as_bytes())
        if message["type"] == "snapshot":
            self._columns = message["columns"]
            self.ready.set()
        for row in message.get("rows", ()):
            shown = dict(zip(self._columns, row, strict=True))
            if shown["store"].startswith(PROBE_PREFIX):
                self._probes.show(shown["store"], shown["orders"])


@dataclass(frozen=True, slots=True)
class Platform:
    """All processes on the write and the push path."""

    api: Child
    processes: list[Child]
    socket_port: int


def start_platform(stack: Stack, **fanout: str) -> Platform:
    """`fanout`: further environment of that process."""
    own = {"COFFEE_RT_NAMESPACE": NAMESPACE}
    port = free_port()
    processes = [
        stack.process("worker", **own),
        stack.process("aggregator", **own),
        stack.process("fanout", COFFEE_RT_FANOUT_WEBSOCKET_PORT=str(port), **own, **fanout),
    ]
    api = stack.process("order-api", **own)
    return Platform(api, [api, *processes], port)


async def measure_latencies(say: Progress, *, seconds: float) -> list[Figure]:
    """accept_to_frame, accept_to_stored, bytes and memory of each process."""
    with Stack() as stack:
        pool = await prepare_store(stack.postgres.url)
        platform = start_platform(stack)
        say("latency: capacity of the whole platform on this machine")
        job = Job(
            port=platform.api.port,
            path=PATH,
            connections=CONNECTIONS,
            seconds=seconds / 2,
            headers=JSON,
            bodies=bodies(),
        )
        capacity = (await run_load(job)).rate
        say(f"latency: probes at half of {capacity:.0f} orders a second")
        await _wait_until_drained(stack, pool)
        probes = _Probes()
        watcher = _Watcher(probes)
        transport, _ = await ws_connect(
            lambda: watcher, f"ws://127.0.0.1:{platform.socket_port}/ws"
        )
        transport.send(
            WSMsgType.TEXT, f'{{"type":"subscribe","id":1,"channel":"view:{VIEW}"}}'.encode()
        )
        await asyncio.wait_for(watcher.ready.wait(), WAIT_SECONDS_MAX)
        loaded = msgspec.structs.replace(job, rate=capacity / 2, seconds=seconds, connections=256)
        load = asyncio.create_task(run_load(loaded))
        await asyncio.sleep(1.0)
        psutil.cpu_percent()  # The share of time since this call is what the next one gives.
        await _probe(platform.api.port, probes, seconds - 1.5)
        machine = {
            "machine_busy_percent": psutil.cpu_percent(),
            "load_average": round(os.getloadavg()[0], 1),
        }
        outcome = await load
        await asyncio.sleep(1.0)
        transport.disconnect()
        notes = {"capacity": round(capacity), "load": round(outcome.rate)} | machine
        figures = _figures(probes, notes)
        say("bytes and memory")
        figures.append(await _bytes(stack, pool))
        figures.append(_memory(platform, await _stored(pool)))
        await pool.close()
    return figures


async def _stored(pool: Pool) -> int:
    return int(await pool.fetchval("SELECT coalesce(sum(stored), 0) FROM stream_entries"))


async def _wait_until_drained(stack: Stack, pool: Pool) -> None:
    """Until the database has every accepted order, so that the probes do not queue behind the warm-up."""
    accepted = await _accepted(stack)
    deadline = time.monotonic() + DRAIN_SECONDS_MAX
    while await _stored(pool) < accepted:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the platform did not drain in {DRAIN_SECONDS_MAX:.0f} s")
        await asyncio.sleep(0.1)


async def _accepted(stack: Stack) -> int:
    client = redis.asyncio.Redis.from_url(stack.valkey.url)
    counters = await client.mget(LogKeys(NAMESPACE, stack.shards).counters)
    await client.aclose()
    return sum(int(counter or 0) for counter in counters)


async def _probe(port: int, probes: _Probes, seconds: float) -> None:
    """Probes at a steady pace, on connections of their own."""
    deadline = time.perf_counter() + seconds
    await asyncio.gather(
        *(_probe_store(port, f"{PROBE_PREFIX}{n}", probes, deadline) for n in range(PROBE_STORES))
    )


async def _probe_store(port: int, store: str, probes: _Probes, deadline: float) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = f'{{"store":"{store}","drink":"latte","price":"4.50"}}'.encode()
    head = (
        f"POST {PATH}?ack=stored HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    pause = PROBE_STORES / PROBES_PER_SECOND
    await asyncio.sleep(random.random() * pause)
    while time.perf_counter() < deadline:
        began = time.perf_counter()
        probes.send(store)
        writer.write(head.encode() + body)
        answer = await _read_answer(reader)
        spent = time.perf_counter() - began
        level = str(answer.get("ack"))
        probes.levels[level] = probes.levels.get(level, 0) + 1
        if level in ("stored", "visible"):
            probes.to_stored.append(spent)
        await asyncio.sleep(max(0.0, pause * (0.5 + random.random()) - spent))
    writer.close()


async def _read_answer(reader: asyncio.StreamReader) -> dict[str, Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    start = head.index(b"content-length:") + 15
    length = int(head[start : head.index(b"\r", start)])
    answer: dict[str, Any] = msgspec.json.decode(await reader.readexactly(length))
    return answer


def _figures(probes: _Probes, measured: Mapping[str, float]) -> list[Figure]:
    notes = {**measured, "levels": probes.levels}
    made = []
    for name, what, times, goal in (
        (
            "accept_to_frame",
            "POST to the frame that shows it",
            probes.to_frame,
            "p50 < 35, p99 < 90",
        ),
        ("accept_to_stored", "POST to ack=stored", probes.to_stored, "p50 < 22, p99 < 45"),
    ):
        ordered = sorted(times)
        # The tenth that met the least of a busy machine's other work tells most about the path itself.
        p10, p50, p99 = (round(percentile(ordered, share) * 1000, 1) for share in (0.1, 0.5, 0.99))
        unseen = sum(map(len, probes.sent.values())) - len(ordered)
        made.append(
            Figure(
                name=name,
                what=f"{what}, at half of capacity",
                value=p50,
                unit="ms",
                p50_ms=p50,
                p99_ms=p99,
                goal=f"{goal} ms",
                notes=notes | {"p10_ms": p10, "probes": len(ordered), "unseen": unseen},
            )
        )
    return made


async def _bytes(stack: Stack, pool: Pool) -> Figure:
    client = redis.asyncio.Redis.from_url(stack.valkey.url)
    keys = LogKeys(NAMESPACE, stack.shards)
    used = sum([int(await client.memory_usage(stream, samples=0) or 0) for stream in keys.streams])
    await client.aclose()
    accepted = await _accepted(stack)
    rows, disk = await pool.fetchrow(
        "SELECT (SELECT count(*) FROM orders), (SELECT sum(pg_total_relation_size(inhrelid))::bigint"
        " FROM pg_inherits WHERE inhparent = 'orders'::regclass)"
    )
    per_row = round(int(disk) / max(int(rows), 1), 1)
    return Figure(
        name="bytes",
        what="bytes of an order in the log",
        value=round(used / max(accepted, 1), 1),
        unit="bytes",
        notes={"disk_bytes_per_stored_order": per_row, "orders": accepted},
    )


def _memory(platform: Platform, stored: int) -> Figure:
    sizes = {child.name: round(child.memory_bytes / 1e6, 1) for child in platform.processes}
    return Figure(
        name="memory",
        what=f"largest process after {stored} orders",
        value=max(sizes.values()),
        unit="MB",
        goal="< 150 MB each",
        notes={"mb": sizes},
    )
