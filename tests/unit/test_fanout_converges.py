"""Whatever is lost, doubled, reordered, cut or slow: every browser ends at the truth, and none goes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from coffee_rt.channels.messages import ViewChange
from coffee_rt.fanout.hub import HubLimits
from coffee_rt.fanout.view_channel import ViewLimits
from tests.fanout_world import HOUR, Browser, Pod, TruthStore, VirtualClock, running_pod

STORES = ("uptown", "central")
DRINKS = ("latte", "mocha", "tea")
OLD = HOUR - 70 * 3600
BUCKETS = (HOUR, HOUR - 3600, OLD)

groups = st.tuples(
    st.sampled_from((0, 0, 0, 7)),
    st.sampled_from(BUCKETS),
    st.sampled_from(STORES),
    st.sampled_from(DRINKS),
)
folds = st.tuples(
    st.just("fold"),
    st.lists(groups, min_size=1, max_size=5),
    st.sampled_from(("heard", "lost", "doubled", "held", "lost-by-one")),
)
steps = st.one_of(
    folds,
    folds,
    st.tuples(st.just("release"), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from((0.0, 0.01, 0.06, 0.2, 1.1, 4.0, 61.0))),
    st.tuples(st.just("congest"), st.integers(0, 3)),
    st.tuples(st.just("drain"), st.integers(0, 3)),
    st.tuples(st.just("reconnect"), st.integers(0, 3), st.integers(0, 1)),
    st.tuples(st.just("beacon")),
    st.tuples(st.just("miss")),
    st.tuples(st.just("restore")),
    st.tuples(st.just("outage"), st.booleans()),
)

LIMITS = HubLimits(view=ViewLimits(delta_rows_max=4, part_bytes_max=120))
"""Small, so that snapshots have parts and falling far behind happens."""


class Story:
    """Two pods, four browsers, and what happens to them."""

    def __init__(self, store: TruthStore, clock: VirtualClock, pods: list[Pod]) -> None:
        self.store = store
        self.clock = clock
        self.pods = pods
        self.held: list[ViewChange] = []
        self.wishes: list[dict[str, Any]] = [
            {},
            {"filter": {"store": ["uptown"]}},
            {"since": OLD},
            {"since": HOUR, "filter": {"store": "central"}},
        ]
        self.browsers = [Browser(pods[0], **wish) for wish in self.wishes]

    async def play(self, step: tuple[Any, ...]) -> None:
        name, *arguments = step
        play: Callable[..., Any] = getattr(self, f"_{name}")
        await play(*arguments)
        for browser in self.browsers:
            browser.read()

    async def _fold(self, groups: list[tuple[Any, ...]], fate: str) -> None:
        changes = self.store.fold(*groups)
        if fate == "held":
            self.held += changes
        elif fate == "lost-by-one":
            await self.pods[1].hear(changes)
        elif fate != "lost":
            for pod in self.pods:
                await pod.hear(changes * (2 if fate == "doubled" else 1))

    async def _release(self, is_reversed: bool) -> None:
        held, self.held = self.held, []
        for pod in self.pods:
            await pod.hear(reversed(held) if is_reversed else held)

    async def _wait(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    async def _congest(self, number: int) -> None:
        self.browsers[number].congest()

    async def _drain(self, number: int) -> None:
        self.browsers[number].drain()

    async def _reconnect(self, number: int, pod: int) -> None:
        self.browsers[number].disconnect()
        self.browsers[number].connect(self.pods[pod])

    async def _beacon(self) -> None:
        for pod in self.pods:
            await pod.hear_beacon()

    async def _miss(self) -> None:
        for pod in self.pods:
            pod.bus.interrupt()

    async def _restore(self) -> None:
        """PostgreSQL came back from a backup: another epoch, lower versions."""
        self.held = []
        self.store.epoch = f"1.7.{int(self.store.epoch.rpartition('.')[2]) + 1}"
        self.store.reset_rows()

    async def _outage(self, is_away: bool) -> None:
        self.store.is_away = is_away

    async def heal(self) -> None:
        """Everything works again, for as long as I7 allows."""
        self.store.is_away = False
        for browser in self.browsers:
            browser.drain()
        for _ in range(50):
            await self._beacon()
            await self.clock.advance(0.1)
            for browser in self.browsers:
                browser.read()

    def check(self) -> None:
        for browser, wish in zip(self.browsers, self.wishes, strict=True):
            since = wish.get("since", HOUR - 24 * 3600)
            [store] = [wish.get("filter", {}).get("store")]
            store = store[0] if isinstance(store, list) else store
            assert browser.view.values() == self.store.expected(since=since, store=store)
            assert browser.view.versions == self.store.versions["sales"]
            assert browser.view.epoch == self.store.epoch


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=40))
def test_every_browser_ends_at_the_truth(script: list[tuple[Any, ...]]) -> None:
    async def play() -> None:
        store, clock = TruthStore(), VirtualClock()
        store.fold((0, HOUR, "uptown", "latte"), (0, OLD, "central", "tea"))
        async with running_pod(store, clock, LIMITS) as a, running_pod(store, clock, LIMITS) as b:
            story = Story(store, clock, [a, b])
            for step in script:
                await story.play(step)
            await story.heal()
            story.check()

    asyncio.run(play())
