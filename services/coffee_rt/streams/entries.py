"""Fields of a stream entry <-> a delivery. No I/O; what is read from the log is untrusted.

`docs/wire.md` describes the fields. An entry of a version we do not know is no fault: it may be a newer
release's, and stays pending for a reader that knows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from coffee_rt.domain.wire import RECORDS_MAX, WIRE_VERSIONS_READABLE
from coffee_rt.streams import metrics
from coffee_rt.streams.contract import Delivery, EntryId

NO_BATCH_ID = bytes(16)
_OWN_FIELDS = [b"v", b"b", b"c", b"n", b"d"]
_VERSIONS = {b"%d" % version: version for version in WIRE_VERSIONS_READABLE}


class Entry(NamedTuple):
    """An entry's fields as checked; `fault` says why they can't be used."""

    version: int
    batch_id: bytes
    counter: int
    records: int
    data: bytes
    trace: str
    gap: tuple[int, int] | None
    fault: str | None


def parse_entry(fields: dict[bytes, bytes]) -> Entry:
    try:
        version = int(fields[b"v"])
    except (KeyError, ValueError):
        return _faulty("has no version", fields)
    if version not in WIRE_VERSIONS_READABLE:
        return Entry(version, _batch_id(fields) or NO_BATCH_ID, 0, 0, b"", "", None, None)
    batch_id = _batch_id(fields)
    if batch_id is None:
        return _faulty("has no batch id of 16 bytes", fields, version)
    try:
        counter, records = int(fields[b"c"]), int(fields[b"n"])
        gap = _gap(fields[b"g"]) if b"g" in fields else None
        trace = fields.get(b"t", b"").decode()
    except (KeyError, ValueError) as error:
        return _faulty(f"has an unreadable field: {error}", fields, version)
    data = fields.get(b"d", b"")
    is_sound = records == 0 and not data if gap else 0 < records <= RECORDS_MAX and data
    if counter < 0 or not is_sound:
        return _faulty("counts its records wrongly", fields, version)
    return Entry(version, batch_id, counter, records, data, trace, gap, None)


def delivery_of(
    shard: int, entry_id: bytes, flat: Sequence[bytes], attempts: int, reader_epoch: int
) -> Delivery:
    """A delivery from Redis's reply. The producer's own fields, in its order, go a shorter way."""
    ms, _, seq = entry_id.partition(b"-")
    at = EntryId(int(ms), int(seq))
    if len(flat) == 10 and flat[::2] == _OWN_FIELDS:
        _, version, _, batch_id, _, counter, _, records, _, data = flat
        if (
            version in _VERSIONS
            and len(batch_id) == 16
            and len(counter) < 20
            and counter.isdigit()
            and len(records) < 10
            and records.isdigit()
            and 0 < int(records) <= RECORDS_MAX
            and data
        ):
            return Delivery(
                shard,
                at,
                _VERSIONS[version],
                batch_id,
                int(counter),
                int(records),
                data,
                attempts,
                reader_epoch,
            )
    return delivery(shard, at, fields_of(flat), attempts, reader_epoch)


def delivery(
    shard: int,
    entry_id: EntryId,
    fields: dict[bytes, bytes],
    attempts: int,
    reader_epoch: int,
) -> Delivery:
    entry = parse_entry(fields)
    return Delivery(
        shard,
        entry_id,
        entry.version,
        entry.batch_id,
        entry.counter,
        entry.records,
        entry.data,
        attempts,
        reader_epoch,
        entry.trace,
        entry.gap,
        entry.fault,
        {} if entry.fault is None else fields,
    )


def count_gaps(deliveries: Sequence[Delivery]) -> None:
    """Put what gap entries tell of into the metric; for entries delivered for the first time."""
    for entry in deliveries:
        if entry.gap is not None:
            metrics.GAP_RECORDS.labels(str(entry.shard)).inc(entry.gap[1] - entry.gap[0])


def fields_of(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """RESP2's flat list of names and values."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _batch_id(fields: dict[bytes, bytes]) -> bytes | None:
    batch_id = fields.get(b"b", b"")
    return batch_id if len(batch_id) == 16 else None


def _gap(text: bytes) -> tuple[int, int]:
    start, _, end = text.partition(b"-")
    gap = int(start), int(end)
    if not 0 <= gap[0] < gap[1]:
        raise ValueError("a gap must rise")
    return gap


def _faulty(fault: str, fields: dict[bytes, bytes], version: int = 0) -> Entry:
    return Entry(version, _batch_id(fields) or NO_BATCH_ID, 0, 0, b"", "", None, fault)
