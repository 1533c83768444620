"""All views' channels: made and dropped as the catalogue says, each with its repair."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from coffee_rt.fanout import metrics
from coffee_rt.fanout.beacons import Heard
from coffee_rt.fanout.contract import Catalogue, SnapshotReader
from coffee_rt.fanout.deep_reads import DeepReads
from coffee_rt.fanout.protocol import parse_filter
from coffee_rt.fanout.repair import ViewRepair
from coffee_rt.fanout.subscriptions import Subscription
from coffee_rt.fanout.view_channel import ViewChannel, ViewLimits
from coffee_rt.runtime.clock import Clock


class ViewChannels:
    """Owned by the hub. `start` runs a coroutine in the background and returns its task."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        reader: SnapshotReader,
        clock: Clock,
        uniform: Callable[[float, float], float],
        limits: ViewLimits,
        decimals: int,
        start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        on_loaded: Callable[[], None],
        on_other_shape: Callable[[], None],
    ) -> None:
        self.channels: dict[str, ViewChannel] = {}
        """By view name."""
        self.is_listed = False
        """Whether the catalogue has been read."""
        self._repairs: dict[str, tuple[ViewRepair, asyncio.Task[None]]] = {}
        self._catalogue = catalogue
        self._reader = reader
        self._clock = clock
        self._uniform = uniform
        self._limits = limits
        self._decimals = decimals
        self._start = start
        self._on_loaded = on_loaded
        self._on_other_shape = on_other_shape
        self._deep_reads = DeepReads(reader, clock, uniform, limits.deep_rows_max)

    @property
    def is_loaded(self) -> bool:
        return self.is_listed and all(channel.rows.is_loaded for channel in self.channels.values())

    async def refresh(self) -> None:
        """Follow the catalogue: views that are new, gone or defined anew. Raises Retryable."""
        states = await self._catalogue.views()
        wanted = {state.definition.name: state.definition for state in states if state.is_live}
        for name in [name for name in self.channels if name not in wanted]:
            self._remove(name)
        for name, definition in wanted.items():
            known = self.channels.get(name)
            if known is None:
                self._add(name, ViewChannel(definition, **self._parts()))
            elif known.rows.definition != definition:
                self._replace(name, known, ViewChannel(definition, **self._parts()))
        self.is_listed = True
        self._on_loaded()

    def hear(self, heard: Heard) -> bool:
        """Compare what a beacon or a poll says with what is known, and ask for repairs. True when it
        speaks of other views than are known."""
        for view, (epoch, lanes) in heard.items():
            channel = self.channels.get(view)
            if channel is None or not channel.rows.is_loaded:
                continue
            if epoch != channel.rows.epoch:
                self.repair(view).request_view()
            elif channel.rows.hear(lanes):
                self.repair(view).request_lanes()
        return heard.keys() != self.channels.keys()

    def repair(self, view: str) -> ViewRepair:
        return self._repairs[view][0]

    def prune(self) -> None:
        """Drop rows that have left the windows."""
        now = self._clock.now()
        for channel in self.channels.values():
            if channel.rows.is_loaded:
                channel.rows.prune(channel.window_start(now), self._limits.rows_max)
        metrics.view_rows.set(sum(len(channel.rows) for channel in self.channels.values()))

    def _parts(self) -> dict[str, Any]:
        return {
            "decimals": self._decimals,
            "limits": self._limits,
            "monotonic": self._clock.monotonic,
            "read": self._deep_reads.read,
        }

    def _add(self, name: str, channel: ViewChannel) -> None:
        repair = ViewRepair(
            channel,
            self._reader,
            self._clock,
            self._uniform,
            self._on_loaded,
            self._on_other_shape,
        )
        channel.repair = repair
        self.channels[name] = channel
        self._repairs[name] = (repair, self._start(repair.run()))

    def _remove(self, name: str) -> ViewChannel:
        channel = self.channels.pop(name)
        self._repairs.pop(name)[1].cancel()
        for subscription in list(channel.subscriptions):
            subscription.session.refuse(subscription.id, "unknown-view", "the view was dropped")
        return channel

    def _replace(self, name: str, old: ViewChannel, new: ViewChannel) -> None:
        """The view is defined anew: its sessions start again on the new channel."""
        subscriptions = list(old.subscriptions)
        for subscription in subscriptions:
            old.drop(subscription)
        self._remove(name)
        self._add(name, new)
        for subscription in subscriptions:
            self._move(subscription, old, new)

    def _move(self, old: Subscription, before: ViewChannel, after: ViewChannel) -> None:
        session = old.session
        names = {before.dimensions[index]: sorted(allowed) for index, allowed in old.filter}
        if not set(names) <= set(after.dimensions):
            session.refuse(old.id, "bad-filter", "the view has changed its dimensions")
            return
        wanted = parse_filter(dict(names), after.dimensions)
        moved = Subscription(session, after, old.id, old.tenant, wanted, old.since)
        session.replace(old, moved, "view-changed")
