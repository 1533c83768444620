"""What the append script and its limits are for, on a real Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from coffee_rt.streams.contract import Outcome
from coffee_rt.streams.flush import ProducerLimits
from tests.streams_bed import RedisBed, an_append

pytestmark = pytest.mark.integration


@pytest.fixture
async def bed(valkey_url: str, redis_namespace: str) -> AsyncIterator[RedisBed]:
    made = RedisBed(valkey_url, redis_namespace)
    yield made
    await made.close()


async def test_a_request_with_thousands_of_keys_is_taken(bed: RedisBed) -> None:
    """More than Lua could look up at once; and in steps that leave the server time for others."""
    producer = bed.producer()
    appends = [an_append(producer, key=b"%d" % number) for number in range(9_000)]
    appended = await producer.append_many(0, appends)
    assert {one.outcome for one in appended} == {Outcome.NEW}
    counts = {one.position: 0 for one in appended}
    for one in appended:
        counts[one.position] += 1
    assert max(counts.values()) <= 200


async def test_every_key_is_forgotten_after_its_window(bed: RedisBed, redis_namespace: str) -> None:
    producer = bed.producer(ProducerLimits(key_window_seconds=100, client_id_window_seconds=200))
    lasting = set(await bed.command("KEYS", f"{redis_namespace}:*"))
    await producer.append(0, an_append(producer))
    lasting |= set(await bed.command("KEYS", f"{redis_namespace}:*"))
    await producer.append(0, an_append(producer, key=b"K", is_client_id=True))
    keys = set(await bed.command("KEYS", f"{redis_namespace}:*")) - lasting
    left = sorted([await bed.command("TTL", key) for key in keys])
    assert len(left) == 2
    assert 0 < left[0] <= 100 < left[1] <= 200
