"""API keys at the start: a process that began before the database did is usable as soon as that answers."""

from __future__ import annotations

import asyncio

import pytest

from coffee_rt.domain.keys import Access, KeyRing, MintedKey, mint_key
from coffee_rt.errors import Rejected, Retryable
from coffee_rt.store.contract import ApiKey
from coffee_rt.store.key_refresh import KeyRefresher
from coffee_rt.store.memory_database import MemoryDatabase
from coffee_rt.store.memory_keys import MemoryApiKeys
from tests.fanout_world import VirtualClock


class LateStore:
    """Answers from the third time on."""

    def __init__(self) -> None:
        self.asked = 0

    async def api_keys(self) -> list[ApiKey]:
        self.asked += 1
        if self.asked < 3:
            raise Retryable("the database is not there yet")
        return []

    async def add_api_key(self, key: ApiKey) -> None:
        raise AssertionError("nobody adds keys here")

    async def revoke_api_key(self, key_id: str) -> bool:
        raise AssertionError("nobody revokes keys here")


async def test_first_keys_are_asked_for_again_soon() -> None:
    clock, store = VirtualClock(), LateStore()
    ring = KeyRing(age_seconds_max=3600, fresh_seconds=60)
    refresher = KeyRefresher(store, ring, clock, 60.0)
    task = asyncio.create_task(refresher.run())
    await clock.advance(2.0)
    assert store.asked == 3
    # From then on at its pace.
    await clock.advance(50.0)
    assert store.asked == 3
    await clock.advance(20.0)
    assert store.asked == 4
    task.cancel()


async def test_keys_come_and_go_within_one_refresh() -> None:
    clock, store = VirtualClock(), MemoryApiKeys(MemoryDatabase())
    ring = KeyRing(age_seconds_max=3600, fresh_seconds=60)
    refresher = KeyRefresher(store, ring, clock, 10.0)
    old, new = mint_key(), mint_key()

    async def add(key: MintedKey) -> None:
        scopes = frozenset({"read"})
        await store.add_api_key(ApiKey(key.key_id, 0, "t", key.secret_hash, scopes, None, False))

    def opens(key: MintedKey) -> bool:
        try:
            ring.check(key.text, Access.READ, clock.monotonic())
        except Rejected:
            return False
        return True

    await add(old)
    await refresher.refresh()
    task = asyncio.create_task(refresher.run())
    await clock.advance(5.0)
    await add(new)
    await clock.advance(10.0)
    assert opens(old)
    assert opens(new)
    await store.revoke_api_key(old.key_id)
    await clock.advance(10.0)
    assert not opens(old)
    assert opens(new)
    task.cancel()


async def test_a_key_that_is_used_while_it_is_new_is_known_a_second_later() -> None:
    clock, store = VirtualClock(), MemoryApiKeys(MemoryDatabase())
    ring = KeyRing(age_seconds_max=3600, fresh_seconds=60)
    refresher = KeyRefresher(store, ring, clock, 60.0)
    await refresher.refresh()
    task = asyncio.create_task(refresher.run())
    await clock.advance(10.0)
    key, guess = mint_key(), mint_key()
    scopes = frozenset({"read"})
    await store.add_api_key(ApiKey(key.key_id, 0, "t", key.secret_hash, scopes, None, False))
    with pytest.raises(Rejected, match="bad-api-key"):
        ring.check(key.text, Access.READ, clock.monotonic())
    await clock.advance(1.5)
    assert ring.check(key.text, Access.READ, clock.monotonic()).key_id == key.key_id
    task.cancel()
    asked = 0
    load = store.api_keys

    async def counted() -> list[ApiKey]:
        nonlocal asked
        asked += 1
        return list(await load())

    store.api_keys = counted  # type: ignore[method-assign]
    task = asyncio.create_task(refresher.run())
    # Somebody who guesses all the time costs a look a second, no more.
    for _ in range(100):
        with pytest.raises(Rejected):
            ring.check(guess.text, Access.READ, clock.monotonic())
        await clock.advance(0.1)
    assert 8 <= asked <= 10
    task.cancel()
