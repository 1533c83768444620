"""What a group has not acknowledged, and where to look for an order: pure, shared by both logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coffee_rt.domain.wire import WIRE_VERSIONS_READABLE, split_batch
from coffee_rt.errors import Rejected
from coffee_rt.streams.contract import Backlog, EntryId
from coffee_rt.streams.entries import parse_entry

FIND_BEFORE_MS = 50
"""An id may be this much younger than its entry: error of the learned clock."""
FIND_BEFORE_SPREAD_MS = 500
"""The same where shards live on several servers, each with its own clock: ids are minted on one for all."""
FIND_AFTER_MS = 30_000
"""An id may be this much older: it waited in a queue and for its flush."""


@dataclass(frozen=True, slots=True)
class GroupState:
    """One group on one shard, as backlog.lua tells it."""

    name: str
    pending: int
    lowest: EntryId | None
    lowest_counter: int
    lowest_records: int
    undelivered: EntryId | None
    undelivered_counter: int
    undelivered_records: int


@dataclass(frozen=True, slots=True)
class ShardState:
    counter: int
    now_ms: int
    length: int
    first: EntryId | None
    last: EntryId
    first_counter: int
    first_records: int
    groups: Sequence[GroupState]


def plan_backlog(shard: int, state: ShardState, group: GroupState | None, memory: int) -> Backlog:
    """One group's backlog. A group that is missing has everything before it that was not trimmed."""
    if group is None:
        group = GroupState(
            "", 0,
            state.first, state.first_counter, state.first_records,
            state.first, state.first_counter, state.first_records,
        )  # fmt: skip
    settled = state.counter
    seconds = 0.0
    if group.lowest is not None:
        settled = group.lowest_counter - group.lowest_records
        seconds = max(0, state.now_ms - group.lowest.ms) / 1000
    undelivered = 0
    if group.undelivered is not None:
        undelivered = state.counter - (group.undelivered_counter - group.undelivered_records)
    return Backlog(
        shard,
        max(0, state.counter - settled),
        seconds,
        group.pending,
        state.length,
        memory,
        max(0, undelivered),
        group.lowest,
        state.counter,
        settled,
    )


def find_record(fields: dict[bytes, bytes], order_id: bytes) -> tuple[bytes, bytes] | None:
    """(batch id, record bytes) where an entry holds the order; no bytes where a newer release wrote the
    entry: then all that can be said is that the id is in it."""
    # Looking for the 16 bytes first spares decoding all other entries.
    if order_id not in fields.get(b"d", b""):
        return None
    entry = parse_entry(fields)
    if entry.fault is not None:
        return None
    if entry.version not in WIRE_VERSIONS_READABLE:
        return entry.batch_id, b""
    try:
        records = split_batch(entry.version, entry.data)
    except Rejected:
        return None
    for record in records:
        # A record is a msgpack array that begins with the id (bin8, 16 bytes).
        if order_id in record[:24]:
            return entry.batch_id, record
    return None
