"""One look at conservation: for each shard what the log accepted beside what the ledger made of it.

Both sides are taken below the lowest entry that is not acknowledged. What lies below it is committed and
stays as it is, so the two servers need not be asked in the same moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coffee_rt.store.contract import StoreKeeper, accounted_records
from coffee_rt.streams.contract import Backlog, EntryId, Horizon, LogKeeper


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
    """Above 0: accepted records nobody accounts for. Below 0: some are counted twice."""

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


async def read_balance(keeper: StoreKeeper, settled: Settled) -> Balance:
    """Add the ledger's side. Raises Retryable."""
    return weigh(settled, await keeper.ledger_sums(settled.shard, settled.below))
