"""Bugs on purpose: each undoes one mechanism, and the simulation must find it.

Mutations of the product's own code where the mechanism lives there, of the stores in memory where it lives
in SQL or Lua.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from coffee_rt.channels.messages import ViewChange
from coffee_rt.fanout.rows import Verdict, ViewRows
from coffee_rt.store.batches import BatchPlan
from coffee_rt.store.contract import Committed, EntryWrite
from coffee_rt.store.memory import MemoryOrderWriter
from coffee_rt.store.memory_database import MemoryLane, StoredDelta
from coffee_rt.store.memory_views import MemoryViewFolder
from coffee_rt.streams.contract import Append
from coffee_rt.streams.flush import Flush
from coffee_rt.streams.memory import Group, MemoryTarget
from coffee_rt.streams.memory_groups import MemoryKeeper, MemoryReader
from coffee_rt.worker.pipeline import Worker
from coffee_rt.worker.storing import Batch, BatchStorer

Plant = Callable[[], AbstractContextManager[Any]]

LENGTH_MAX = 3


def ack_before_commit() -> AbstractContextManager[Any]:
    """The worker acknowledges what it is about to commit."""
    make = Worker._make_storer

    def make_hasty(worker: Worker) -> BatchStorer:
        storer = make(worker)
        commit = storer._commit

        async def hasty(batch: Batch) -> Committed:
            await worker._announcer.acknowledge(batch.deliveries)
            return await commit(batch)

        storer._commit = hasty  # type: ignore[method-assign]
        return storer

    return patch.object(Worker, "_make_storer", make_hasty)


def ledger_skipped() -> AbstractContextManager[Any]:
    """A commit does not ask the ledger which entries it has."""

    def all_of_them(writer: MemoryOrderWriter, plan: BatchPlan) -> list[EntryWrite]:
        return [each.write for each in plan.entries]

    return patch.object(MemoryOrderWriter, "_unseen", all_of_them)


def trim_by_length() -> AbstractContextManager[Any]:
    """MAXLEN: the oldest entries go, whoever has not seen them."""

    async def trim(keeper: MemoryKeeper, shard: int, keep_seconds: float) -> int:
        state = keeper._log.shards[shard]
        return state.trim_below(state.ids[-LENGTH_MAX]) if len(state.ids) > LENGTH_MAX else 0

    return patch.object(MemoryKeeper, "trim", trim)


def fold_above_last() -> AbstractContextManager[Any]:
    """A fold takes the deltas with an id above the last one it took: late commits are passed over."""

    def take(
        folder: MemoryViewFolder, lane: MemoryLane, deltas_max: int
    ) -> tuple[list[StoredDelta], list[StoredDelta]]:
        # With the lane itself, so that nothing else ever has its id.
        lasts: dict[int, tuple[MemoryLane, int]] = folder.__dict__.setdefault("lasts", {})
        last = lasts.get(id(lane), (lane, 0))[1]
        fresh = [stored for stored in lane.deltas if stored.xid > last]
        lasts[id(lane)] = lane, max([last, *(stored.xid for stored in fresh)])
        return fresh, []

    return patch.object(MemoryViewFolder, "_take", take)


def version_gap_lost() -> AbstractContextManager[Any]:
    """The fan-out applies a publication without looking at what should have come before it."""
    apply = ViewRows.apply

    def apply_blindly(rows: ViewRows, change: ViewChange) -> Verdict:
        change.previous = 0
        return apply(rows, change)

    return patch.object(ViewRows, "apply", apply_blindly)


def loss_unseen() -> AbstractContextManager[Any]:
    """The log does not compare what a producer was answered with what it has."""
    append = MemoryTarget._append

    def forget(target: MemoryTarget, flush: Flush) -> Any:
        return append(target, replace(flush, highest=0))

    return patch.object(MemoryTarget, "_append", forget)


def keys_forgotten() -> AbstractContextManager[Any]:
    """The log does not remember idempotency keys."""

    def none(target: MemoryTarget, append: Append) -> list[tuple[bytes, int]]:
        return []

    return patch.object(MemoryTarget, "_keys", none)


def group_made_at_end() -> AbstractContextManager[Any]:
    """A lost group is made again at `$`: what was not delivered never is."""
    find = MemoryReader._find_group

    def make(reader: MemoryReader, shard: int) -> Group:
        state = reader._log.shards[shard]
        is_missing = reader._group not in state.groups
        group = find(reader, shard)
        if is_missing:
            group.delivered = state.last
        return group

    return patch.object(MemoryReader, "_find_group", make)


PLANTED: dict[str, Plant] = {
    "ack-before-commit": ack_before_commit,
    "ledger-skipped": ledger_skipped,
    "trim-by-length": trim_by_length,
    "fold-above-last": fold_above_last,
    "group-made-at-end": group_made_at_end,
    "keys-forgotten": keys_forgotten,
    "loss-unseen": loss_unseen,
    "version-gap-lost": version_gap_lost,
}
