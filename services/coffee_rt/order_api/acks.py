"""Knows when orders are stored and when they are visible in every view, from what others publish.

Workers publish each commit (topic `stored`): its entries, its transaction id and the lanes it touched. An
order is visible once each of those lanes has a floor above that transaction (topics `view:*`, `beacon`).
Publications can be lost, so a waiter also asks the log now and then whether the entry is settled; what is
never heard is never claimed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from enum import IntEnum

import msgspec

from coffee_rt.channels.contract import Channels
from coffee_rt.channels.messages import (
    Stored,
    decode_beacon,
    decode_stored,
    decode_view_change,
)
from coffee_rt.errors import CoffeeRtError, Rejected
from coffee_rt.order_api.metrics import ACK_WAITS
from coffee_rt.runtime.breaker import backoff_seconds
from coffee_rt.runtime.clock import Clock
from coffee_rt.streams.contract import Position

COMMITS_REMEMBERED_MAX = 20_000
"""Entries whose commit is remembered: a request may ask after its commit was published."""
ASK_SECONDS_MAX = 0.25
"""How long a waiter listens before it asks the log, and between two questions; of a shorter wait, half."""
Waiters = dict[asyncio.Future[None], None]
_TOPICS = ("stored", "beacon", "view:*")


class Ack(IntEnum):
    """How far an order has come. Higher includes lower."""

    LOGGED = 0
    STORED = 1
    VISIBLE = 2

    @property
    def label(self) -> str:
        return self.name.lower()

    @classmethod
    def parse(cls, text: str) -> Ack:
        for level in cls:
            if level.label == text:
                return level
        raise Rejected("bad-ack", "must be logged, stored or visible", "ack", status=400)


class Acks:
    """One of a process. `run` must be running; `wait` may be called by any number of tasks."""

    def __init__(
        self,
        channels: Channels,
        is_settled: Callable[[Position], Awaitable[bool]],
        clock: Clock,
        *,
        waits_max: int,
    ) -> None:
        self._channels = channels
        self._is_settled = is_settled
        self._clock = clock
        self._waits_max = waits_max
        self._waits = 0
        self._gaps = 0
        self._commits: OrderedDict[bytes, Stored] = OrderedDict()
        self._epochs: dict[str, str] = {}
        self._floors: dict[tuple[str, int], int] = {}
        # Woken in the order they came.
        self._for_commit: dict[bytes, Waiters] = {}
        self._for_floor: Waiters = {}

    async def run(self) -> None:
        """Listen until cancelled."""
        attempt = 0
        while True:
            try:
                async with self._channels.subscribe(*_TOPICS) as subscription:
                    attempt = 0
                    async for message in subscription:
                        if message is None:
                            self._on_missed()
                        else:
                            self.hear(*message)
            except CoffeeRtError:
                await self._clock.sleep(backoff_seconds(attempt))
                attempt += 1

    def _on_missed(self) -> None:
        """Publications may have been lost: have all waiters ask the log now."""
        self._gaps += 1
        for waiters in self._for_commit.values():
            _wake(waiters)

    def hear(self, topic: str, body: bytes) -> None:
        """Take one publication. One that can't be read is another release's: it is passed over."""
        try:
            if topic == "stored":
                commit = decode_stored(body)
                for entry in commit.entries:
                    self._commits[entry.batch_id] = commit
                    _wake(self._for_commit.pop(entry.batch_id, {}))
                while len(self._commits) > COMMITS_REMEMBERED_MAX:
                    self._commits.popitem(last=False)
            elif topic == "beacon":
                beacon = decode_beacon(body)
                for view, lanes in beacon.lanes.items():
                    for lane, state in enumerate(lanes):
                        self._raise_floor(view, beacon.epochs.get(view, ""), lane, state.floor)
            else:
                change = decode_view_change(body)
                self._raise_floor(change.view, change.epoch, change.lane, change.floor)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if topic != "stored":
            _wake(self._for_floor)

    async def wait(self, positions: set[Position], wanted: Ack, wait_seconds: float) -> Ack:
        """The level all positions have reached: `wanted` as soon as they have it, else what is known when
        the wait is over. Too many waiters: the level known now."""
        waiting = list(positions)
        reached = self._reached(waiting)
        if wanted <= reached or self._waits >= self._waits_max:
            return min(reached, wanted)
        self._waits += 1
        ACK_WAITS.set(self._waits)
        try:
            return await self._wait(waiting, wanted, wait_seconds)
        finally:
            self._waits -= 1
            ACK_WAITS.set(self._waits)

    async def _wait(self, positions: list[Position], wanted: Ack, wait_seconds: float) -> Ack:
        now = self._clock.monotonic()
        deadline = now + wait_seconds
        # A wait that is shorter than the pause asks too: nobody is told less than can be known.
        ask_seconds = min(ASK_SECONDS_MAX, wait_seconds / 2)
        ask_at, gaps = now + ask_seconds, self._gaps
        settled: set[Position] = set()
        while True:
            reached = self._reached(positions, settled)
            now = self._clock.monotonic()
            if reached >= wanted or now >= deadline:
                return min(reached, wanted)
            if now >= ask_at or gaps != self._gaps:
                gaps = self._gaps
                await self._ask(positions, settled, deadline - now)
                ask_at = self._clock.monotonic() + ask_seconds
                continue
            await self._heard(positions, settled, min(deadline, ask_at) - now)

    async def _heard(
        self, positions: list[Position], settled: set[Position], seconds: float
    ) -> None:
        """Until a publication that may matter, at most so long. A waiter is woken by the commit of its
        entry, or by floors once its entries are committed: not by everything."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        group = self._for_floor
        for position in positions:
            if position.batch_id not in self._commits and position not in settled:
                group = self._for_commit.setdefault(position.batch_id, {})
                break
        group[waiter] = None
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except TimeoutError:
            pass
        finally:
            group.pop(waiter, None)
            if not group and group is not self._for_floor:
                self._for_commit.pop(position.batch_id, None)

    async def _ask(
        self, positions: list[Position], settled: set[Position], seconds_max: float
    ) -> None:
        """Ask the log, at most so long: a log that hangs must not make the waiter late."""
        try:
            async with asyncio.timeout(seconds_max):
                for position in positions:
                    if position in settled or position.batch_id in self._commits:
                        continue
                    if await self._is_settled(position):
                        settled.add(position)
        except (CoffeeRtError, TimeoutError):
            return  # The log is away: nothing more is known, the waiter goes on listening.

    def _reached(self, positions: list[Position], settled: set[Position] | None = None) -> Ack:
        level = Ack.VISIBLE
        for position in positions:
            commit = self._commits.get(position.batch_id)
            if commit is None:
                if not settled or position not in settled:
                    return Ack.LOGGED
                level = Ack.STORED
            elif level is Ack.VISIBLE and not self._is_visible(commit):
                level = Ack.STORED
        return level

    def _is_visible(self, commit: Stored) -> bool:
        # A promoted or restored PostgreSQL gives transaction ids again: floors of before it say nothing of this commit.
        suffix = f".{commit.timeline}" if commit.timeline else ""
        return all(
            self._epochs.get(view, "").endswith(suffix)
            and self._floors.get((view, lane), 0) > commit.xid
            for view, lanes in commit.lanes.items()
            for lane in lanes
        )

    def dead_ids(self, positions: set[Position]) -> set[bytes]:
        """Ids of the orders in the commits of these positions that are known to have become dead letters."""
        commits = map(self._commits.get, {position.batch_id for position in positions})
        return {order_id for commit in commits if commit is not None for order_id in commit.dead}

    async def wait_for_one(
        self, order_id: bytes, position: Position, wanted: Ack, wait_seconds: float
    ) -> str:
        """As `wait`, for one order: the level as clients read it, or that it became a dead letter."""
        level = await self.wait({position}, wanted, wait_seconds)
        return "dead-letter" if order_id in self.dead_ids({position}) else level.label

    def _raise_floor(self, view: str, epoch: str, lane: int, floor: int) -> None:
        if self._epochs.get(view) != epoch:
            # Another epoch may count its transactions anew (a restored or promoted PostgreSQL).
            self._epochs[view] = epoch
            self._floors = {key: value for key, value in self._floors.items() if key[0] != view}
            self._forget_others(epoch.partition(".")[2])
        key = (view, lane)
        self._floors[key] = max(self._floors.get(key, 0), floor)

    def _forget_others(self, timeline: str) -> None:
        """Commits to another timeline than PostgreSQL's newest may be taken back: the log knows which."""
        others = [
            batch_id
            for batch_id, commit in self._commits.items()
            if commit.timeline not in ("", timeline)
        ]
        for batch_id in others:
            del self._commits[batch_id]


def _wake(waiters: Waiters) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
    waiters.clear()
