"""Made-up orders of a café chain, straight into the log or the table, faster than HTTP could bring them."""

from __future__ import annotations

from collections.abc import Iterator
from os import urandom
from typing import Any

import redis.asyncio

from coffee_rt.domain.ids import IdMinter
from coffee_rt.domain.orders import Order
from coffee_rt.domain.wire import WIRE_VERSION, encode_record, hash_body, join_records
from coffee_rt.streams.shards import LogKeys

STORES = tuple(f"store {n}" for n in range(20))
DRINKS = ("latte", "cappuccino", "americano", "flat white", "mocha", "tea", "espresso", "cold brew")
PIPELINE_ENTRIES = 500


def make_orders(
    count: int, now_ms: int, minter: IdMinter, shard: int = 0, *, is_keyed: bool = False
) -> list[Order]:
    """Orders of one moment, spread over stores, drinks and the last ten minutes; `is_keyed`: each came with an
    Idempotency-Key of its own, which hashes spread as evenly as random bytes."""
    now_us = now_ms * 1000
    body_hash = hash_body(b"bench")
    return [
        Order(
            order_id=minter.mint(now_ms, shard),
            tenant=0,
            store=STORES[n % 20],
            drink=DRINKS[n * 7 % 8],
            price_minor=200 + n % 350,
            quantity=1 + n % 3,
            ordered_at_us=now_us - n % 600 * 1_000_000,
            accepted_at_us=now_us,
            body_hash=body_hash,
            key_hash=urandom(16) if is_keyed else None,
        )
        for n in range(count)
    ]


async def fill_log(
    url: str,
    keys: LogKeys,
    *,
    orders: int,
    records_per_entry: int,
    now_ms: int,
    is_keyed: bool = False,
) -> int:
    """Append entries to all shards in turn, as the append script writes them; how many orders."""
    client = redis.asyncio.Redis.from_url(url)
    minter = IdMinter()
    counters = dict.fromkeys(range(keys.shards), 0)
    for chunk in _chunks(max(1, orders // records_per_entry), PIPELINE_ENTRIES):
        async with client.pipeline(transaction=False) as pipeline:
            for number in range(chunk):
                shard = number % keys.shards
                counters[shard] += records_per_entry
                batch = make_orders(records_per_entry, now_ms, minter, shard, is_keyed=is_keyed)
                fields: dict[Any, Any] = {
                    b"v": WIRE_VERSION,
                    b"b": minter.mint(now_ms, shard),
                    b"c": counters[shard],
                    b"n": records_per_entry,
                    b"d": join_records([encode_record(order) for order in batch]),
                }
                pipeline.xadd(keys.streams[shard], fields)
            await pipeline.execute()
    for shard, counter in counters.items():
        await client.set(keys.counters[shard], counter)
    await client.aclose()
    return sum(counters.values())


def _chunks(total: int, size: int) -> Iterator[int]:
    while total > 0:
        yield min(total, size)
        total -= size
