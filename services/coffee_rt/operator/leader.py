"""Which of several operators works: the one that holds a Lease.

The holder renews the Lease; whoever else runs watches it, on its own clock, and takes it when it was not
renewed for its duration. A holder that can't renew stops its work well before that, so two never work at
once as long as no process stands still for the rest of the time; what they do is harmless twice all the
same. At an orderly end the Lease is given up, and the next takes it at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum

from coffee_rt.errors import Retryable
from coffee_rt.operator import metrics
from coffee_rt.operator.contract import Lease, Leases
from coffee_rt.runtime.clock import Clock
from coffee_rt.runtime.health import Health
from coffee_rt.runtime.logs import Log

RENEWALS_A_LEASE = 4
"""Renewals within a lease's duration: one or two that fail change nothing."""
STOP_SHARE = 2 / 3
"""Share of the duration after which a holder that could not renew stops working."""


class Claim(Enum):
    """What to do about the lease as it was read."""

    CREATE = "create"
    TAKE = "take"
    RENEW = "renew"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Sighting:
    """A lease as somebody saw it, and since when (own clock) it has been just so."""

    lease: Lease | None
    since: float


def see(previous: Sighting | None, lease: Lease | None, now: float) -> Sighting:
    """The new sighting. Own clocks only: the holder's may be wrong."""
    if previous is not None and previous.lease == lease:
        return previous
    return Sighting(lease, now)


def plan_claim(sighting: Sighting, me: str, now: float) -> Claim:
    """What an operator does about a lease it sees."""
    lease = sighting.lease
    if lease is None:
        return Claim.CREATE
    if lease.holder == me:
        return Claim.RENEW
    if not lease.holder or now - sighting.since >= lease.duration_seconds:
        return Claim.TAKE
    return Claim.WAIT


class Leader:
    """Runs the work while it holds the lease. One task; owned by the process."""

    def __init__(
        self,
        *,
        leases: Leases,
        name: str,
        me: str,
        duration_seconds: int,
        clock: Clock,
        health: Health,
        log: Log,
    ) -> None:
        self._leases = leases
        self._name = name
        self._me = me
        self._duration = duration_seconds
        self._clock = clock
        self._health = health
        self._log = log
        self._sighting: Sighting | None = None
        self._renewed_at = -float("inf")

    @property
    def _pause_seconds(self) -> float:
        return self._duration / RENEWALS_A_LEASE

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Lead, lose, and lead again, for ever. Cancelled: the work is stopped and the lease given up."""
        task: asyncio.Future[None] | None = None
        try:
            while True:
                is_mine = await self._claim()
                if is_mine and task is None:
                    self._log.info("this operator works from now on", lease=self._name)
                    task = asyncio.ensure_future(work())
                elif not is_mine and task is not None:
                    self._log.warning("the lease is lost; work stops", lease=self._name)
                    await _stop(task)
                    task = None
                metrics.LEADING.set(is_mine)
                await self._rest(task)
        finally:
            if task is not None:
                await _stop(task)
            metrics.LEADING.set(0)
            await self._give_up()

    async def _rest(self, task: asyncio.Future[None] | None) -> None:
        """Until the next look. The work never ends by itself, so its end is its crash, which is raised."""
        waiter = asyncio.ensure_future(self._clock.sleep(self._pause_seconds))
        try:
            await asyncio.wait(
                {waiter} | ({task} if task else set()), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            waiter.cancel()
        if task is not None and task.done():
            await task

    async def _claim(self) -> bool:
        """Whether the lease is ours now."""
        asked_at = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._duration * STOP_SHARE / 2):
                is_mine = await self._try_claim(asked_at)
        except (Retryable, TimeoutError) as error:
            reason = str(error) or "no answer in time"
            metrics.FAILURES.labels("kubernetes").inc()
            self._health.set("lease", False, reason)
            self._log.warning("the lease could not be asked for", reason=reason)
            return self._clock.monotonic() - self._renewed_at < self._duration * STOP_SHARE
        if is_mine:
            # From before it was written: the others count from after.
            self._renewed_at = asked_at
        self._health.set("lease", True, "working" if is_mine else "standing by")
        return is_mine

    async def _try_claim(self, now: float) -> bool:
        lease = await self._leases.lease(self._name)
        self._sighting = see(self._sighting, lease, now)
        claim = plan_claim(self._sighting, self._me, now)
        if claim is Claim.WAIT:
            return False
        if lease is None:
            return await self._leases.create_lease(Lease(self._name, self._me, self._duration))
        mine = replace(lease, holder=self._me, duration_seconds=self._duration)
        return await self._leases.replace_lease(mine, is_taken=claim is Claim.TAKE)

    async def _give_up(self) -> None:
        with suppress(Retryable, TimeoutError):
            async with asyncio.timeout(2.0):
                lease = await self._leases.lease(self._name)
                if lease is not None and lease.holder == self._me:
                    await self._leases.replace_lease(replace(lease, holder=""), is_taken=False)


async def _stop(task: asyncio.Future[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
