"""Places the records of a batch, each on its own merit: one bad record costs only itself.

Records are read and appended in slices, so that a large batch neither holds up other requests nor waits for
its slices one after the other. Under one Idempotency-Key K, record i has the key K#i. A record without key
and without client id is plain: it can't be met by a retry, so its own id stands for its body, which saves a
hash, and the log need not look it up. A slice that is nothing but good plain records is read in one go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from coffee_rt.domain import wire
from coffee_rt.domain.ids import OrderId, format_id, text_parts
from coffee_rt.domain.intake import decode_order, decode_orders
from coffee_rt.domain.problems import problem_of
from coffee_rt.errors import CoffeeRtError, Rejected
from coffee_rt.order_api.placing import OrderPlacer, conflict
from coffee_rt.order_api.splitting import slices
from coffee_rt.streams.contract import Append, Appended, Logged, Outcome, Position

SLICES_AT_ONCE = 4
"""Slices of one request being appended. More would let one batch fill the log's queues alone."""

_ACCEPTED = (
    b'{"index":%%d,"status":202,"order_id":"%%b-%%b-%%b-%%b-%%b","position":"%b","duplicate":%b}'
)


@dataclass(slots=True)
class BatchResult:
    """What became of each record. `results` are JSON texts in the order of the records."""

    results: list[bytes]
    new: int = 0
    duplicates: int = 0
    rejected: int = 0
    failed: int = 0
    """Records whose outcome is unknown, or that were refused for reasons that pass (status 503)."""
    positions: set[Position] = field(default_factory=set)
    last_error: CoffeeRtError | None = None
    _replicas: int | None = None

    @property
    def replicas(self) -> int:
        """How many replicas have each of those accepted, at least."""
        return self._replicas or 0

    @property
    def accepted(self) -> int:
        return self.new + self.duplicates

    def refuse(self, index: int, error: CoffeeRtError) -> None:
        if isinstance(error, Rejected):
            # The place names the record too, so that an error can be told without its surroundings.
            error = Rejected(error.code, error.detail, f"/{index}{_below(error)}", error.status)
            self.rejected += 1
        else:
            self.failed += 1
            self.last_error = error
        problem = problem_of(error)
        self.results[index] = b'{"index":%d,"status":%d,"problem":%b}' % (
            index,
            problem.status,
            problem.to_bytes(),
        )

    def accept(
        self,
        indexes: Sequence[int],
        order_ids: Sequence[bytes],
        logged: Sequence[Logged],
        *,
        is_duplicate: bool = False,
    ) -> None:
        """Write down records that are in the log, all new or all known already."""
        results, last, text = self.results, None, b""
        parts_of_ids = text_parts(order_ids)
        for index, parts, (position, replicas) in zip(indexes, parts_of_ids, logged, strict=True):
            if position is not last:
                last = position
                self.positions.add(position)
                if self._replicas is None or replicas < self._replicas:
                    self._replicas = replicas
                text = _ACCEPTED % (str(position).encode(), b"true" if is_duplicate else b"false")
            results[index] = text % (index, *parts)
        if is_duplicate:
            self.duplicates += len(order_ids)
        else:
            self.new += len(order_ids)

    def mark_dead(self, order_ids: Iterable[bytes]) -> None:
        """Say of accepted records that they were found to be dead letters while the answer waited."""
        dead = {format_id(order_id).encode() for order_id in order_ids}
        if not dead:
            return
        for index, result in enumerate(self.results):
            _, name, rest = result[:128].partition(b'"order_id":"')
            if name and rest[:36] in dead:
                self.results[index] = result[:-1] + b',"ack":"dead-letter"}'


def _below(error: Rejected) -> str:
    return error.place if error.place.startswith("/") else ""


@dataclass(slots=True)
class _Plain:
    """Good records of a slice that the log need not look up."""

    shard: int
    indexes: Sequence[int]
    order_ids: list[OrderId]
    records: list[bytes]
    trace: str


_Keyed = dict[int, list[tuple[int, Append]]]
"""Those it looks up, by shard."""


class BatchPlacer:
    """Shared by all requests of the process."""

    def __init__(
        self, placer: OrderPlacer, *, slice_records_max: int, record_bytes_max: int
    ) -> None:
        self._placer = placer
        self._slice_records_max = slice_records_max
        self._record_bytes_max = record_bytes_max

    async def place(
        self, records: list[bytes], tenant: int, key: bytes | None = None, trace: str = ""
    ) -> BatchResult:
        """All records. Never raises for a record's sake: see BatchResult."""
        result = BatchResult([b""] * len(records))
        running: set[asyncio.Task[None]] = set()
        try:
            for start, part in slices(records, self._slice_records_max):
                plain = self._read_plain(part, start, tenant, trace) if key is None else None
                keyed: _Keyed = {}
                if plain is None:
                    plain, keyed = self._read(part, start, tenant, key, trace, result)
                if plain.records:
                    running.add(asyncio.create_task(self._append_plain(plain, result)))
                for shard, slice_ in keyed.items():
                    running.add(asyncio.create_task(self._append_keyed(shard, slice_, result)))
                while len(running) >= SLICES_AT_ONCE:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                # Others get their turn between two slices.
                await asyncio.sleep(0)
            await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
        return result

    def _read_plain(
        self, records: list[bytes], start: int, tenant: int, trace: str
    ) -> _Plain | None:
        """The slice, where all of it is good and plain; else None, and `_read` goes through it."""
        if max(map(len, records)) > self._record_bytes_max:
            return None
        incoming = decode_orders(records)
        if incoming is None or any(order.order_id is not None for order in incoming):
            return None
        producer, place_order = self._placer.producer, self._placer.intake.order
        now_ms, shard = producer.now_ms(), producer.choose_shard()
        minted = self._placer.minter.mint_many(now_ms, shard, len(records))
        at_us = now_ms * 1000
        try:
            encoded = [
                wire.encode_record(
                    place_order(
                        order, order_id, tenant=tenant, accepted_at_us=at_us, body_hash=order_id
                    )
                )
                for order, order_id in zip(incoming, minted, strict=True)
            ]
        except Rejected:
            return None
        return _Plain(shard, range(start, start + len(records)), minted, encoded, trace)

    def _read(
        self,
        records: list[bytes],
        start: int,
        tenant: int,
        key: bytes | None,
        trace: str,
        result: BatchResult,
    ) -> tuple[_Plain, _Keyed]:
        """The slice's good records, each looked at alone; the bad ones go into `result` here."""
        producer, intake, minter = self._placer.producer, self._placer.intake, self._placer.minter
        now_ms = producer.now_ms()
        indexes: list[int] = []
        plain = _Plain(producer.choose_shard(), indexes, [], [], trace)
        keyed: _Keyed = {}
        for index, raw in enumerate(records, start):
            try:
                self._check_size(raw)
                incoming = decode_order(raw)
                client_id = intake.client_order_id(incoming, now_ms)
                key_hash = None if key is None else wire.hash_key(tenant, key, index)
                if key_hash is not None:
                    shard = wire.shard_of(key_hash, producer.shards)
                elif client_id is not None:
                    shard = wire.shard_of_client_id(client_id, producer.shards)
                else:
                    shard = plain.shard
                order_id = client_id or minter.mint(now_ms, shard)
                is_plain = key_hash is None and client_id is None
                order = intake.order(
                    incoming,
                    order_id,
                    tenant=tenant,
                    accepted_at_us=now_ms * 1000,
                    body_hash=order_id if is_plain else wire.hash_body(raw),
                    key_hash=key_hash,
                )
            except Rejected as error:
                result.refuse(index, error)
                continue
            record = wire.encode_record(order)
            if is_plain:
                indexes.append(index)
                plain.order_ids.append(order_id)
                plain.records.append(record)
                continue
            append = Append(
                order_id, record, order.body_hash, key_hash, client_id is not None, tenant, trace
            )
            keyed.setdefault(shard, []).append((index, append))
        return plain, keyed

    def _check_size(self, raw: bytes) -> None:
        """Before anything is made of it: a text of brackets becomes many times its size."""
        if len(raw) > self._record_bytes_max:
            detail = f"must be at most {self._record_bytes_max} bytes"
            raise Rejected("too-large", detail, status=413)

    async def _append_plain(self, plain: _Plain, result: BatchResult) -> None:
        try:
            logged = await self._placer.producer.append_plain(
                plain.shard, plain.records, plain.trace
            )
        except CoffeeRtError as error:
            for index in plain.indexes:
                result.refuse(index, error)
            return
        result.accept(plain.indexes, plain.order_ids, logged)

    async def _append_keyed(
        self, shard: int, slice_: list[tuple[int, Append]], result: BatchResult
    ) -> None:
        try:
            appended = await self._placer.producer.append_many(
                shard, [append for _index, append in slice_]
            )
        except CoffeeRtError as error:
            for index, _append in slice_:
                result.refuse(index, error)
            return
        _note(slice_, appended, result)


def _note(slice_: list[tuple[int, Append]], appended: list[Appended], result: BatchResult) -> None:
    """Write down what the log answered to records it looked up."""
    for outcome in (Outcome.NEW, Outcome.DUPLICATE):
        taken = [
            (index, answer.order_id, Logged(answer.position, answer.replicas))
            for (index, _append), answer in zip(slice_, appended, strict=True)
            if answer.outcome is outcome
        ]
        if taken:
            result.accept(*zip(*taken, strict=True), is_duplicate=outcome is Outcome.DUPLICATE)
    for (index, append), answer in zip(slice_, appended, strict=True):
        if answer.outcome is Outcome.CONFLICT:
            result.refuse(index, conflict(append.key_hash is not None))
