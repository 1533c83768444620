"""The log beside the ledger beside the orders, shard by shard, with the name of what is missing.

Only what is acknowledged is compared: it stays as it is, so the audit is exact while orders flow. The ledger
and the orders are read in one snapshot a shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from uuid import UUID

from coffee_rt.conservation.balance import Settled, told_imbalance, weigh
from coffee_rt.conservation.findings import Finding, Report, instant
from coffee_rt.conservation.holes import Hole, Line, Numbered
from coffee_rt.domain.ids import format_id, id_time_ms
from coffee_rt.domain.wire import decode_record, split_batch
from coffee_rt.errors import Rejected
from coffee_rt.store.contract import EntryKey
from coffee_rt.store.ledger_rows import PAGE_ROWS, LedgerReading, LedgerRow
from coffee_rt.streams.contract import Delivery, EntryId
from coffee_rt.streams.keeper import RedisKeeper

HOLE_ENTRIES_MAX = 1_000
"""Entries of the log looked at for one hole."""
FINDINGS_MAX = 1_000
"""Told of one shard."""
NAMES_MAX = 50
"""Order ids named in one finding."""

Progress = Callable[[int, int], None]


async def audit_shard(
    keeper: RedisKeeper,
    reading: LedgerReading,
    settled: Settled,
    since_ms: int | None,
    report: Report,
    progress: Progress,
) -> None:
    """Compare one shard up to its settled entry; what is wrong goes into the report. Raises Retryable."""
    sums = await reading.sums(settled.shard, settled.below)
    balance = weigh(settled, sums)
    if balance.imbalance:
        # The sums count a number twice that was given twice; the numbers don't.
        below = (settled.below.ms, settled.below.seq)
        missing = await reading.uncounted_records(settled.shard, below, settled.accepted)
        balance = replace(balance, imbalance=told_imbalance(missing, sums))
    audit = _ShardAudit(keeper, reading, settled)
    await audit.walk(since_ms, progress)
    await audit.name_holes()
    audit.explain(balance.imbalance, is_whole=since_ms is None)
    report.findings += audit.findings[:FINDINGS_MAX]
    shard = {"shard": settled.shard, "below": str(settled.below), **balance.states}
    counted = {"imbalance": balance.imbalance, "repeated": audit.repeated, "entries": audit.rows}
    report.shards.append(shard | counted)


class _ShardAudit:
    def __init__(self, keeper: RedisKeeper, reading: LedgerReading, settled: Settled) -> None:
        self._keeper = keeper
        self._reading = reading
        self._settled = settled
        self._line = Line([], [])
        self.findings: list[Finding] = []
        self.rows = 0

    @property
    def repeated(self) -> int:
        """Records whose numbers were given before: the log failed over and counted on from less. None is
        double."""
        return self._line.repeated

    async def walk(self, since_ms: int | None, progress: Progress) -> None:
        """Every ledger row of the shard, with the orders it tells of."""
        shard, below = self._settled.shard, self._settled.below
        self._line.gaps = await self._reading.gaps(shard)
        if since_ms is None and await self._reading.is_whole(shard):
            self._line.start = 0
        after: EntryKey = (since_ms or 0, 0)
        while rows := await self._reading.rows(shard, after, (below.ms, below.seq)):
            after = rows[-1].entry
            self.rows += len(rows)
            self._line.walk(
                Numbered(row.entry, row.batch_id, row.counter, row.records) for row in rows
            )
            for row in rows:
                if row.orders is not None and row.orders != row.stored:
                    self.findings.append(await self._orders_finding(row))
            left = max(0, self._settled.accepted - self._line.reached)
            done = self._line.reached - (self._line.start or 0)
            progress(done, done + left)
            if len(rows) < PAGE_ROWS:
                break
        if since_ms is None or self.rows:
            self._line.end(self._settled.accepted, (below.ms, below.seq))

    async def _orders_finding(self, row: LedgerRow) -> Finding:
        missing = row.stored - (row.orders or 0)
        names = await self._missing_names(row) if missing > 0 else []
        return Finding(
            kind="missing-orders" if missing > 0 else "extra-orders",
            records=abs(missing),
            detail=f"the ledger says {row.stored} stored, there are {row.orders} orders",
            shard=self._settled.shard,
            batch_ids=(str(UUID(bytes=row.batch_id)),),
            entries=(str(EntryId(*row.entry)),),
            start=instant(row.entry[0]),
            order_ids=tuple(names),
        )

    async def _missing_names(self, row: LedgerRow) -> list[str]:
        """Ids of an entry's orders that are gone, where the log still has the entry."""
        ms, seq = row.entry
        found = await self._keeper.entries(
            self._settled.shard, _just_below(row.entry), EntryId(ms, seq + 1), 1
        )
        ids = _order_ids(found[0]) if found and found[0].batch_id == row.batch_id else []
        stored = await self._reading.orders_of(ids)
        return [format_id(each) for each in ids if each not in stored][:NAMES_MAX]

    async def name_holes(self) -> None:
        """What the log still has of each hole, and what is gone."""
        for hole in self._line.holes[:FINDINGS_MAX]:
            left = hole.records
            for entry in await self._entries_in(hole):
                left -= entry.records
                self.findings.append(await self._unstored(entry))
            if left > 0:
                self.findings.append(await self._gone(hole, left))

    async def _entries_in(self, hole: Hole) -> list[Delivery]:
        found = await self._keeper.entries(
            self._settled.shard, EntryId(*hole.after), EntryId(*hole.before), HOLE_ENTRIES_MAX
        )
        return [
            entry
            for entry in found
            if hole.first < entry.counter <= hole.last
            and entry.records
            and not await self._reading.has_row(entry.batch_id)
        ]

    async def _unstored(self, entry: Delivery) -> Finding:
        ids = _order_ids(entry)
        stored = await self._reading.orders_of(ids)
        missing = [each for each in ids if each not in stored]
        is_row_gone = bool(ids) and not missing
        detail = (
            "its orders are stored, but the ledger lost its row"
            if is_row_gone
            else "acknowledged and in the log, but not in the ledger: let the group read it again"
        )
        return Finding(
            kind="missing-ledger-row" if is_row_gone else "unstored-entry",
            records=entry.records,
            detail=detail,
            shard=entry.shard,
            batch_ids=(str(UUID(bytes=entry.batch_id)),),
            entries=(str(entry.entry_id),),
            numbers=(entry.counter - entry.records, entry.counter),
            start=instant(entry.entry_id.ms),
            order_ids=tuple(format_id(each) for each in missing[:NAMES_MAX]),
        )

    async def _gone(self, hole: Hole, records: int) -> Finding:
        start_ms, end_ms = hole.after[0], hole.before[0]
        batches = {
            batch: orders
            for batch, orders in (await self._reading.unknown_batches(start_ms, end_ms)).items()
            if start_ms - 60_000 <= id_time_ms(batch) <= end_ms + 60_000
        }
        if batches:
            detail = f"the ledger lost its row; {sum(batches.values())} orders of it are stored"
        else:
            detail = "in neither the log nor the ledger: deleted before it was stored"
        return Finding(
            kind="missing-ledger-row" if batches else "missing-entry",
            records=records,
            detail=detail,
            shard=self._settled.shard,
            batch_ids=tuple(str(UUID(bytes=batch)) for batch in batches),
            entries=(str(EntryId(*hole.after)), str(EntryId(*hole.before))),
            numbers=(hole.first, hole.last),
            start=instant(start_ms),
            end=instant(end_ms),
        )

    def explain(self, imbalance: int, *, is_whole: bool) -> None:
        """What the sums say beyond what could be located."""
        kinds = ("missing-entry", "unstored-entry")
        located = sum(each.records for each in self.findings if each.kind in kinds)
        if is_whole and imbalance != located:
            detail = (
                f"the count says {imbalance}, the rows {located}: the rest is among entries whose rows "
                "were compacted, or the log counts on from less, or rows were changed by hand"
            )
            records = abs(imbalance - located)
            self.findings.append(Finding("unlocated", records, detail, self._settled.shard))


def _order_ids(entry: Delivery) -> Sequence[bytes]:
    try:
        return [decode_record(record).order_id for record in split_batch(entry.version, entry.data)]
    except Rejected:
        return []


def _just_below(entry: EntryKey) -> EntryId:
    ms, seq = entry
    return EntryId(ms, seq - 1) if seq else EntryId(ms - 1, 2**63)
