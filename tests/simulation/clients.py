"""Clients: each places its orders one after the other, and repeats what it was not told the outcome of."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from coffee_rt.domain.ids import IdMinter
from coffee_rt.errors import NotExecuted, Overload, Retryable
from coffee_rt.order_api.acks import Ack
from coffee_rt.query_api.finding import OrderFinder
from coffee_rt.streams.contract import Appended, Outcome
from tests.simulation import truth
from tests.simulation.loop import Process
from tests.simulation.plan import Wish
from tests.simulation.world import EPOCH_SECONDS, Part, World

ACK_SECONDS = 0.5
"""How long an answer may wait for its order to be stored or visible."""
WAIT_SECONDS = 0.8
"""How long a client waits for an answer; then the outcome is unknown."""


@dataclass(slots=True)
class Told:
    """What a client was told of one wish."""

    wish: Wish
    client_id: bytes | None
    ids: set[bytes] = field(default_factory=set)
    """Of every 202."""
    is_unknown: bool = False
    """At least one attempt had no answer."""
    is_over: bool = False
    twins_taken: set[bytes] = field(default_factory=set)
    """Ids of 202s for another body under the same key."""
    twin_sent: bool = False


class Clients:
    """All clients of a run; one process, which nothing befalls."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._minter = IdMinter()
        self.told = [
            [Told(wish, self._client_id(wish)) for wish in wishes] for wishes in world.plan.wishes
        ]

    @property
    def all_told(self) -> list[Told]:
        return [told for client in self.told for told in client]

    @property
    def are_done(self) -> bool:
        return all(told.is_over for told in self.all_told)

    async def run(self, world: World, process: Process) -> None:
        world.parts[process.name].core = self
        self._finder = OrderFinder(
            world.remote_log_keeper(),
            world.remote_order_reader(),
            world.breaker_of(process, "redis"),
            world.breaker_of(process, "postgresql"),
            world.remote_intake(),
        )
        await asyncio.gather(*map(self._play, self.told))
        await asyncio.Event().wait()

    def _client_id(self, wish: Wish) -> bytes | None:
        if not wish.is_client_id:
            return None
        return self._minter.mint(int(EPOCH_SECONDS * 1000) + wish.number)

    async def _play(self, client: list[Told]) -> None:
        for told in client:
            await asyncio.sleep(self._world.plan.fault_seconds / 6 * self._world.chance.random())
            if told.wish.is_raced:
                await asyncio.gather(self._settle(told), self._settle(told))
            else:
                await self._settle(told)
            if told.wish.is_repeated:
                await self._settle(told)
            if told.wish.is_twin and told.ids:
                await self._send_twin(told)
            told.is_over = not told.wish.is_recalled
        early_seconds = self._world.plan.recall_at - self._world.loop.now
        if early_seconds > 0:
            await asyncio.sleep(early_seconds)
        for told in client:
            if told.wish.is_recalled:
                await self._settle(told)
                told.is_over = True

    async def _settle(self, told: Told) -> None:
        """Until it is known what became of it, or can't be known."""
        while True:
            answer = await self._attempt(told.wish, told.client_id)
            if isinstance(answer, Appended):
                if answer.outcome is Outcome.CONFLICT:
                    if not (told.twin_sent and self._world.plan.has_intake):
                        self._world.fail(f"wish {told.wish.number} conflicts with itself")
                    return
                told.ids.add(answer.order_id)
                self._world.note(f"wish {told.wish.number} is {answer.order_id.hex()}")
                await self._look_up(told, answer.order_id)
                return
            if answer is None:
                told.is_unknown = True
                if told.wish.key is None and told.client_id is None:
                    return
            if answer is False and told.wish.is_impatient:
                self._world.note(f"wish {told.wish.number} is given up")
                return
            await asyncio.sleep(0.05 + 0.4 * self._world.chance.random())

    async def _look_up(self, told: Told, order_id: bytes) -> None:
        """Who was told an id finds its order, wherever it is."""
        world = self._world
        if not (world.plan.has_intake or world.plan.is_poisoned) or world.chance.random() < 0.5:
            return
        try:
            found = await self._finder.find(0, order_id)
        except Retryable:
            return
        if found is not None:
            world.happened[f"found {found.state}"] += 1
        elif order_id not in world.lost_ids and not world.plan.has("failover"):
            # A master with another clock: until the first answer, ids are minted ahead of their entries.
            world.fail(
                f"I1: wish {told.wish.number} was told {order_id.hex()}, and it is not found"
            )

    async def _send_twin(self, told: Told) -> None:
        """Another body under the same key: refused, and never stored."""
        wish = told.wish
        twin = Wish(
            wish.number, wish.key, False, wish.store, wish.drink, wish.price_minor + 1, 1, 0
        )
        told.twin_sent = True
        answer = await self._attempt(twin, None)
        if isinstance(answer, Appended) and answer.outcome is not Outcome.CONFLICT:
            told.twins_taken.add(answer.order_id)

    async def _attempt(self, wish: Wish, client_id: bytes | None) -> Appended | bool | None:
        """What was appended; False where it certainly was not; None where nobody knows."""
        world = self._world
        apis = [part for name, part in world.parts.items() if name.startswith("api")]
        part = apis[int(world.chance.random() * len(apis))]
        if not part.is_up:
            await asyncio.sleep(0.01)
            return False
        answer: asyncio.Future[Appended | bool | None] = world.loop.create_future()
        me = world.parts["clients"].process
        process = part.process
        assert process is not None
        assert me is not None
        world.loop.call_later(
            world.network.delay(),
            lambda: process.start(self._serve(part, wish, client_id, answer, me)),
            context=process.context,
        )
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                return await answer
        except TimeoutError:
            return None

    async def _check_ack(self, part: Part, wish: Wish, appended: Appended) -> None:
        """What an answer says of an order's way is true when it is said."""
        if wish.ack is Ack.LOGGED or part.core is None or appended.outcome is Outcome.CONFLICT:
            return
        level = await part.core.acks.wait({appended.position}, wish.ack, ACK_SECONDS)
        self._world.happened[f"told {level.label}"] += 1
        for lie in truth.lies(self._world, appended, level):
            self._world.fail(f"wish {wish.number} was told {level.label}: {lie}")

    async def _serve(
        self,
        part: Part,
        wish: Wish,
        client_id: bytes | None,
        answer: asyncio.Future[Appended | bool | None],
        me: Process,
    ) -> None:
        """In the order_api's process."""
        result: Appended | bool | None = False
        try:
            if part.core is not None:
                appended: Appended = await part.core.place(wish, client_id)
                await self._check_ack(part, wish, appended)
                result = appended
        except Overload as refusal:
            self._world.happened[f"refused {refusal.code}"] += 1
            result = False
        except NotExecuted:
            result = False
        except Retryable:
            result = None
        if self._world.chance.random() >= self._world.network.weather.unanswered:
            self._world.network.reply(me, answer, result)
