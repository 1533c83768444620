"""Bugs on purpose: each undoes one mechanism, and the simulation must find it.

Mutations of the product's own code where the mechanism lives there, of the stores in memory where it lives
in SQL or Lua.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from coffee_rt.channels.messages import ViewChange
from coffee_rt.fanout.rows import Verdict, ViewRows
from coffee_rt.store.batches import BatchPlan, settle_key_losers
from coffee_rt.store.contract import Committed, EntryWrite
from coffee_rt.store.intake_contract import IntakeWrite, KeyHolder, WaitingBatch
from coffee_rt.store.memory import MemoryOrderWriter
from coffee_rt.store.memory_database import MemoryLane, StoredDelta
from coffee_rt.store.memory_intake import MemoryIntake
from coffee_rt.store.memory_redriver import MemoryLetterRedriver
from coffee_rt.store.memory_views import MemoryViewFolder
from coffee_rt.streams.contract import Append, Appended
from coffee_rt.streams.flush import Flush, Item
from coffee_rt.streams.memory import Group, MemoryTarget
from coffee_rt.streams.memory_groups import MemoryKeeper, MemoryReader
from coffee_rt.streams.producer import GroupProducer
from coffee_rt.worker.draining import IntakeDrain
from coffee_rt.worker.pipeline import Worker
from coffee_rt.worker.storing import Batch, BatchStorer
from tests.simulation.plan import Plan
from tests.simulation.shares import draw_plan

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


def stored_without_keys() -> AbstractContextManager[Any]:
    """A commit does not ask whose the keys of its orders are."""
    return patch("coffee_rt.store.memory.key_losers", lambda plan, keys: {})


def intake_without_keys() -> AbstractContextManager[Any]:
    """The intake does not ask whose the keys of its orders are, and takes them for its own."""

    def nobody(intake: MemoryIntake, write: IntakeWrite) -> dict[bytes, KeyHolder]:
        return {}

    return patch.object(MemoryIntake, "_held", nobody)


@contextmanager
def intake_emptied_early() -> Iterator[None]:
    """What waits in the intake is taken out when it is read, not when it is stored."""
    waiting = MemoryIntake.waiting

    async def take(intake: MemoryIntake, batches_max: int, bytes_max: int) -> list[WaitingBatch]:
        taken = await waiting(intake, batches_max, bytes_max)
        for batch in taken:
            del intake._database.intake[batch.batch_id]
        return taken

    def all_new(writer: MemoryOrderWriter, plan: BatchPlan) -> list[EntryWrite]:
        ledger = writer._database.ledger
        return [each.write for each in plan.entries if each.ledger_id not in ledger]

    with (
        patch.object(MemoryIntake, "waiting", take),
        patch.object(MemoryOrderWriter, "_unseen", all_new),
    ):
        yield


def losers_forgotten() -> AbstractContextManager[Any]:
    """An order whose key led to another one is left out, and its id with it."""

    def settle(plan: BatchPlan, holders: Mapping[bytes, KeyHolder]) -> None:
        settle_key_losers(plan, holders)
        plan.aliases.clear()

    return patch("coffee_rt.store.memory.settle_key_losers", settle)


def parked_nameless() -> AbstractContextManager[Any]:
    """A parked record does not say which order it was."""
    return patch("coffee_rt.worker.decoding._readable", lambda raw: None)


def intake_held_up() -> AbstractContextManager[Any]:
    """A batch of the intake that fails alone is tried until it is stored, before others are looked for."""

    async def insist(drain: IntakeDrain) -> None:
        while drain._apart and not drain._is_draining():
            await drain._storer.store(drain._apart.popleft(), drain._set_apart, may_park=True)

    return patch.object(IntakeDrain, "_try_again", insist)


@contextmanager
def letters_marked_later() -> Iterator[None]:
    """A redrive marks its letters in a transaction of its own, after the one that stores them."""
    mark, send = MemoryLetterRedriver._mark, MemoryLetterRedriver.send

    def keep(redriver: MemoryLetterRedriver, *marks: Any) -> None:
        redriver.__dict__.setdefault("later", []).append(marks)

    async def mark_and_send(redriver: MemoryLetterRedriver, *asked: Any, **named: Any) -> Any:
        for marks in redriver.__dict__.pop("later", []):
            mark(redriver, *marks)
        return await send(redriver, *asked, **named)

    with (
        patch.object(MemoryLetterRedriver, "_mark", keep),
        patch.object(MemoryLetterRedriver, "send", mark_and_send),
    ):
        yield


def redriven_without_keys() -> AbstractContextManager[Any]:
    """A redrive does not ask whose the keys of its letters are by now."""
    return patch("coffee_rt.store.memory_redriver.key_claims", lambda plan, batch: [])


def refused_and_queued() -> AbstractContextManager[Any]:
    """Who finds the log's queue full is refused, and stays in the queue."""
    check = GroupProducer._check_room

    async def append(producer: GroupProducer, shard: int, order: Append) -> Appended:
        queue = producer._shards[shard]
        keyed = int(order.key_hash is not None or order.is_client_id)
        waiting = producer._put(queue, Item((order,), 1, len(order.record), keyed))
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
        check(producer, queue, 0, 0)
        answer: list[Appended] = await waiting
        return answer[0]

    return patch.object(GroupProducer, "append", append)


PLANTED: dict[str, Plant] = {
    "ack-before-commit": ack_before_commit,
    "ledger-skipped": ledger_skipped,
    "trim-by-length": trim_by_length,
    "fold-above-last": fold_above_last,
    "group-made-at-end": group_made_at_end,
    "intake-emptied-early": intake_emptied_early,
    "intake-held-up": intake_held_up,
    "intake-without-keys": intake_without_keys,
    "keys-forgotten": keys_forgotten,
    "letters-marked-later": letters_marked_later,
    "losers-forgotten": losers_forgotten,
    "loss-unseen": loss_unseen,
    "parked-nameless": parked_nameless,
    "redriven-without-keys": redriven_without_keys,
    "refused-and-queued": refused_and_queued,
    "stored-without-keys": stored_without_keys,
    "version-gap-lost": version_gap_lost,
}

_CONCERNS: dict[str, Callable[[Plan], bool]] = {
    "intake-emptied-early": lambda plan: plan.has_intake,
    "intake-held-up": lambda plan: plan.has_intake and plan.is_poison_lasting,
    "intake-without-keys": lambda plan: plan.has_intake,
    "letters-marked-later": lambda plan: plan.is_poisoned,
    "losers-forgotten": lambda plan: plan.has_intake,
    "parked-nameless": lambda plan: plan.is_poisoned,
    "redriven-without-keys": lambda plan: plan.has_intake and plan.is_poisoned,
    "refused-and-queued": lambda plan: plan.has_refusals,
    "stored-without-keys": lambda plan: plan.has_intake,
}


def is_concerned(seed: int, planted: str | None) -> bool:
    """Whether the run of a seed has what the bug is in: the others need not be run to find it."""
    concerns = _CONCERNS.get(planted or "")
    return concerns is None or concerns(draw_plan(seed))
