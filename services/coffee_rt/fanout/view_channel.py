"""The channel `view:{name}`: snapshots, changes, resumes and resets of one view."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from coffee_rt.channels.messages import ViewChange
from coffee_rt.domain.views import ViewDefinition
from coffee_rt.errors import Rejected
from coffee_rt.fanout import metrics
from coffee_rt.fanout.channel import Channel
from coffee_rt.fanout.frames import (
    Frame,
    delta_frame,
    mark_of,
    message,
    snapshot_frames,
    versions_frame,
)
from coffee_rt.fanout.protocol import Filter, Resume, is_match
from coffee_rt.fanout.rows import Row, Verdict, ViewRows
from coffee_rt.fanout.snapshot_memory import Snapshot, SnapshotMemory
from coffee_rt.fanout.sockets import Socket
from coffee_rt.fanout.subscriptions import Audience, Subscription, Versions
from coffee_rt.store.view_contract import ViewSnapshot

WINDOW_SECONDS = {"minute": 3 * 3600, "hour": 24 * 3600, "day": 30 * 86400}
"""What a subscription without `since` gets, by bucket."""
WINDOWS_KEPT = 2
"""Windows kept in memory: a page that stays open and comes back with its first `since` is served from it."""
HISTORY_SECONDS_MAX = 400 * 86400
"""Oldest `since`, as far as views are kept by default."""
EARLY_CHANGES_MAX = 1_000
"""Publications kept while the first snapshot is loaded; of more, the beacon tells what they changed."""


class Repair(Protocol):
    """Loads from PostgreSQL what the channel lacks (see `repair`)."""

    def request_view(self) -> None:
        """Load the whole window."""

    async def settled(self) -> None:
        """Load what was heard of; returns once that is done."""


@dataclass(frozen=True, slots=True)
class ViewLimits:
    """What one view's channel may hold and send."""

    rows_max: int = 100_000
    """Rows of the window in memory (~300 bytes each); beyond, the window gets shorter."""
    delta_rows_max: int = 5_000
    """More changed rows than this are sent as a snapshot."""
    deep_rows_max: int = 200_000
    """Rows of one snapshot read from PostgreSQL; a subscription that wants more is refused."""
    part_bytes_max: int = 48 * 1024
    """Bytes of one part of a snapshot: what a slow socket buffers at most."""


class ViewChannel(Channel):
    """State and audiences of one view. `read` reads a snapshot that reaches back before the window,
    `monotonic` is a clock in seconds. Whoever makes it gives it its `repair` before it is used."""

    repair: Repair

    def __init__(
        self,
        definition: ViewDefinition,
        *,
        decimals: int,
        limits: ViewLimits,
        monotonic: Callable[[], float],
        read: Callable[[str, Subscription], Awaitable[ViewSnapshot | None]],
    ) -> None:
        super().__init__()
        self.name = f"view:{definition.name}"
        self.view = definition.name
        self.dimensions = definition.dimension_columns
        self.rows = ViewRows(definition)
        self._bucket_seconds = definition.bucket.seconds
        self._decimals = decimals
        self._limits = limits
        self._monotonic = monotonic
        self._read = read
        self._snapshots = SnapshotMemory()
        self._early: deque[ViewChange] = deque(maxlen=EARLY_CHANGES_MAX)

    @property
    def position(self) -> tuple[int, Versions]:
        return self.rows.seq, self.rows.versions

    @property
    def is_changed(self) -> bool:
        return self.rows.is_changed

    def window_start(self, now: float) -> int:
        """Where the window in memory begins at an instant."""
        window = WINDOW_SECONDS[self.rows.definition.bucket.value]
        return self.default_since(now) - (WINDOWS_KEPT - 1) * window

    def oldest_since(self, now: float) -> int:
        """Where repairs must begin: the window, or an older bucket that somebody watches."""
        watched = (subscription.since for subscription in self.subscriptions)
        return min(watched, default=self.window_start(now))

    def default_since(self, now: float) -> int:
        window = WINDOW_SECONDS[self.rows.definition.bucket.value]
        return int(now - window) // self._bucket_seconds * self._bucket_seconds

    def check_since(self, since: int, now: float) -> int:
        if since < now - HISTORY_SECONDS_MAX:
            raise Rejected("bad-since", "is more than 400 days ago", "/since")
        if since > now + HISTORY_SECONDS_MAX:
            raise Rejected("bad-since", "is more than 400 days ahead", "/since")
        # Buckets start at multiples: rounding up changes nothing but lets wishes be equal.
        return -(-since // self._bucket_seconds) * self._bucket_seconds

    def apply(self, change: ViewChange) -> Verdict:
        """Apply a publication; one of an epoch that is not loaded (yet) is kept for the next load."""
        verdict = self.rows.apply(change)
        if verdict is Verdict.OTHER_EPOCH:
            self._early.append(change)
        return verdict

    def load(self, snapshot: ViewSnapshot, start: int) -> None:
        """Take a snapshot of the window; sessions of another epoch start again."""
        was_loaded = self.rows.is_loaded
        is_reset = self.rows.load(snapshot.epoch, snapshot.versions, snapshot.rows, start)
        early = list(self._early)
        self._early.clear()
        for change in early:
            self.rows.apply(change)
        if not is_reset:
            return
        self._snapshots.clear()
        # All of them first: who restarts would else join an audience that was told the old epoch's versions.
        self.part_all()
        if was_loaded:
            for subscription in list(self.subscriptions):
                if not subscription.is_waiting:
                    self.restart(subscription, "epoch")

    def restart(self, subscription: Subscription, reason: str) -> None:
        """Reset a subscription and send what is ready of it."""
        work = self.reset(subscription, reason)
        if work is not None:
            subscription.session.run(work)
        subscription.session.pump()

    def open(
        self, subscription: Subscription, resume: Resume | None
    ) -> Coroutine[Any, Any, None] | None:
        rows = self.rows
        if not rows.is_loaded:
            return self._open_later(subscription, resume)
        if resume is None:
            return self._start(subscription)
        if resume.epoch != rows.epoch or len(resume.versions) != len(rows.versions):
            return self.reset(subscription, "epoch")
        if any(theirs > ours for theirs, ours in zip(resume.versions, rows.versions, strict=True)):
            # Another pod was ahead of this one: what it showed must not be taken back.
            if rows.hear(enumerate(resume.versions)):
                return self._open_later(subscription, resume)
            return self.reset(subscription, "epoch")
        if rows.is_complete(subscription.since, resume.versions):
            changed = rows.above(
                resume.versions, subscription.tenant, subscription.filter, subscription.since
            )
            if len(changed) <= self._limits.delta_rows_max:
                metrics.resumes.labels("delta").inc()
                subscription.told = tuple(resume.versions)
                self._queue_difference(subscription, changed)
                return None
        return self.reset(subscription, "lagging")

    def _open_later(
        self, subscription: Subscription, resume: Resume | None
    ) -> Coroutine[Any, Any, None]:
        """Open again once the repair has loaded what was heard of."""
        # Now, and not when the coroutine begins: the session may ask for a frame before that.
        subscription.is_waiting = True
        return self._open_settled(subscription, resume)

    async def _open_settled(self, subscription: Subscription, resume: Resume | None) -> None:
        await self.repair.settled()
        subscription.is_waiting = False
        if subscription.is_closed:
            return
        if resume is not None and any(
            theirs > ours for theirs, ours in zip(resume.versions, self.rows.versions, strict=False)
        ):
            # Not even the primary has been there: those versions are of another life.
            again = self.reset(subscription, "epoch")
        else:
            again = self.open(subscription, resume)
        if again is not None:
            await again
        subscription.session.on_ready(subscription)

    def reset(self, subscription: Subscription, reason: str) -> Coroutine[Any, Any, None] | None:
        """Start a subscription again from a snapshot, and say why."""
        metrics.resets.labels(reason).inc()
        if subscription.audience is not None:
            self.part(subscription)
        subscription.session.lagging[subscription] = None
        first = message("reset", id=subscription.id, reason=reason)
        return self._start(subscription, first)

    def _start(self, subscription: Subscription, *first: Frame) -> Coroutine[Any, Any, None] | None:
        """Queue a snapshot: from memory, or from PostgreSQL where it reaches further back."""
        if subscription.since < self.rows.window_start:
            subscription.is_waiting = True
            subscription.parts = None
            return self._start_deep(subscription, first)
        snapshot = self._snapshot(subscription)
        subscription.queue((*first, *snapshot.frames))
        subscription.seq, subscription.told = snapshot.seq, snapshot.versions
        return None

    def _snapshot(self, subscription: Subscription) -> Snapshot:
        key = (subscription.tenant, subscription.filter, subscription.since, subscription.id)
        now = self._monotonic()
        known = self._snapshots.find(key, now)
        # Further behind, what came after would not fit a delta, and be a snapshot again, and so on.
        if known is not None and self.rows.seq - known.seq <= self._limits.delta_rows_max:
            return known
        rows = self.rows.select(subscription.tenant, subscription.filter, subscription.since)
        frames = self._snapshot_frames(
            subscription, self.rows.epoch, self.rows.versions, [row.encoded for row in rows]
        )
        size = sum(len(frame.payload) for frame in frames)
        made = Snapshot(now, self.rows.seq, self.rows.versions, frames, size)
        self._snapshots.keep(key, made)
        return made

    def _snapshot_frames(
        self,
        subscription: Subscription,
        epoch: str,
        versions: Versions,
        rows: Sequence[bytes],
    ) -> list[Frame]:
        head = {
            "id": subscription.id,
            "channel": self.name,
            "epoch": epoch,
            "versions": versions,
            "columns": self.rows.columns,
            "money": self.rows.money,
            "decimals": self._decimals,
            "since": subscription.since,
        }
        return snapshot_frames(head, rows, mark_of(epoch, versions), self._limits.part_bytes_max)

    async def _start_deep(self, subscription: Subscription, first: Sequence[Frame]) -> None:
        """Queue a snapshot that reaches back before the window, read from PostgreSQL.

        What is applied while it is read comes after it once more, as a delta from `seq`."""
        seq = self.rows.seq
        try:
            snapshot = await self._read(self.view, subscription)
        except Rejected as error:
            # The view has just been dropped; the catalogue will say so to all others.
            self._refuse(subscription, error.code, error.detail)
            return
        subscription.is_waiting = False
        if snapshot is None or subscription.is_closed:
            return
        metrics.reloads.labels("deep").inc()
        is_same_shape = self.rows.is_same_shape(snapshot.versions, snapshot.rows)
        if snapshot.epoch != self.rows.epoch or not is_same_shape:
            self.repair.request_view()
            await self._open_later(subscription, None)
            return
        if len(snapshot.rows) > self._limits.deep_rows_max:
            self._refuse(subscription, "too-many-rows", "ask for a later `since` or a filter")
            return
        encoded = [self.rows.encode_row(row, row["lane"])[1].encoded for row in snapshot.rows]
        versions = tuple(snapshot.versions)
        subscription.seq, subscription.told = seq, versions
        frames = self._snapshot_frames(subscription, snapshot.epoch, versions, encoded)
        subscription.queue((*first, *frames))
        subscription.session.on_ready(subscription)

    def _refuse(self, subscription: Subscription, code: str, detail: str) -> None:
        if not subscription.is_closed:
            subscription.session.refuse(subscription.id, code, detail)

    def next_frame(self, subscription: Subscription) -> Frame | None:
        if subscription.is_waiting:
            return None
        if subscription.parts:
            return subscription.parts.popleft()
        subscription.parts = None
        if self.is_current(subscription):
            self.join(subscription)
            return None
        rows = self.rows
        if rows.is_complete(subscription.since, subscription.told):
            changed = rows.newer_than(
                subscription.seq, subscription.tenant, subscription.filter, subscription.since
            )
            if len(changed) <= self._limits.delta_rows_max:
                self._queue_difference(subscription, changed)
                return self.next_frame(subscription)
        work = self.reset(subscription, "lagging")
        if work is not None:
            subscription.session.run(work)
        return self.next_frame(subscription)

    def _queue_difference(self, subscription: Subscription, changed: Sequence[Row]) -> None:
        """Queue one frame that leads from what the subscription knows to now."""
        seq, versions = self.position
        if changed:
            frame = self._delta(subscription.id, changed, subscription.told)
        else:
            mark = mark_of(self.rows.epoch, versions)
            frame = versions_frame(subscription.id, versions, mark)
        subscription.seq, subscription.told = seq, versions
        subscription.queue((frame,))

    def flush(self) -> None:
        changed = self.rows.take_changed()
        selected: dict[tuple[int, Filter], list[Row]] = {}
        for audience in list(self._audiences.values()):
            key = (audience.tenant, audience.filter)
            if key not in selected:
                rows = changed.get(audience.tenant, ())
                selected[key] = [row for row in rows if is_match(audience.filter, row.dimensions)]
            # An audience that began after a change has it in its snapshot.
            fresh = [row for row in selected[key] if row.seq > audience.seq]
            if fresh:
                self._send(audience, fresh)
            audience.seq = self.rows.seq
        self.forget_empty_audiences()

    def _send(self, audience: Audience, rows: Sequence[Row]) -> None:
        if len(rows) > self._limits.delta_rows_max:
            for member in list(audience.members):
                audience.leave(member)
                member.session.lagging[member] = None
                member.session.pump()
            return
        oldest = min(row.bucket for row in rows)
        if audience.since_max <= oldest:
            audience.broadcast(self._delta(audience.id, rows, audience.told))
        else:
            by_since: dict[int, dict[Subscription, Socket]] = {}
            for member, socket in audience.members.items():
                by_since.setdefault(max(member.since, oldest), {})[member] = socket
            for since, members in by_since.items():
                # Without rows too: everybody's versions must advance together.
                visible = [row for row in rows if row.bucket >= since]
                audience.broadcast(self._delta(audience.id, visible, audience.told), members)
        audience.told = self.rows.versions

    def _delta(self, id_: int, rows: Sequence[Row], told: Versions) -> Frame:
        versions = self.rows.versions
        lanes = [
            (lane, version, previous)
            for lane, (version, previous) in enumerate(zip(versions, told, strict=True))
            if version > previous
        ]
        newest = max((row.newest_at_ms for row in rows), default=0)
        mark = mark_of(self.rows.epoch, versions)
        return delta_frame(id_, lanes, (row.encoded for row in rows), newest, mark)

    def beat(self) -> None:
        seq, versions = self.position
        mark = mark_of(self.rows.epoch, versions)
        for audience in list(self._audiences.values()):
            if audience.told != versions and not self.rows.is_changed:
                audience.broadcast(versions_frame(audience.id, versions, mark))
                audience.seq, audience.told = seq, versions
        self.forget_empty_audiences()
