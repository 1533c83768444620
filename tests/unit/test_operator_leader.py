"""The Lease by which several operators choose the one that works: in virtual time, over leases in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from hypothesis import given
from hypothesis import strategies as st

from coffee_rt.operator.contract import Lease
from coffee_rt.operator.leader import Claim, Leader, Sighting, plan_claim, see
from coffee_rt.runtime.health import Health
from coffee_rt.runtime.logs import get_log
from tests.fanout_world import VirtualClock
from tests.tender_bed import ScaledCluster

NAME = "coffee-rt-operator"
SECONDS = 12


class Candidate:
    """One operator: when it worked, by the shared clock."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.is_working = False
        self.starts = 0
        self.health = Health()
        self.leader = Leader(
            leases=world.cluster,
            name=NAME,
            me=name,
            duration_seconds=SECONDS,
            clock=world.clock,
            health=self.health,
            log=get_log("operator"),
        )

    async def work(self) -> None:
        self.starts += 1
        self.is_working = True
        try:
            await asyncio.Event().wait()
        finally:
            self.is_working = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.leader.run(self.work))
        try:
            yield task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


class World:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.cluster = ScaledCluster()
        self.one = Candidate(self, "one")
        self.two = Candidate(self, "two")


async def test_of_two_operators_one_works() -> None:
    world = World()
    async with world.one.running(), world.two.running():
        for _ in range(30):
            await world.clock.advance(1)
            assert world.one.is_working is not world.two.is_working
    assert world.one.starts + world.two.starts == 1


async def test_a_stopped_operator_gives_its_lease_up_and_the_other_follows_at_once() -> None:
    world = World()
    async with world.one.running() as first:
        await world.clock.advance(1)
        async with world.two.running():
            await world.clock.advance(5)
            first.cancel()
            await world.clock.advance(SECONDS / 4)
            assert world.two.is_working


async def test_a_dead_operator_is_replaced_within_its_lease_and_one_look() -> None:
    world = World()
    world.cluster.leases[NAME] = Lease(NAME, "dead", SECONDS, "x")
    async with world.two.running():
        await world.clock.advance(SECONDS - 1)
        assert not world.two.is_working
        await world.clock.advance(1 + SECONDS / 4)
        assert world.two.is_working
    assert world.cluster.leases[NAME].transitions == 1


async def test_an_operator_without_api_server_stops_before_its_lease_is_over_and_resumes() -> None:
    world = World()
    async with world.one.running():
        await world.clock.advance(10)
        world.cluster.is_away = True
        await world.clock.advance(5)
        assert world.one.is_working
        assert not world.one.health.is_ready
        await world.clock.advance(6)
        assert not world.one.is_working
        await world.clock.advance(60)
        world.cluster.is_away = False
        await world.clock.advance(SECONDS / 4)
        assert world.one.is_working
        assert world.one.health.is_ready
    assert world.one.starts == 2


async def test_two_operators_never_work_at_once_though_one_is_cut_off() -> None:
    world = World()
    async with world.one.running():
        await world.clock.advance(1)
        async with world.two.running():
            await world.clock.advance(5)
            leases = world.one.leader._leases
            cut_off = ScaledCluster(is_away=True)
            world.one.leader._leases = cut_off
            for _ in range(40):
                await world.clock.advance(0.5)
                assert not (world.one.is_working and world.two.is_working)
            assert world.two.is_working
            world.one.leader._leases = leases
            await world.clock.advance(30)
            assert not world.one.is_working


@given(
    st.floats(min_value=0, max_value=1e6),
    st.floats(min_value=0, max_value=100),
    st.sampled_from(["", "me", "other"]),
)
def test_a_lease_of_another_is_taken_only_when_it_stood_still(
    since: float, waited: float, holder: str
) -> None:
    sighting = Sighting(Lease(NAME, holder, SECONDS, "1"), since)
    claim = plan_claim(sighting, "me", since + waited)
    if holder == "me":
        assert claim is Claim.RENEW
    elif not holder:
        assert claim is Claim.TAKE
    else:
        assert (claim is Claim.TAKE) == (since + waited - since >= SECONDS)
    assert plan_claim(Sighting(None, since), "me", since) is Claim.CREATE


def test_a_renewed_lease_is_a_new_sighting() -> None:
    first = see(None, Lease(NAME, "other", SECONDS, "1"), 5.0)
    assert see(first, Lease(NAME, "other", SECONDS, "1"), 9.0).since == 5.0
    assert see(first, Lease(NAME, "other", SECONDS, "2"), 9.0).since == 9.0
