"""What befalls the servers, and what operators do meanwhile: the plan's events, carried out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from coffee_rt.domain.views import ViewDefinition
from coffee_rt.errors import Rejected, Retryable
from coffee_rt.streams.contract import STORE_GROUP
from tests.simulation import redrives
from tests.simulation.loop import Process
from tests.simulation.network import GIVE_UP_SECONDS, LATE_SECONDS_MAX, Server
from tests.simulation.plan import Event
from tests.simulation.world import World


class Misfortunes:
    """Runs the plan's events in a process of its own, each in its own task."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._definitions = iter(world.plan.views[1:])
        # One at a time: a replica follows the new master from its first moment on.
        self._replica = asyncio.Lock()
        self._standby = asyncio.Lock()

    async def run(self, world: World, process: Process) -> None:
        world.parts[process.name].core = self
        await asyncio.gather(*map(self._play, world.plan.events))
        await asyncio.Event().wait()

    async def _play(self, event: Event) -> None:
        await asyncio.sleep(event.at)
        if self._world.is_healed:
            return
        self._world.note(f"event: {event.kind} ({event.seconds:.2f} s)")
        self._world.happened[f"event {event.kind}"] += 1
        act: Callable[[float], Awaitable[None]] = getattr(self, "_" + event.kind.replace(" ", "_"))
        await act(event.seconds)

    async def _redis_away(self, seconds: float) -> None:
        self._world.log.restart()
        await self._away(self._world.redis, seconds)
        self._world.bus.interrupt()

    async def _postgresql_away(self, seconds: float) -> None:
        await self._away(self._world.postgresql, seconds)

    async def _away(self, server: Server, seconds: float) -> None:
        server.run += 1
        server.is_away = True
        await asyncio.sleep(seconds)
        server.is_away = False

    async def _redis_restart(self, seconds: float) -> None:
        self._world.redis.run += 1
        self._world.log.restart()
        self._world.bus.interrupt()

    async def _postgresql_restart(self, seconds: float) -> None:
        self._world.postgresql.run += 1

    async def _redis_freeze(self, seconds: float) -> None:
        await self._freeze(self._world.redis, seconds)

    async def _postgresql_freeze(self, seconds: float) -> None:
        await self._freeze(self._world.postgresql, seconds)

    async def _freeze(self, server: Server, seconds: float) -> None:
        server.process.freeze()
        await asyncio.sleep(seconds)
        server.process.thaw()

    async def _postgresql_refuses(self, seconds: float) -> None:
        self._world.postgresql.is_refusing = True
        await asyncio.sleep(seconds)
        self._world.postgresql.is_refusing = False

    async def _cut(self, seconds: float) -> None:
        """Nothing passes between a process and a server."""
        world = self._world
        names = [name for name in world.parts if "-" in name]
        pair = world.chance.choice(names), world.chance.choice(("redis", "postgresql"))
        world.note(f"cut: {pair[0]} from {pair[1]}")
        world.network.cut.add(pair)
        await asyncio.sleep(seconds)
        world.network.cut.discard(pair)

    async def _cut_off(self, seconds: float) -> None:
        """Some order_api can't connect to Redis; others can."""
        world = self._world
        names = [name for name in world.parts if name.startswith("api")]
        chosen = world.chance.sample(names, world.chance.randint(1, len(names)))
        world.note(f"cut off from redis: {chosen}")
        pairs = {(name, "redis") for name in chosen}
        world.network.refused |= pairs
        await asyncio.sleep(seconds)
        world.network.refused -= pairs

    async def _both_away(self, seconds: float) -> None:
        await asyncio.gather(self._redis_away(seconds), self._postgresql_away(seconds))

    async def _log_full(self, seconds: float) -> None:
        self._world.log.memory_bytes_max = max(1, self._world.log.memory_bytes - 1)
        await asyncio.sleep(seconds)
        self._world.log.memory_bytes_max = 0

    async def _poison_ends(self, seconds: float) -> None:
        self._world.fussiness.is_poisoned = False

    async def _redrive(self, seconds: float) -> None:
        redrives.ask_for_redrive(self._world)

    async def settle_letters(self) -> None:
        """As whoever looks after dead letters does, until none is left that could be stored."""
        while True:
            if redrives.parked_letters(self._world) and not redrives.is_redriving(self._world):
                redrives.ask_for_redrive(self._world)
            await asyncio.sleep(0.5)

    async def _failover(self, seconds: float) -> None:
        """The replica's clock may be another; entry ids can then be given again."""
        world = self._world
        async with self._replica:
            replica = world.log.snapshot()
            if world.plan.has("promotion") and not all(shard.timelines for shard in replica):
                # A log that was never told a timeline, and forgets the first it is told, follows none.
                return
            await asyncio.sleep(seconds)
            if not world.is_healed:
                world.fail_over(replica, -2.0 * world.chance.random())

    async def _promotion(self, seconds: float) -> None:
        """A standby goes on that lacks the last commits."""
        world = self._world
        async with self._standby:
            standby = world.database.snapshot()
            await asyncio.sleep(seconds)
            if not world.is_healed:
                world.postgresql.run += 1
                world.promote(standby)

    async def _group_destroyed(self, seconds: float) -> None:
        for shard in self._world.log.shards:
            shard.groups.pop(STORE_GROUP, None)

    async def _messages_missed(self, seconds: float) -> None:
        self._world.bus.interrupt()

    async def _stranger(self, seconds: float) -> None:
        """Somebody writes into the log what is no entry of ours."""
        world = self._world
        fields = {b"what": b"ever"}
        world.log.insert_raw(0, fields)

    async def _views(self, seconds: float) -> None:
        definitions = next(self._definitions)
        self._world.definitions = definitions
        await self.apply_views(definitions)

    async def apply_views(self, definitions: list[ViewDefinition]) -> None:
        """As a roll-out of other definitions, or an operator, does it: until it is done."""
        world = self._world
        catalogue, channels = world.remote_catalogue(), world.channels_of()
        await self._until_done(lambda: catalogue.ensure_views(definitions))
        wanted = {definition.name for definition in definitions}
        states = await self._until_done(catalogue.views)
        for name in sorted({state.definition.name for state in states} - wanted):
            with suppress(Rejected):
                await self._until_done(partial(catalogue.drop_view, name))
        await self._until_done(lambda: channels.publish("catalogue", b"{}"))

    async def settle_views(self) -> None:
        """As an operator reconciles: once more when every call that was late has been done."""
        definitions = self._world.definitions
        await self.apply_views(definitions)
        await asyncio.sleep(GIVE_UP_SECONDS + LATE_SECONDS_MAX)
        await self.apply_views(definitions)

    async def _rebuild(self, seconds: float) -> None:
        """coffee-rt rebuild-view, of every view there is."""
        world = self._world
        repairer, catalogue = world.remote_repairer(), world.remote_catalogue()
        try:
            for state in await catalogue.views():
                for chunk in await repairer.plan_chunks(state.internal, None, None):
                    await repairer.rebuild_chunk(chunk)
        except (Retryable, Rejected) as error:
            world.note(f"rebuild ends: {error}")

    async def _until_done(self, step: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            try:
                return await step()
            except Retryable:
                await asyncio.sleep(0.1)
