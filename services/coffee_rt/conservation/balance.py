"""One look at conservation: for each shard what the log accepted beside what the ledger made of it.

Both sides are taken below the lowest entry that is not acknowledged. What lies below it is committed and
stays as it is, so the two servers need not be asked in the same moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from coffee_rt.runtime.clock import Clock
from coffee_rt.store.contract import StoreKeeper, accounted_records
from coffee_rt.streams.contract import Backlog, EntryId, Horizon, LogKeeper

CLOSE_LOOK_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Settled:
    """The log's side of a shard: all entries below `below` are acknowledged."""

    shard: int
    below: EntryId
    accepted: int
    """Records the log counted below it."""
    counter: int
    """Records the log counted in all."""


@dataclass(frozen=True, slots=True)
class Balance:
    """Both sides of a shard, in records."""

    shard: int
    below: EntryId
    accepted: int
    in_flight: int
    stored: int
    duplicate: int
    dead: int
    lost: int
    imbalance: int
    """Above 0: accepted records nobody accounts for. Below 0: the ledger has more than the log counted."""

    @property
    def states(self) -> dict[str, int]:
        """What became of the records, by the names of the metric."""
        return {
            "accepted": self.accepted,
            "stored": self.stored,
            "duplicate": self.duplicate,
            "dead": self.dead,
            "lost": self.lost,
            "in_flight": self.in_flight,
        }


async def read_settled(keeper: LogKeeper, group: str) -> tuple[Sequence[Backlog], list[Settled]]:
    """The log's side of all shards. Raises Retryable."""
    # The horizons first: should the backlog then be empty, all up to them is acknowledged.
    horizons = [await keeper.horizon(shard) for shard in range(keeper.shards)]
    backlogs = await keeper.backlog(group)
    settled = [_settled(*pair) for pair in zip(backlogs, horizons, strict=True)]
    return backlogs, settled


def _settled(backlog: Backlog, horizon: Horizon) -> Settled:
    if backlog.oldest_entry is not None:
        below, accepted = backlog.oldest_entry, backlog.settled_counter
        return Settled(backlog.shard, below, accepted, max(backlog.counter, accepted))
    last = horizon.last_entry
    counter = horizon.counter
    return Settled(backlog.shard, EntryId(last.ms, last.seq + 1), counter, counter)


def weigh(settled: Settled, sums: dict[str, int]) -> Balance:
    """The balance of a shard from the ledger's sums below its settled entry. Pure."""
    return Balance(
        shard=settled.shard,
        below=settled.below,
        accepted=settled.counter,
        in_flight=settled.counter - settled.accepted,
        stored=sums["stored"],
        duplicate=sums["duplicates"],
        dead=sums["dead"],
        lost=sums["lost"],
        imbalance=settled.accepted - accounted_records(sums),
    )


@dataclass(frozen=True, slots=True)
class _CloseLook:
    """What the numbers said where the sums differed by so many."""

    sums_imbalance: int
    imbalance: int
    at: float


class Scales:
    """Balances of shards, by the sums; where those differ, by the numbers. Shared by the tasks of a process.

    The sums cost nothing and are off for good once numbers were given twice; looking at the numbers reads an
    hour of the ledger. So what a close look said is believed for a while, as long as the sums say the same.
    """

    def __init__(self, keeper: StoreKeeper, clock: Clock) -> None:
        self._keeper = keeper
        self._clock = clock
        self._looks: dict[int, _CloseLook] = {}

    async def balance(self, settled: Settled) -> Balance:
        """Add the ledger's side. Raises Retryable."""
        shard = settled.shard
        sums = await self._keeper.ledger_sums(shard, settled.below)
        balance = weigh(settled, sums)
        if not balance.imbalance:
            self._looks.pop(shard, None)
            return balance
        look, now = self._looks.get(shard), self._clock.monotonic()
        is_known = look is not None and look.sums_imbalance == balance.imbalance
        if look is None or not is_known or now - look.at > CLOSE_LOOK_SECONDS:
            counted = settled.accepted
            missing = await self._keeper.uncounted_records(shard, settled.below, counted)
            imbalance = told_imbalance(missing, sums)
            look = self._looks[shard] = _CloseLook(balance.imbalance, imbalance, now)
        return replace(balance, imbalance=look.imbalance)


def told_imbalance(missing: int, sums: dict[str, int]) -> int:
    """What is wrong in all: numbers without a row, and rows that don't say what became of their records."""
    done = sums["stored"] + sums["duplicates"] + sums["dead"]
    return missing + max(0, sums["records"] - done)
