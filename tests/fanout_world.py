"""A world around the fan-out's core without servers: virtual time, a store that is the truth, sockets."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from coffee_rt.channels.memory import MemoryChannels
from coffee_rt.channels.messages import Beacon, LaneState, RecentOrder, ViewChange, encode
from coffee_rt.domain.orders import Order
from coffee_rt.domain.views import ViewDefinition, lane_of
from coffee_rt.errors import Retryable
from coffee_rt.fanout.frames import Frame
from coffee_rt.fanout.hub import Hub, HubLimits
from coffee_rt.store.contract import StoredOrder
from coffee_rt.store.view_contract import LaneVersion, SnapshotScope, ViewSnapshot, ViewState
from tests.builders import NOW_MS, a_view
from tests.live_client import LiveView

HOUR = NOW_MS // 1000 // 3600 * 3600


class VirtualClock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self._time = NOW_MS / 1000
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def now(self) -> float:
        return self._time

    def monotonic(self) -> float:
        return self._time

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._time + seconds, next(self._numbers), woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Let everything happen that is due within so long, in order."""
        end = self._time + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, woken = heapq.heappop(self._sleepers)
            self._time = max(self._time, due)
            if not woken.done():
                woken.set_result(None)
            await settle()
        self._time = end


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(12):
        await asyncio.sleep(0)


class TruthStore:
    """The views' truth, as PostgreSQL would hold it; what the hub reads, and what folds are made of."""

    def __init__(self, *definitions: ViewDefinition) -> None:
        self.definitions = {d.name: d for d in definitions or (a_view("sales", lanes=2),)}
        self.epoch = "1.7.1"
        self.is_away = False
        self.reads = 0
        self.orders: list[Order] = []
        self.reset_rows()

    def reset_rows(self) -> None:
        self.rows: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = {}
        self.versions: dict[str, list[int]] = {}
        for name, definition in self.definitions.items():
            self.rows[name] = {}
            self.versions[name] = [0] * definition.lanes

    def fold(self, *groups: tuple[Any, ...], view: str = "sales") -> list[ViewChange]:
        """Add an order to each group (tenant, bucket, dimensions...): one publication for each lane."""
        definition = self.definitions[view]
        lanes: dict[int, list[tuple[Any, ...]]] = {}
        for group in groups:
            lanes.setdefault(lane_of(group, definition.lanes), []).append(group)
        changes = []
        for lane, members in sorted(lanes.items()):
            previous = self.versions[view][lane]
            self.versions[view][lane] = version = previous + 1
            for group in members:
                self._add(definition, group, lane, version)
            changed = {group: self.rows[view][group] for group in members}
            rows = [
                {key: value for key, value in row.items() if key != "lane"}
                for row in changed.values()
            ]
            changes.append(ViewChange(view, self.epoch, lane, version, previous, 0, rows, NOW_MS))
        return changes

    def _add(
        self, definition: ViewDefinition, group: tuple[Any, ...], lane: int, version: int
    ) -> None:
        tenant, bucket, *dimensions = group
        known = self.rows[definition.name].get(group)
        orders = 1 if known is None else known["orders"] + 1
        self.rows[definition.name][group] = {
            "tenant": tenant,
            "bucket": bucket,
            **dict(zip(definition.dimension_columns, dimensions, strict=True)),
            "orders": orders,
            "quantity": 2 * orders,
            "revenue": 450 * orders,
            "lane": lane,
            "version": version,
            "newest_at_ms": NOW_MS,
        }

    def beacon(self) -> Beacon:
        return Beacon(
            NOW_MS,
            dict.fromkeys(self.definitions, self.epoch),
            {
                view: [LaneState(version, 0) for version in versions]
                for view, versions in self.versions.items()
            },
        )

    def expected(
        self, *, tenant: int = 0, since: int = 0, store: str | None = None, view: str = "sales"
    ) -> dict[tuple[Any, ...], list[int]]:
        """What a client must show, as LiveView.values gives it."""
        names = [measure.name for measure in self.definitions[view].measures]
        return {
            (*group[2:], group[1]): [row[name] for name in names]
            for group, row in self.rows[view].items()
            if group[0] == tenant and group[1] >= since and store in (None, group[2])
        }

    async def views(self) -> list[ViewState]:
        self._read()
        return [
            ViewState(definition, f"{name}_1", self.epoch, True, None)
            for name, definition in self.definitions.items()
        ]

    async def snapshot(
        self, view: str, start: int, scope: SnapshotScope | None = None
    ) -> ViewSnapshot:
        self._read()
        rows = [dict(row) for row in self.rows[view].values() if row["bucket"] >= start]
        if scope is not None:
            rows = [
                row
                for row in rows
                if row["tenant"] == scope.tenant
                and all(row[name] in texts for name, texts in scope.filters)
            ][: scope.rows_max]
        found = ViewSnapshot(view, self.epoch, list(self.versions[view]), rows)
        await asyncio.sleep(0)
        return found

    async def rows_above(self, view: str, lane: int, version: int, start: int) -> ViewSnapshot:
        found = await self.snapshot(view, start)
        rows = [row for row in found.rows if row["lane"] == lane and row["version"] > version]
        return ViewSnapshot(view, found.epoch, found.versions, rows)

    async def recent_orders(self, tenant: int | None, limit: int) -> list[StoredOrder]:
        self._read()
        mine = [order for order in self.orders if tenant in (None, order.tenant)]
        mine.sort(key=lambda order: order.order_id, reverse=True)
        return [StoredOrder(order, bytes(16)) for order in mine[:limit]]

    async def lane_versions(self) -> tuple[dict[str, str], list[LaneVersion]]:
        self._read()
        return dict.fromkeys(self.definitions, self.epoch), [
            LaneVersion(view, lane, version, 0)
            for view, versions in self.versions.items()
            for lane, version in enumerate(versions)
        ]

    def _read(self) -> None:
        self.reads += 1
        if self.is_away:
            raise Retryable("the store is away")


class FakeSocket:
    """A socket whose browser reads only when told to."""

    def __init__(self) -> None:
        self.is_congested = False
        self.received: list[dict[str, Any]] = []
        self.closed: tuple[int, str] | None = None
        self.bytes_written = 0

    @staticmethod
    def encode(frame: Frame, /) -> bytes:
        return frame.payload

    def write(self, data: bytes) -> None:
        assert self.closed is None, "written after the close"
        self.bytes_written += len(data)
        self.received.append(msgspec.json.decode(data))

    def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)

    def take(self, *types: str) -> list[dict[str, Any]]:
        """Messages received since the last call, of the types given (or all)."""
        taken, self.received = self.received, []
        return [message for message in taken if not types or message["type"] in types]


class Pod:
    """One fan-out process: a hub with its own ears."""

    def __init__(self, store: TruthStore, clock: VirtualClock, hub: Hub, bus: MemoryChannels):
        self.store = store
        self.clock = clock
        self.hub = hub
        self.bus = bus

    async def hear(self, changes: Iterable[ViewChange]) -> None:
        for change in changes:
            await self.bus.publish(f"view:{change.view}", encode(change))

    async def hear_beacon(self) -> None:
        await self.bus.publish("beacon", encode(self.store.beacon()))

    async def hear_orders(self, *orders: RecentOrder) -> None:
        await self.bus.publish("orders", encode({"orders": orders, "stored": len(orders)}))

    def browser(self, **options: Any) -> Browser:
        return Browser(self, **options)


class Browser:
    """A client with one view subscription, over a FakeSocket."""

    def __init__(self, pod: Pod, channel: str = "view:sales", **options: Any) -> None:
        self.channel = channel
        self.options = options
        self.view = LiveView()
        self.connect(pod)

    def connect(self, pod: Pod) -> None:
        self.socket = FakeSocket()
        self.session = pod.hub.open(self.socket, "test")
        self._subscribe()

    def disconnect(self) -> None:
        self.session.on_closed()

    def say(self, message: dict[str, Any]) -> None:
        self.session.on_message(encode(message))

    def congest(self) -> None:
        self.socket.is_congested = True

    def drain(self) -> None:
        self.socket.is_congested = False
        self.session.on_writable()

    def read(self) -> LiveView:
        """Apply what has arrived; a gap makes it subscribe again, as docs/protocol.md says."""
        for message in self.socket.take():
            self.view.apply(message)
        if self.view.needs_resume:
            self._subscribe()
            return self.read()
        return self.view

    def _subscribe(self) -> None:
        self.say(self.view.subscribe(self.channel, **self.options))


@asynccontextmanager
async def running_pod(
    store: TruthStore, clock: VirtualClock, limits: HubLimits | None = None, **options: Any
) -> Any:
    """A pod that has loaded its views. `options` go to the hub."""
    bus = MemoryChannels()
    settings: dict[str, Any] = {"authorize": lambda token: 0, "needs_token": False, **options}
    hub = Hub(
        messages=bus,
        catalogue=store,
        reader=store,
        orders=store,
        versions=store,
        clock=clock,
        limits=limits,
        uniform=lambda low, high: (low + high) / 2,
        **settings,
    )
    task = asyncio.create_task(hub.run())
    await clock.advance(0.5)
    try:
        yield Pod(store, clock, hub, bus)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
