"""Readers and keepers of a `MemoryLog`: GroupReader and LogKeeper in memory."""

from __future__ import annotations

from coffee_rt.domain.ids import id_shard, id_time_ms
from coffee_rt.errors import Retryable
from coffee_rt.streams import metrics
from coffee_rt.streams.backlog import (
    FIND_AFTER_MS,
    FIND_BEFORE_MS,
    GroupState,
    ShardState,
    find_record,
    plan_backlog,
)
from coffee_rt.streams.contract import (
    ENTRY_ID_ZERO,
    Backlog,
    Delivery,
    EntryId,
    Horizon,
    Position,
)
from coffee_rt.streams.entries import count_gaps, delivery, parse_entry
from coffee_rt.streams.flush import position_of_value
from coffee_rt.streams.memory import Group, MemoryLog, Pending, Shard


class MemoryReader:
    """A GroupReader on a MemoryLog."""

    def __init__(self, log: MemoryLog, group: str, consumer: str) -> None:
        self._log = log
        self._group = group
        self._consumer = consumer
        self._epochs = [0] * len(log.shards)
        self._runs = [-1] * len(log.shards)
        self._claim_from = [ENTRY_ID_ZERO] * len(log.shards)

    @property
    def shards(self) -> int:
        return len(self._log.shards)

    async def read(self, shard: int, entries_max: int, wait_seconds: float) -> list[Delivery]:
        give_up_at = self._log.clock.monotonic() + wait_seconds
        epoch = self._connect(shard)
        run = self._log.run
        while True:
            if run != self._log.run:
                raise Retryable("the connection to the log broke")
            deliveries = self._take_new(shard, entries_max, epoch)
            left = give_up_at - self._log.clock.monotonic()
            if deliveries or left <= 0:
                count_gaps(deliveries)
                await self._log.faults("read.answer", shard)
                return deliveries
            await self._log.wait_change(shard, left)

    async def read_own_pending(
        self, shard: int, entries_max: int, after: EntryId
    ) -> list[Delivery]:
        epoch = self._connect(shard)
        state = self._log.shards[shard]
        group = self._find_group(shard)
        found: list[Delivery] = []
        for entry_id in sorted(group.pending):
            pending = group.pending[entry_id]
            if entry_id <= after or pending.consumer != self._consumer:
                continue
            if len(found) == entries_max:
                break
            if entry_id not in state.entries:
                self._forget(shard, group, entry_id)
                continue
            pending.attempts += 1
            pending.delivered_ms = self._log.now_ms()
            found.append(self._deliver(shard, entry_id, pending.attempts, epoch))
        await self._log.faults("pending.answer", shard)
        return found

    async def claim(self, shard: int, idle_seconds_min: float, entries_max: int) -> list[Delivery]:
        epoch = self._connect(shard)
        state, now = self._log.shards[shard], self._log.now_ms()
        group = self._find_group(shard)
        claimed: list[Delivery] = []
        start, self._claim_from[shard] = self._claim_from[shard], ENTRY_ID_ZERO
        for entry_id in sorted(group.pending):
            pending = group.pending[entry_id]
            if entry_id < start or now - pending.delivered_ms < idle_seconds_min * 1000:
                continue
            if len(claimed) == entries_max:
                self._claim_from[shard] = entry_id
                break
            if entry_id not in state.entries:
                self._forget(shard, group, entry_id)
                continue
            group.pending[entry_id] = Pending(self._consumer, now, pending.attempts + 1)
            claimed.append(self._deliver(shard, entry_id, pending.attempts + 1, epoch))
        await self._log.faults("claim.answer", shard)
        return claimed

    async def acknowledge(self, shard: int, deliveries: list[Delivery], timeline: str = "") -> int:
        await self._log.faults("acknowledge.send", shard)
        current = [entry for entry in deliveries if entry.reader_epoch == self._epochs[shard]]
        if self._runs[shard] != self._log.run:
            current = []
        dropped = len(deliveries) - len(current)
        if dropped:
            metrics.ACKNOWLEDGEMENTS_DROPPED.labels(str(shard)).inc(dropped)
        state = self._log.shards[shard]
        group = state.groups.get(self._group)
        if timeline and state.timelines.get(self._group, (0, timeline))[1] != timeline:
            group = None
        acknowledged = 0
        for entry in current:
            if group is not None and group.pending.pop(entry.entry_id, None) is not None:
                acknowledged += 1
        await self._log.faults("acknowledge.answer", shard)
        return acknowledged

    async def leave(self) -> None:
        for state in self._log.shards:
            group = state.groups.get(self._group)
            if group is not None:
                _remove_consumers(group, self._consumer, self._log.now_ms(), 0)
        self._runs = [-1] * len(self._runs)

    def disconnect(self, shard: int) -> None:
        """The shard's connections broke: what was read on them can't be acknowledged any more."""
        self._runs[shard] = -1

    def _connect(self, shard: int) -> int:
        if self._runs[shard] != self._log.run:
            self._runs[shard] = self._log.run
            self._epochs[shard] += 1
        return self._epochs[shard]

    def _find_group(self, shard: int) -> Group:
        groups = self._log.shards[shard].groups
        if self._group not in groups:
            metrics.GROUPS_RECREATED.labels(str(shard)).inc()
            groups[self._group] = Group()
        groups[self._group].consumers[self._consumer] = self._log.now_ms()
        return groups[self._group]

    def _take_new(self, shard: int, entries_max: int, epoch: int) -> list[Delivery]:
        state = self._log.shards[shard]
        group = self._find_group(shard)
        taken: list[Delivery] = []
        while len(taken) < entries_max:
            entry_id = state.first_from(group.delivered, after=True)
            if entry_id is None:
                break
            group.delivered = entry_id
            group.pending[entry_id] = Pending(self._consumer, self._log.now_ms(), 1)
            taken.append(self._deliver(shard, entry_id, 1, epoch))
        return taken

    def _deliver(self, shard: int, entry_id: EntryId, attempts: int, epoch: int) -> Delivery:
        fields = dict(self._log.shards[shard].entries[entry_id])
        return delivery(shard, entry_id, fields, attempts, epoch)

    def _forget(self, shard: int, group: Group, entry_id: EntryId) -> None:
        del group.pending[entry_id]
        metrics.ENTRIES_VANISHED.labels(str(shard)).inc()


class MemoryKeeper:
    """A LogKeeper on a MemoryLog."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    @property
    def shards(self) -> int:
        return len(self._log.shards)

    async def ensure_group(self, group: str) -> None:
        await self._log.faults("group.send", 0)
        self._log.registry.add(group)
        for state in self._log.shards:
            state.groups.setdefault(group, Group())

    async def registered_groups(self) -> list[str]:
        return sorted(self._log.registry)

    async def foreign_groups(self) -> dict[str, list[int]]:
        foreign: dict[str, list[int]] = {}
        for shard, state in enumerate(self._log.shards):
            for name in state.groups:
                if name not in self._log.registry:
                    foreign.setdefault(name, []).append(shard)
        return foreign

    async def backlog(self, group: str, *, is_partial: bool = False) -> list[Backlog]:
        backlogs: list[Backlog] = []
        for shard, log in enumerate(self._log.shards):
            try:
                await self._log.faults("backlog.answer", shard)
            except Retryable:
                if not is_partial or (shard == len(self._log.shards) - 1 and not backlogs):
                    raise
                continue
            state = self._state(log)
            found = next((one for one in state.groups if one.name == group), None)
            backlogs.append(plan_backlog(shard, state, found, log.size))
        return backlogs

    async def horizon(self, shard: int) -> Horizon:
        state = self._state(self._log.shards[shard])
        lowest = [group.lowest for group in state.groups if group.lowest is not None]
        if not state.groups:
            lowest = [state.first] if state.first else []
        return Horizon(state.first, min(lowest, default=None), state.counter, state.last)

    async def trim(self, shard: int, keep_seconds: float) -> int:
        await self._log.faults("trim.send", shard)
        state, now = self._log.shards[shard], self._log.now_ms()
        missing = self._log.registry - set(state.groups)
        for name in missing:
            state.groups[name] = Group()
            metrics.GROUPS_RECREATED.labels(str(shard)).inc()
        if missing or not self._log.registry:
            return 0
        bound = min(_bound(group) for group in state.groups.values())
        if bound not in [mark for _, mark in state.marks]:
            state.marks.append((now, bound))
        old = [mark for at, mark in state.marks if at <= now - keep_seconds * 1000]
        if not old:
            return 0
        state.marks = state.marks[len(old) - 1 :]
        return state.trim_below(min(bound, old[-1]))

    async def remove_idle_consumers(self, group: str, idle_seconds_min: float) -> int:
        now = self._log.now_ms()
        return sum(
            _remove_consumers(state.groups[group], None, now, idle_seconds_min * 1000)
            for state in self._log.shards
            if group in state.groups
        )

    async def follow_timeline(self, group: str, timeline: str, keep_seconds: float) -> list[int]:
        set_back = []
        for shard, state in enumerate(self._log.shards):
            await self._log.faults("timeline.send", shard)
            seen_ms, known = state.timelines.get(group, (0, timeline))
            if known != timeline and _set_back(state, group, seen_ms - keep_seconds * 1000):
                set_back.append(shard)
            state.timelines[group] = self._log.now_ms(), timeline
        return set_back

    async def is_settled(self, group: str, position: Position) -> bool:
        shard = self._log.shards[position.shard]
        found = shard.groups.get(group)
        if found is None or found.delivered < position.entry_id:
            return False
        if position.entry_id in found.pending:
            return False
        fields = shard.entries.get(position.entry_id)
        if fields is None:
            return not shard.ids or shard.ids[0] > position.entry_id
        return not any(position.batch_id) or fields.get(b"b") in (None, position.batch_id)

    async def memory(self) -> tuple[int, int]:
        return self._log.memory_bytes, self._log.memory_bytes_max

    async def unsafe_reasons(self) -> list[str]:
        return []

    async def find_order(self, order_id: bytes) -> tuple[Position, bytes] | None:
        for shard, state in enumerate(self._log.shards):
            value, expires = state.keys.get(b"o" + order_id, (b"", 0))
            if value and expires > self._log.now_ms():
                entry_id = position_of_value(shard, value).entry_id
                return self._find(shard, entry_id, entry_id, order_id)
        shard, at_ms = id_shard(order_id), id_time_ms(order_id)
        if shard >= self.shards:
            return None
        start = EntryId(max(0, at_ms - FIND_BEFORE_MS), 0)
        return self._find(shard, start, EntryId(at_ms + FIND_AFTER_MS, 1 << 62), order_id)

    def _find(
        self, shard: int, start: EntryId, end: EntryId, order_id: bytes
    ) -> tuple[Position, bytes] | None:
        state = self._log.shards[shard]
        entry_id = state.first_from(start)
        while entry_id is not None and entry_id <= end:
            found = find_record(state.entries[entry_id], order_id)
            if found is not None:
                return Position(shard, entry_id, found[0]), found[1]
            entry_id = state.first_from(entry_id, after=True)
        return None

    def _state(self, shard: Shard) -> ShardState:
        groups = [_group_state(shard, name, group) for name, group in shard.groups.items()]
        first = shard.ids[0] if shard.ids else None
        return ShardState(
            shard.counter,
            self._log.now_ms(),
            len(shard.ids),
            first,
            shard.last,
            *_counts(shard, first, is_gap_counted=True),
            groups,
        )


def _set_back(shard: Shard, name: str, cut_ms: float) -> bool:
    """See follow.lua."""
    group = shard.groups.get(name)
    old = [mark for at, mark in shard.marks if at <= cut_ms]
    first = shard.first_from(old[-1] if old else ENTRY_ID_ZERO)
    if group is None or first is None:
        return False
    below = EntryId(first.ms, first.seq - 1) if first.seq else EntryId(first.ms - 1, 0)
    is_back = below < group.delivered
    group.delivered = min(below, group.delivered)
    return is_back


def _bound(group: Group) -> EntryId:
    """Everything below it is acknowledged."""
    after = EntryId(group.delivered.ms, group.delivered.seq + 1)
    return min([after, *group.pending])


def _group_state(shard: Shard, name: str, group: Group) -> GroupState:
    undelivered = shard.first_from(group.delivered, after=True)
    lowest = shard.first_from(_bound(group))
    return GroupState(
        name,
        len(group.pending),
        lowest if group.pending or undelivered else None,
        *_counts(shard, lowest, is_gap_counted=True),
        undelivered,
        *_counts(shard, undelivered),
    )


def _counts(
    shard: Shard, entry_id: EntryId | None, *, is_gap_counted: bool = False
) -> tuple[int, int]:
    """Counter and records of an entry, or of the first of ours after a stranger's; see backlog.lua."""
    while entry_id is not None:
        fields = shard.entries[entry_id]
        counter = fields.get(b"c", b"")
        if counter.isdigit():
            gap = parse_entry(fields).gap if is_gap_counted else None
            records = fields.get(b"n", b"")
            own = int(records) if records.isdigit() else 0
            return int(counter), gap[1] - gap[0] if gap else own
        entry_id = shard.first_from(entry_id, after=True)
    return shard.counter, 0


def _remove_consumers(group: Group, name: str | None, now: int, idle_ms: float) -> int:
    holding = {pending.consumer for pending in group.pending.values()}
    idle = [
        consumer
        for consumer, heard in group.consumers.items()
        if name in (None, consumer) and consumer not in holding and now - heard >= idle_ms
    ]
    for consumer in idle:
        del group.consumers[consumer]
    return len(idle)
