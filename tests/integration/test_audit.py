"""Conservation on real servers: the gauge is 0 whatever is killed, and what is taken away is seen and named."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from coffee_rt.conservation.audit import AuditRequest, Installation, run_audit
from coffee_rt.conservation.balance import read_settled, weigh
from coffee_rt.domain.ids import IdMinter, format_id
from coffee_rt.domain.orders import Order
from coffee_rt.domain.wire import WIRE_VERSION, encode_record
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import SystemClock
from coffee_rt.runtime.logs import get_log
from coffee_rt.runtime.settings import DatabaseSettings, RedisSettings
from coffee_rt.store.inspect import IntakeFacts, inspect_database
from coffee_rt.store.intake import PostgresIntake
from coffee_rt.store.intake_contract import IntakeWrite
from coffee_rt.store.keeper import PostgresKeeper
from coffee_rt.store.pool import create_pool
from coffee_rt.worker import metrics
from coffee_rt.worker.care import CareLimits, Caretaker
from tests.integration.test_worker import SHARDS, Bed
from tests.workers import now_order, until

pytestmark = pytest.mark.integration
CARE: dict[str, Any] = {"care_seconds": 1.0}


class AuditBed(Bed):
    """A log, a database, workers, and the audit's view of them."""

    async def audit(self, folder: Path, **request: Any) -> tuple[int, dict[str, Any]]:
        """Exit code and document of `coffee-rt audit --log-only --json`."""
        database = self.database.model_copy(update={"pool_size_max": 1})
        installation = Installation(self.redis, database, self.namespace, SHARDS)
        file = folder / "audit.json"
        asked = AuditRequest(**{"is_views": False, "json_file": file, **request})
        code = await run_audit(asked, installation)
        return code, json.loads(file.read_text())

    async def findings(self, folder: Path) -> list[dict[str, Any]]:
        code, document = await self.audit(folder)
        assert code == (1 if document["findings"] else 0)
        found: list[dict[str, Any]] = document["findings"]
        return found

    async def entry_ids(self, shard: int = 0) -> list[str]:
        return [
            entry_id.decode()
            for entry_id, _ in await self.client.xrange(self.log.keys.streams[shard])
        ]

    async def append_entries(self, sizes: list[int], shard: int = 0) -> list[list[Order]]:
        """An entry of each size."""
        made = [[now_order() for _ in range(size)] for size in sizes]
        for orders in made:
            await self.append(orders, shard)
        return made


@pytest.fixture
async def bed(valkey_url: str, database_url: str, redis_namespace: str) -> AsyncIterator[AuditBed]:
    made = AuditBed(valkey_url, database_url, redis_namespace)
    await made.open()
    yield made
    await made.close()


def flat(made: list[list[Order]]) -> list[Order]:
    return [order for orders in made for order in orders]


def gauge(shard: int = 0) -> float:
    return float(metrics.CONSERVATION.labels(str(shard))._value.get())


async def wait_gauge(records: int) -> None:
    await until(lambda: gauge() == records, 60)


async def test_a_result_that_can_not_be_written_is_told_and_no_success(
    bed: AuditBed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    installation = Installation(bed.redis, bed.database, bed.namespace, SHARDS)
    request = AuditRequest(is_log=False, is_views=False, json_file=tmp_path / "none" / "audit.json")
    assert await run_audit(request, installation) == 2
    assert "can't be written: No such file or directory" in capsys.readouterr().out


async def test_all_is_in_balance_all_the_time_while_workers_are_killed(
    bed: AuditBed, tmp_path: Path
) -> None:
    """Sampled as often as the servers allow; a worker is killed every third of a second."""
    pool = await create_pool(bed.database)
    store, log = PostgresKeeper(pool), bed.log.keeper()
    await store.ensure_shards(SHARDS)
    await log.ensure_group("workers")
    placed: list[Order] = []
    samples = 0

    async def post() -> None:
        for number in range(60):
            placed.extend(flat(await bed.append_entries([3, 1, 7], shard=number % SHARDS)))
            await asyncio.sleep(0.05)

    async def kill() -> None:
        for number in range(6):
            child = await bed.spawn(f"w{number}", claim_idle_seconds_min=1.0)
            await asyncio.sleep(1.5)
            child.kill()
            await child.wait()

    async def sample() -> None:
        nonlocal samples
        while True:
            _, settled = await read_settled(log, "workers")
            for each in settled:
                balance = weigh(each, await store.ledger_sums(each.shard, each.below))
                assert balance.imbalance == 0, balance
                states = balance.states
                left = {name: count for name, count in states.items() if name != "accepted"}
                assert states["accepted"] == sum(left.values())
            samples += 1

    sampling = asyncio.create_task(sample())
    try:
        await asyncio.gather(post(), kill())
        async with bed.worker(claim_idle_seconds_min=0.5, **CARE):
            await bed.wait_stored(placed)
        assert not sampling.done()
    finally:
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)
        await log.close()
        await pool.close()
    assert samples > 100
    code, document = await bed.audit(tmp_path, is_views=True)
    assert (code, document["is_clean"]) == (0, True)
    assert sum(shard["stored"] for shard in document["shards"]) == len(placed) == 660


async def test_an_undelivered_entry_deleted_by_hand_is_seen_and_named(
    bed: AuditBed, tmp_path: Path
) -> None:
    made = await bed.append_entries([2, 5, 3])
    before, gone, after = await bed.entry_ids()
    await bed.client.xdel(bed.log.keys.streams[0], gone)
    async with bed.worker(**CARE):
        await bed.wait_stored([*made[0], *made[2]])
        await wait_gauge(5)
    [finding] = await bed.findings(tmp_path)
    assert finding["kind"] == "missing-entry"
    assert (finding["shard"], finding["records"]) == (0, 5)
    assert finding["entries"] == [before, after]
    assert finding["numbers"] == [2, 7]
    assert finding["start"] <= finding["end"]


async def test_a_pending_entry_deleted_by_hand_is_seen_and_named(
    bed: AuditBed, tmp_path: Path
) -> None:
    stream = bed.log.keys.streams[0]
    made = await bed.append_entries([2, 4])
    await bed.client.xgroup_create(stream, "workers", "0")
    await bed.client.xreadgroup("workers", "thief", {stream: ">"}, count=1)
    await bed.client.xdel(stream, (await bed.entry_ids())[0])
    async with bed.worker(claim_idle_seconds_min=0.5, **CARE):
        await wait_gauge(2)
    assert await bed.stored() == {order.order_id for order in made[1]}
    [finding] = await bed.findings(tmp_path)
    assert (finding["kind"], finding["records"]) == ("missing-entry", 2)


async def test_a_trim_by_hand_is_seen_and_named(bed: AuditBed, tmp_path: Path) -> None:
    async with bed.worker(**CARE):
        first = flat(await bed.append_entries([2]))
        await bed.wait_stored(first)
    await bed.append_entries([3, 4])
    last = await bed.append_entries([1])
    await bed.client.xtrim(bed.log.keys.streams[0], maxlen=1, approximate=False)
    async with bed.worker(**CARE):
        await bed.wait_stored([*first, *flat(last)])
        await wait_gauge(7)
    [finding] = await bed.findings(tmp_path)
    assert (finding["kind"], finding["records"]) == ("missing-entry", 7)


async def test_an_order_deleted_by_hand_is_named(bed: AuditBed, tmp_path: Path) -> None:
    made = await bed.append_entries([3, 2])
    async with bed.worker(**CARE):
        await bed.wait_stored(flat(made))
    gone = made[0][1].order_id
    await bed.connection.execute("DELETE FROM orders WHERE order_id = $1", gone.hex())
    [finding] = await bed.findings(tmp_path)
    assert (finding["kind"], finding["records"]) == ("missing-orders", 1)
    assert finding["order_ids"] == [format_id(gone)]
    assert finding["entries"] == [(await bed.entry_ids())[0]]


async def test_a_ledger_row_deleted_by_hand_is_named(bed: AuditBed, tmp_path: Path) -> None:
    made = await bed.append_entries([1, 4, 1])
    async with bed.worker(**CARE):
        await bed.wait_stored(flat(made))
    gone = await bed.connection.fetchval(
        "DELETE FROM stream_entries WHERE records = 4 RETURNING batch_id"
    )
    [finding] = await bed.findings(tmp_path)
    assert (finding["kind"], finding["records"]) == ("missing-ledger-row", 4)
    assert finding["batch_ids"] == [str(gone)]
    await bed.client.xdel(bed.log.keys.streams[0], (await bed.entry_ids())[1])
    [finding] = await bed.findings(tmp_path)
    assert (finding["kind"], finding["batch_ids"]) == ("missing-ledger-row", [str(gone)])


async def test_what_an_acknowledgement_by_hand_skipped_is_named_with_its_orders(
    bed: AuditBed, tmp_path: Path
) -> None:
    stream = bed.log.keys.streams[0]
    made = await bed.append_entries([1])
    async with bed.worker(**CARE):
        await bed.wait_stored(flat(made))
    skipped = await bed.append_entries([2])
    found = await bed.client.xreadgroup("workers", "thief", {stream: ">"})
    await bed.client.xack(stream, "workers", found[0][1][0][0])
    async with bed.worker(**CARE):
        await wait_gauge(2)
    [finding] = await bed.findings(tmp_path)
    assert finding["kind"] == "unstored-entry"
    assert finding["order_ids"] == [format_id(order.order_id) for order in flat(skipped)]


async def test_gaps_replays_and_strangers_are_no_imbalance(bed: AuditBed, tmp_path: Path) -> None:
    stream, counter = bed.log.keys.streams[0], bed.log.keys.counters[0]
    made = await bed.append_entries([2, 3])
    async with bed.worker(**CARE):
        await bed.wait_stored(flat(made))
        # A stranger's entry has no count; as the lowest unacknowledged one it must not be taken for 0.
        await bed.insert({b"hello": b"stranger", b"c": b"none"})
        # A failover took the second entry, and the producer knows better.
        await bed.client.set(counter, 2)
        more = await bed.append_entries([4])
        await bed.wait_stored(flat([*made, *more]))
    await bed.client.xgroup_setid(stream, "workers", "0")
    async with bed.worker(**CARE):
        last = await bed.append_entries([1])
        await bed.wait_stored(flat([*made, *more, *last]))
        await asyncio.sleep(2.5)  # Two looks at least.
        assert gauge() == 0
    assert await bed.findings(tmp_path) == []


async def false_alarm(bed: AuditBed, folder: Path) -> int:
    """What the sums alone say of shard 0, where the gauge and the audit say that nothing is wrong."""
    metrics.CONSERVATION.labels("0").set(-999)
    async with bed.worker(**CARE):
        await wait_gauge(0)
    assert await bed.findings(folder) == []
    pool, log = await create_pool(bed.database), bed.log.keeper()
    _, [settled, _] = await read_settled(log, "workers")
    sums = await PostgresKeeper(pool).ledger_sums(0, settled.below)
    await log.close()
    await pool.close()
    return weigh(settled, sums).imbalance


async def test_a_log_emptied_after_its_ledger_was_compacted_is_no_imbalance(
    bed: AuditBed, tmp_path: Path
) -> None:
    made = await bed.append_entries([2, 3])
    await asyncio.sleep(0.01)  # Rows are compacted by the millisecond.
    made += await bed.append_entries([1])
    async with bed.worker(**CARE):
        await bed.wait_stored(flat(made))
    await bed.client.xtrim(bed.log.keys.streams[0], maxlen=1, approximate=False)
    await compact(bed)
    assert await bed.connection.fetchval("SELECT count(*) FROM stream_entries") == 1
    # As FLUSHALL does; the server is shared.
    await bed.client.delete(*[key async for key in bed.client.scan_iter(f"{bed.namespace}*")])
    more = flat(await bed.append_entries([4, 2]))
    async with bed.worker(**CARE):
        await bed.wait_stored([*flat(made), *more])
    assert await false_alarm(bed, tmp_path) == 0
    assert await bed.connection.fetchval("SELECT sum(records_found)::int FROM gaps") == 5
    # And what is missing from then on is seen.
    lost = await bed.append_entries([7, 1])
    await bed.client.xdel(bed.log.keys.streams[0], (await bed.entry_ids())[-2])
    async with bed.worker(**CARE):
        await bed.wait_stored([*flat(made), *more, *lost[1]])
        await wait_gauge(7)


async def test_several_producers_that_tell_of_one_failover_are_no_imbalance(
    bed: AuditBed, tmp_path: Path
) -> None:
    other = AuditBed(bed.redis.url, bed.database.url, bed.namespace)
    await other.open()
    made = await bed.append_entries([3])
    made += await other.append_entries([2])
    made += await bed.append_entries([1, 1])
    async with bed.worker(**CARE):
        await bed.wait_stored(flat(made))
        # The new primary lacks the last three entries; each process knows another end of the count.
        await bed.client.set(bed.log.keys.counters[0], 3)
        made += await other.append_entries([1])
        made += await bed.append_entries([1])
        await bed.wait_stored(flat(made))
    await other.close()
    assert await bed.connection.fetchval("SELECT count(*) FROM gaps") == 2
    assert await false_alarm(bed, tmp_path) == -1
    await bed.client.xtrim(bed.log.keys.streams[0], maxlen=0, approximate=False)
    await compact(bed)
    assert await false_alarm(bed, tmp_path) == -1


async def test_a_strangers_entry_that_claims_a_record_is_no_imbalance(
    bed: AuditBed, tmp_path: Path
) -> None:
    made = await bed.append_entries([2])
    await bed.insert({b"v": b"1", b"b": bytes(16), b"c": b"2", b"n": b"1", b"d": b"nonsense"})
    made += await bed.append_entries([3])
    async with bed.worker(**CARE):
        await bed.wait_stored(flat(made))
    assert await false_alarm(bed, tmp_path) == -1


async def take_in(bed: AuditBed, orders: list[Order]) -> None:
    """Orders into the database's intake, as while the log is away."""
    pool = await create_pool(bed.database)
    batch_id = IdMinter().mint(time.time_ns() // 1_000_000)
    records = [encode_record(order) for order in orders]
    await PostgresIntake(pool).append(IntakeWrite(batch_id, WIRE_VERSION, records, []))
    await pool.close()


async def compact(bed: AuditBed) -> None:
    """The hourly chores of a worker that keeps no ledger row longer than it must."""
    pool, keeper = await create_pool(bed.database), bed.log.keeper()
    caretaker = Caretaker(
        log_keeper=keeper,
        store_keeper=PostgresKeeper(pool),
        log_breaker=CircuitBreaker("redis"),
        store_breaker=CircuitBreaker("postgresql"),
        clock=SystemClock(),
        log=get_log("test"),
        limits=CareLimits(compact_margin_seconds=0.0),
        intake=PostgresIntake(pool),
    )
    await caretaker.compact()
    await caretaker.forget_keys()
    await keeper.close()
    await pool.close()


async def test_orders_of_the_intake_are_in_balance_and_no_lost_entrys_name(
    bed: AuditBed, tmp_path: Path
) -> None:
    made = await bed.append_entries([2, 5, 3])
    await bed.client.xdel(bed.log.keys.streams[0], (await bed.entry_ids())[1])
    waited = [now_order() for _ in range(5)]
    await take_in(bed, waited)
    async with bed.worker(**CARE):
        await bed.wait_stored([*made[0], *made[2], *waited])
        await wait_gauge(5)
    await compact(bed)
    _, document = await bed.audit(tmp_path)
    assert [each["kind"] for each in document["findings"]] == ["missing-entry"]
    sums = {"accepted": 5, "accounted": 5, "waiting": 0, "imbalance": 0}
    assert document["intake"] == sums


async def test_a_worker_killed_while_it_drains_the_intake_stores_all_once(
    bed: AuditBed, tmp_path: Path
) -> None:
    waited = [[now_order() for _ in range(500)] for _ in range(24)]
    for orders in waited:
        await take_in(bed, orders)
    first = await bed.spawn("killed", batch_records_max=500)

    async def is_begun() -> bool:
        return bool(await bed.connection.fetchval("SELECT count(*) > 0 FROM orders"))

    await until(is_begun, 60)
    first.kill()
    await first.wait()
    async with bed.worker(**CARE):
        await bed.wait_stored(flat(waited))
    assert await bed.connection.fetchval("SELECT count(*) FROM orders") == 12_000
    assert await bed.findings(tmp_path) == []


async def test_the_doctor_sees_what_waits_in_the_intake(bed: AuditBed) -> None:
    assert (await inspect_database(bed.database.url)).intake == IntakeFacts()
    await take_in(bed, [now_order() for _ in range(3)])
    await take_in(bed, [now_order()])
    await bed.connection.execute("UPDATE intake SET version = 99 WHERE records = 1")
    waiting = (await inspect_database(bed.database.url)).intake
    assert waiting is not None
    assert (waiting.records, waiting.unreadable) == (4, 1)
    assert waiting.oldest_seconds > 0


async def test_an_order_deleted_from_the_intake_by_hand_is_seen(
    bed: AuditBed, tmp_path: Path
) -> None:
    await take_in(bed, [now_order() for _ in range(3)])
    await take_in(bed, [now_order()])
    await bed.connection.execute("DELETE FROM intake WHERE records = 3")
    [finding] = await bed.findings(tmp_path)
    assert (finding["kind"], finding["records"]) == ("intake-unaccounted", 3)


async def test_an_audit_that_can_not_look_says_so(
    database_url: str, redis_namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = RedisSettings(url="redis://127.0.0.1:1/0")
    database = DatabaseSettings(url=database_url)
    code = await run_audit(AuditRequest(), Installation(nowhere, database, redis_namespace, SHARDS))
    assert code == 2
    assert "could not look" in capsys.readouterr().out


async def test_a_database_that_is_not_migrated_is_no_difference(
    valkey_url: str,
    redis_namespace: str,
    empty_database_url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    redis, database = RedisSettings(url=valkey_url), DatabaseSettings(url=empty_database_url)
    code = await run_audit(AuditRequest(), Installation(redis, database, redis_namespace, SHARDS))
    assert code == 2
    assert "run coffee-rt migrate" in capsys.readouterr().out
