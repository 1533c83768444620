"""The worker's lane of the intake over memory: one batch that fails holds up no other."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from coffee_rt.domain.ids import IdMinter
from coffee_rt.domain.orders import Order
from coffee_rt.domain.wire import WIRE_VERSION, encode_record
from coffee_rt.errors import Retryable
from coffee_rt.store.contract import Committed, PreparedBatch
from coffee_rt.store.intake_contract import IntakeWrite
from coffee_rt.store.memory import MemoryOrderWriter
from coffee_rt.store.memory_database import MemoryDatabase
from coffee_rt.store.memory_intake import MemoryIntake
from coffee_rt.worker import draining
from coffee_rt.worker.storing import StoreLimits
from tests.workers import LIMITS, MemoryShop, now_order, until

HASTY = replace(
    LIMITS,
    store=StoreLimits(suspect_attempts_min=2, park_failures=2, backoff_seconds_max=0.003),
)
_minter = IdMinter()


class PoisonedWriter(MemoryOrderWriter):
    """The server breaks on orders of `poison`, until it is mended."""

    def __init__(self, database: MemoryDatabase) -> None:
        super().__init__(database)
        self.refused = 0
        self.is_mended = False

    async def commit(self, batch: PreparedBatch, *, is_claimed: bool = False) -> Committed:
        orders = [order for entry in batch.entries for order in entry.orders]
        if not self.is_mended and any(order.drink == "poison" for order in orders):
            self.refused += 1
            raise Retryable("PostgreSQL 57P02: crash of another server process")
        return await super().commit(batch, is_claimed=is_claimed)


class Shop(MemoryShop):
    """A worker that drains an intake."""

    def __init__(self) -> None:
        super().__init__()
        self.intake = MemoryIntake(self.database, self.clock.now)
        self.writer = PoisonedWriter(self.database)

    async def take_in(self, *orders: Order) -> set[bytes]:
        """One batch of these orders; their ids."""
        batch_id = _minter.mint(time.time_ns() // 1_000_000)
        records = [encode_record(order) for order in orders]
        await self.intake.append(IntakeWrite(batch_id, WIRE_VERSION, records, []))
        return {order.order_id for order in orders}


@pytest.fixture
async def shop(monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setattr(draining, "POLL_SECONDS", 0.01)
    made = Shop()
    made.start(writer=made.writer, limits=HASTY, intake=made.intake)
    return made


async def test_a_batch_that_breaks_the_server_holds_up_no_other_batch_of_the_intake(
    shop: Shop,
) -> None:
    poison = now_order(drink="poison")
    await shop.take_in(poison)
    # Alone in the intake, however often it fails: no verdict.
    await until(lambda: shop.writer.refused > 10)
    assert not shop.database.dead_letters
    ids: set[bytes] = set()
    for _ in range(400):
        if shop.database.dead_letters:
            break
        ids |= await shop.take_in(now_order(), now_order())
        await asyncio.sleep(0.005)
    await until(lambda: shop.stored_ids() == ids and not shop.database.intake)
    [letter] = shop.database.dead_letters
    assert (letter.code, letter.order_id) == ("unstorable-entry", poison.order_id)
    assert (await shop.intake.state()).imbalance == 0
    await shop.drain()


async def test_batches_set_apart_are_all_stored_when_the_server_is_mended(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "APART_BATCHES_MAX", 3)
    ids: set[bytes] = set()
    for _ in range(5):
        ids |= await shop.take_in(now_order(drink="poison"))
    await until(lambda: shop.writer.refused > 10)
    shop.writer.is_mended = True
    await until(lambda: shop.stored_ids() == ids and not shop.database.intake)
    assert not shop.database.dead_letters
    await shop.drain()
