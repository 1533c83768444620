"""Places the records of a batch, each on its own merit: one bad record costs only itself.

Records are read and appended in slices, so that a large batch neither holds up other requests nor waits for
its slices one after the other. Under one Idempotency-Key K, record i has the key K#i. A record without key
and without client id can't be met by a retry; its own id then stands for its body, which saves a hash.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from coffee_rt.domain import wire
from coffee_rt.domain.ids import format_id
from coffee_rt.domain.intake import decode_order
from coffee_rt.domain.json_text import check_encoding, reject_decode
from coffee_rt.domain.problems import problem_of
from coffee_rt.errors import CoffeeRtError, Rejected
from coffee_rt.order_api.placing import OrderPlacer, conflict
from coffee_rt.streams.contract import Append, Appended, Outcome, Position

SLICES_AT_ONCE = 4
"""Slices of one request being appended. More would let one batch fill the log's queues alone."""

COMMAS_A_RECORD = 16
"""Commas an ordinary record may have. A body with more of them is counted before it is taken apart."""

_LINES = re.compile(rb"\S[^\n]*")
# A text without its end matches too: else each quote in it would be tried, up to the body's end.
_MARKS = re.compile(rb'"(?:[^"\\]|\\(?s:.)?)*+"?|[\[\]{},]')
_DEEP_MARKS = re.compile(rb'"(?:[^"\\]|\\(?s:.)?)*+"?|[\[\]{}]')
_split = msgspec.json.Decoder(list[msgspec.Raw]).decode


def split_array(body: bytes, records_max: int) -> list[bytes]:
    """The records of a JSON array, each as its own bytes. Raises Rejected."""
    if body.count(b",") > COMMAS_A_RECORD * records_max:
        _check_count(_count_elements(body, records_max), records_max)
    try:
        records = [bytes(raw) for raw in _split(body)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        check_encoding(body)
        reject_decode(error)
    _check_count(len(records), records_max)
    return records


def split_lines(body: bytes, records_max: int) -> list[bytes]:
    """The records of NDJSON; empty lines are no records. Raises Rejected."""
    check_encoding(body)
    records = [match.group() for match in islice(_LINES.finditer(body), records_max + 1)]
    _check_count(len(records), records_max)
    return records


def _check_count(records: int, records_max: int) -> None:
    if records > records_max:
        detail = f"The batch has more than {records_max} records."
        raise Rejected("too-many-records", detail, status=413)


def _count_elements(body: bytes, enough: int) -> int:
    """About how many elements an array's text has, counted no further than a little past `enough`. Slow,
    but without making them: 32 MiB of `[0,0,...` would become two gigabytes before they could be counted."""
    depth = at = 0
    elements = 1
    while elements <= enough:
        found = (_MARKS if depth <= 1 else _DEEP_MARKS).search(body, at)
        if found is None:
            break
        at, mark = found.end(), found.group()[:1]
        if mark in b"[{":
            depth += 1
        elif mark in b"]}":
            depth -= 1
        elif mark == b",":
            elements += 1
    return elements


@dataclass(slots=True)
class BatchResult:
    """What became of each record. `results` are JSON texts in the order of the records."""

    results: list[str]
    new: int = 0
    duplicates: int = 0
    rejected: int = 0
    failed: int = 0
    """Records whose outcome is unknown, or that were refused for reasons that pass (status 503)."""
    positions: set[Position] = field(default_factory=set)
    last_error: CoffeeRtError | None = None

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
        self.results[index] = (
            f'{{"index":{index},"status":{problem.status},"problem":{problem.to_bytes().decode()}}}'
        )

    def mark_dead(self, order_ids: Iterable[bytes]) -> None:
        """Say of accepted records that they were found to be dead letters while the answer waited."""
        dead = set(map(format_id, order_ids))
        if not dead:
            return
        for index, result in enumerate(self.results):
            _, name, rest = result[:128].partition('"order_id":"')
            if name and rest[:36] in dead:
                self.results[index] = result[:-1] + ',"ack":"dead-letter"}'


def _below(error: Rejected) -> str:
    return error.place if error.place.startswith("/") else ""


class BatchPlacer:
    """Shared by all requests of the process."""

    def __init__(self, placer: OrderPlacer, *, slice_records_max: int) -> None:
        self._placer = placer
        self._slice_records_max = slice_records_max

    async def place(
        self, records: list[bytes], tenant: int, key: bytes | None = None, trace: str = ""
    ) -> BatchResult:
        """All records. Never raises for a record's sake: see BatchResult."""
        result = BatchResult([""] * len(records))
        running: set[asyncio.Task[None]] = set()
        try:
            for start in range(0, len(records), self._slice_records_max):
                part = records[start : start + self._slice_records_max]
                for shard, slice_ in self._read(part, start, tenant, key, trace, result).items():
                    running.add(asyncio.create_task(self._append(shard, slice_, result)))
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

    def _read(
        self,
        records: list[bytes],
        start: int,
        tenant: int,
        key: bytes | None,
        trace: str,
        result: BatchResult,
    ) -> dict[int, list[tuple[int, Append]]]:
        """The slice's good records by shard; the bad ones go into `result` here."""
        producer, intake = self._placer.producer, self._placer.intake
        now_ms = producer.now_ms()
        home = producer.choose_shard() if key is None else -1
        minted = self._placer.minter.mint_many(now_ms, max(home, 0), len(records))
        shards: dict[int, list[tuple[int, Append]]] = {}
        plain = shards.setdefault(home, []) if key is None else []
        encode, at_us = wire.encode_record, now_ms * 1000
        for index, (raw, order_id) in enumerate(zip(records, minted, strict=True), start):
            try:
                incoming = decode_order(raw)
                if key is None and incoming.order_id is None:
                    order = intake.order(
                        incoming,
                        order_id,
                        tenant=tenant,
                        accepted_at_us=at_us,
                        body_hash=order_id,
                    )
                    append = Append(order_id, encode(order), order_id, None, False, tenant, trace)
                    plain.append((index, append))
                    continue
                client_id = intake.client_order_id(incoming, now_ms)
                key_hash = None if key is None else wire.hash_key(tenant, key, index)
                if key_hash is not None:
                    shard = wire.shard_of(key_hash, producer.shards)
                else:
                    shard = wire.shard_of_client_id(client_id or b"", producer.shards)
                order = intake.order(
                    incoming,
                    client_id or self._placer.minter.mint(now_ms, shard),
                    tenant=tenant,
                    accepted_at_us=at_us,
                    body_hash=wire.hash_body(raw),
                    key_hash=key_hash,
                )
            except Rejected as error:
                result.refuse(index, error)
                continue
            append = Append(
                order.order_id,
                encode(order),
                order.body_hash,
                key_hash,
                client_id is not None,
                tenant,
                trace,
            )
            shards.setdefault(shard, []).append((index, append))
        return {shard: slice_ for shard, slice_ in shards.items() if slice_}

    async def _append(
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
    """Write down what the log answered to a slice."""
    results, position, text = result.results, None, ""
    for (index, append), answer in zip(slice_, appended, strict=True):
        if answer.outcome is Outcome.CONFLICT:
            result.refuse(index, conflict(append.key_hash is not None))
            continue
        if answer.position is not position:
            position = answer.position
            text = str(position)
            result.positions.add(position)
        is_duplicate = answer.outcome is Outcome.DUPLICATE
        if is_duplicate:
            result.duplicates += 1
        else:
            result.new += 1
        results[index] = (
            f'{{"index":{index},"status":202,"order_id":"{format_id(answer.order_id)}",'
            f'"position":"{text}","duplicate":{"true" if is_duplicate else "false"}}}'
        )
