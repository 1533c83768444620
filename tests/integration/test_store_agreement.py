"""Memory and PostgreSQL given the same entries, repeats and races: they must say and hold the same."""

from __future__ import annotations

import random

import msgspec
import pytest

from coffee_rt.domain.orders import Order
from coffee_rt.store.contract import EntryWrite
from tests.builders import a_view, an_order
from tests.store_harness import WriteStore, a_write_store, an_entry

pytestmark = pytest.mark.integration


def some_entries(chance: random.Random) -> list[EntryWrite]:
    """Entries whose orders repeat ids and keys, with the same body and with another."""
    known: list[Order] = [an_order()]

    def next_order() -> Order:
        fresh = an_order(
            tenant=chance.randrange(2),
            store=chance.choice(["uptown", "harbour"]),
            quantity=chance.randrange(1, 5),
            key_hash=chance.choice([None, chance.randbytes(16)]),
        )
        old = chance.choice(known)
        dice = chance.random()
        if dice < 0.1:
            return old
        if dice < 0.15:
            return msgspec.structs.replace(old, body_hash=chance.randbytes(16))
        if dice < 0.2:
            return msgspec.structs.replace(old, tenant=1 - old.tenant)
        known.append(fresh)
        return fresh

    return [
        an_entry(*(next_order() for _ in range(chance.randrange(6))), shard=chance.randrange(2))
        for _ in range(60)
    ]


async def play(store: WriteStore, batches: list[list[EntryWrite]]) -> list[object]:
    """Everything that can be seen of a store after some batches."""
    await store.add_view(a_view())
    seen: list[object] = []
    for batch in batches:
        committed = await store.commit(*batch)
        seen.append(
            [tuple(getattr(each, f) for f in each.__slots__) for each in committed.outcomes]
        )
        seen.append(sorted(committed.duplicate_order_ids))
        seen.append(sorted(committed.dead_order_ids))
        seen.append(committed.touched_lanes)
    letters = await store.reader.dead_letters(None, 1000, None)
    seen.append(sorted((each.batch_id, each.index, each.code, each.tenant) for each in letters))
    orders = await store.reader.recent_orders(None, 1000)
    seen.append([(each.order.order_id, each.order.tenant, each.batch_id) for each in orders])
    seen += [await store.keeper.ledger_sums(shard, None) for shard in range(2)]
    seen += [await store.delta_sums("sales", name) for name in ("orders", "quantity", "revenue")]
    seen.append(len(orders))
    return seen


@pytest.mark.parametrize("seed", range(4))
async def test_memory_and_postgres_agree(database_url: str, seed: int) -> None:
    chance = random.Random(seed)
    entries = some_entries(chance)
    batches: list[list[EntryWrite]] = []
    while entries:
        size = chance.randrange(1, 8)
        batch, entries = entries[:size], entries[size:]
        again = chance.choice(batches[-1]) if batches else batch[0]
        batches.append([*batch, again] if chance.random() < 0.3 else batch)
    async with a_write_store(None) as memory, a_write_store(database_url) as postgres:
        in_memory = await play(memory, batches)
        in_postgres = await play(postgres, batches)
    assert in_memory == in_postgres
    assert in_postgres[-1] == in_postgres[-4]
