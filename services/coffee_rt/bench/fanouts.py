"""How many frames a second reach sockets, beside a bare broadcast loop; and what a socket costs.

The bare loop runs closed loop: one observing socket sees a frame arrive and asks for the next. Ours puts changes
that come while it sends into one frame, so it is given changes faster than it can send them, and only frames
that arrive are counted.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from coffee_rt.bench.posts import Progress
from coffee_rt.bench.results import Figure, with_ratio
from coffee_rt.bench.stack import Child, Stack
from coffee_rt.bench.swarm import Swarm, Tally
from coffee_rt.bench.workers import NAMESPACE, prepare_store
from coffee_rt.channels.messages import ViewChange, encode
from coffee_rt.channels.redis import RedisChannels
from coffee_rt.embedded.server_process import free_port
from coffee_rt.runtime.environment import environment
from coffee_rt.store.view_catalogue import PostgresViewCatalogue

VIEW = "hourly"
ROWS = 5
"""Rows of a frame: with five a frame has about the payload of the bare loop's."""
WINDOW = 3
"""Broadcasts of the bare loop under way: enough that the next one always waits at the server."""
OFFERED_FRAMES_PER_SECOND = 250_000
"""Frames that the changes given to ours would make, one by one: above what any server here can send."""
SUBSCRIBE = f'{{"type":"subscribe","id":1,"channel":"view:{VIEW}"}}'


class _Observer(WSListener):
    """One socket among the many: tells of each frame, and how large frames are."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.started = 0
        """Broadcasts asked for."""
        self.frames = 0
        self.frame_bytes = 0

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type != WSMsgType.TEXT:
            return
        payload = frame.get_payload_as_bytes()
        if payload.startswith((b'{"type":"delta"', b"x")):
            self.frames += 1
            # The header of a server's frame: 2 bytes, or 4 from 126 bytes of payload on.
            self.frame_bytes = len(payload) + (2 if len(payload) < 126 else 4)
            self.arrived.set()


@dataclass(frozen=True, slots=True)
class _Measured:
    frames_per_second: float
    frames_per_cpu_second: float
    frame_bytes: int
    memory_per_socket: float
    closed: int


async def measure_fanout(say: Progress, *, sockets: int, seconds: float) -> Figure:
    """Frames a second to `sockets` sockets of one view, and bytes a socket takes in the process."""
    with Stack() as stack:
        pool = await prepare_store(stack.postgres.url)
        [state] = [
            state
            for state in await PostgresViewCatalogue(pool).views()
            if state.definition.name == VIEW
        ]
        await pool.close()
        say(f"fanout: {sockets} sockets on a bare broadcast loop")
        bare = stack.module("coffee_rt.bench.bare_sockets", ready_path="")
        ceiling = await _measure_bare(bare, sockets, seconds)
        stack.end(bare)
        say(f"fanout: {sockets} sockets on ours")
        ours = await _measure_ours(stack, state.epoch, sockets, seconds)
    return with_ratio(
        Figure(
            name=f"fanout_{sockets}",
            what=f"frames to {sockets} sockets of one view",
            value=round(ours.frames_per_second),
            unit="frames/s",
            ceiling=round(ceiling.frames_per_second),
            ceiling_is="bare picows broadcast loop",
            goal=">= 0.8; <= 32 KB a socket",
            notes={
                "frames_per_cpu_second": round(ours.frames_per_cpu_second),
                "ceiling_frames_per_cpu_second": round(ceiling.frames_per_cpu_second),
                "ratio_by_cpu": round(
                    ours.frames_per_cpu_second / ceiling.frames_per_cpu_second, 3
                ),
                "frame_bytes": ours.frame_bytes,
                "ceiling_frame_bytes": ceiling.frame_bytes,
                "kb_per_socket": round(ours.memory_per_socket / 1024, 1),
                "ceiling_kb_per_socket": round(ceiling.memory_per_socket / 1024, 1),
                "closed": ours.closed,
            },
        )
    )


async def _measure_bare(server: Child, sockets: int, seconds: float) -> _Measured:
    observer = _Observer()

    async def start_next() -> None:
        transport.send(WSMsgType.TEXT, b"next")

    async def open_observer() -> WSTransport:
        opened, _ = await ws_connect(lambda: observer, f"ws://127.0.0.1:{server.port}/ws")
        return opened

    swarm = Swarm(server.port, "/ws", sockets, "hello")
    process, memory = await open_swarm(swarm, server)
    transport = await open_observer()
    return await _run(process, server, memory, observer, start_next, seconds)


async def _measure_ours(stack: Stack, epoch: str, sockets: int, seconds: float) -> _Measured:
    port = free_port()
    fanout = stack.process(
        "fanout",
        COFFEE_RT_NAMESPACE=NAMESPACE,
        COFFEE_RT_FANOUT_WEBSOCKET_PORT=str(port),
        COFFEE_RT_FANOUT_FRAME_INTERVAL_MS="0",
        COFFEE_RT_FANOUT_SESSIONS_PER_ADDRESS_MAX=str(sockets + 10),
        COFFEE_RT_FANOUT_CONNECTS_PER_MINUTE="0",
        COFFEE_RT_FANOUT_SESSIONS_MAX=str(sockets + 10),
        COFFEE_RT_OPEN_FILES_MIN=str(sockets + 200),
    )
    channels = RedisChannels(stack.valkey.url, namespace=NAMESPACE)
    observer = _Observer()
    versions = iter(range(1, 1 << 40))

    async def start_next() -> None:
        await channels.publish(f"view:{VIEW}", encode(_change(epoch, next(versions))))

    process, memory = await open_swarm(Swarm(port, "/ws", sockets, SUBSCRIBE), fanout)
    transport, _ = await ws_connect(lambda: observer, f"ws://127.0.0.1:{port}/ws")
    transport.send(WSMsgType.TEXT, SUBSCRIBE.encode())
    try:
        pace = sockets / OFFERED_FRAMES_PER_SECOND
        return await _run(process, fanout, memory, observer, start_next, seconds, pace)
    finally:
        await channels.close()


def _change(epoch: str, version: int) -> ViewChange:
    hour = int(time.time()) // 3600 * 3600
    rows: list[dict[str, Any]] = [
        {
            "tenant": 0,
            "bucket": hour,
            "store": f"store {row}",
            "drink": "cappuccino",
            "orders": version,
            "quantity": version,
            "revenue": version * 450,
            "lane": 0,
            "version": version,
            "newest_at_ms": int(time.time() * 1000),
        }
        for row in range(ROWS)
    ]
    return ViewChange(
        view=VIEW,
        epoch=epoch,
        lane=0,
        version=version,
        previous=version - 1,
        floor=version,
        rows=rows,
        newest_at_ms=int(time.time() * 1000),
    )


async def open_swarm(swarm: Swarm, server: Child) -> tuple[asyncio.subprocess.Process, float]:
    """The swarm, ready, and what one of its sockets added to the server's memory in bytes."""
    before = server.memory_bytes
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "coffee_rt.bench.swarm",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(msgspec.json.encode(swarm) + b"\n")
    await process.stdin.drain()
    line = await asyncio.wait_for(process.stdout.readline(), 120)
    if line.strip() != b"ready":
        raise RuntimeError("the sockets could not be opened; the error is above")
    await asyncio.sleep(0.5)
    return process, (server.memory_bytes - before) / swarm.sockets


async def _run(
    process: asyncio.subprocess.Process,
    server: Child,
    memory: float,
    observer: _Observer,
    start_next: Callable[[], Awaitable[None]],
    seconds: float,
    pace_seconds: float | None = None,
) -> _Measured:
    assert process.stdin is not None
    await _keep_going(observer, start_next, 0.5, pace_seconds)
    process.stdin.write(b"count\n")
    await process.stdin.drain()
    began, cpu_before = time.perf_counter(), server.cpu_seconds
    await _keep_going(observer, start_next, seconds, pace_seconds)
    spent, cpu = time.perf_counter() - began, server.cpu_seconds - cpu_before
    answer, _ = await asyncio.wait_for(process.communicate(b""), 60)
    tally = msgspec.json.decode(answer.splitlines()[-1], type=Tally)
    frames = tally.received_bytes / max(observer.frame_bytes, 1)
    return _Measured(frames / spent, frames / cpu, observer.frame_bytes, memory, tally.closed)


async def _keep_going(
    observer: _Observer,
    start_next: Callable[[], Awaitable[None]],
    seconds: float,
    pace_seconds: float | None,
) -> None:
    """Start broadcasts at a pace, or with none as they arrive."""
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        if pace_seconds is not None:
            await start_next()
            await asyncio.sleep(pace_seconds)
            continue
        while observer.started - observer.frames < WINDOW:
            observer.started += 1
            await start_next()
        observer.arrived.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(observer.arrived.wait(), 1.0)
