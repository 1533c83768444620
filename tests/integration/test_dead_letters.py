"""Dead letters looked after over HTTP, on a real PostgreSQL: shown, amended, sent again, counted once."""

from __future__ import annotations

import asyncio
import json
import sys
from base64 import b64decode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from coffee_rt.domain.ids import format_id
from coffee_rt.domain.keys import MintedKey, mint_key
from coffee_rt.domain.orders import Order
from coffee_rt.domain.wire import encode_record
from coffee_rt.runtime.environment import environment
from coffee_rt.store.contract import ApiKey, DeadRecord
from coffee_rt.store.keeper import PostgresKeeper
from coffee_rt.store.keys import PostgresApiKeys
from tests.integration.test_query_api import Platform, served
from tests.view_writing import a_pool

pytestmark = pytest.mark.integration

LETTERS = "/api/v1/dead-letters"
GOOD = {"store": "uptown", "drink": "tea", "price": "2.50", "quantity": 2}


@pytest.fixture
async def platform(
    database_url: str, valkey_url: str, redis_namespace: str
) -> AsyncIterator[Platform]:
    async with served(database_url, valkey_url, redis_namespace) as running:
        yield running


def dead(order: Order, index: int = 0, code: str = "bad-price") -> DeadRecord:
    return DeadRecord(index, encode_record(order), code, "parked", order.tenant, order.order_id)


async def bury(platform: Platform, *records: DeadRecord) -> list[int]:
    """Letters of one entry; their ids, oldest first."""
    await platform.store([], records)
    rows = await platform.pool.fetch("SELECT id FROM dead_letters ORDER BY id")
    return [row["id"] for row in rows[-len(records) :]]


async def sums(platform: Platform) -> tuple[int, int, int, int]:
    found = await PostgresKeeper(platform.pool).ledger_sums(0, None)
    return found["records"], found["stored"], found["duplicates"], found["dead"]


async def rows_of_view(platform: Platform) -> list[dict[str, Any]]:
    body, _ = await platform.get("/api/v1/views/hourly?last=2h")
    rows: list[dict[str, Any]] = body["rows"]
    return rows


async def test_a_letter_is_shown_with_its_bytes_and_its_order(platform: Platform) -> None:
    order = platform.order(price_minor=0, note="no sugar")
    readable, unreadable = await bury(
        platform, dead(order), DeadRecord(1, b"\xc1\x00raw", "unreadable-record", "?")
    )
    shown, _ = await platform.get(f"{LETTERS}/{readable}")
    assert b64decode(shown["raw_base64"]) == encode_record(order)
    assert (shown["order"]["note"], shown["order"]["price"]) == ("no sugar", "0.00")
    assert (shown["code"], shown["index"], shown["amended"]) == ("bad-price", 0, None)
    shown, _ = await platform.get(f"{LETTERS}/{unreadable}")
    assert (b64decode(shown["raw_base64"]), shown["order"]) == (b"\xc1\x00raw", None)
    body, _ = await platform.get(f"{LETTERS}/999999", 404)
    assert body["type"] == "urn:coffee-rt:problem:no-such-letter"
    await platform.get(f"{LETTERS}/seven", 404)


async def test_letters_are_listed_by_reason_and_time(platform: Platform) -> None:
    now = platform.now_us // 1_000_000
    first, second = await bury(
        platform, dead(platform.order()), dead(platform.order(), 1, "unstorable-entry")
    )

    async def listed(query: str) -> list[int]:
        body, _ = await platform.get(f"{LETTERS}?{query}")
        return [letter["id"] for letter in body["dead_letters"]]

    assert await listed("code=unstorable-entry") == [second]
    assert await listed(f"since={now - 3600}&until={now + 3600}") == [second, first]
    assert await listed(f"until={now - 3600}") == []
    assert await listed(f"since={now + 3600}") == []
    assert await listed(f"before={second}") == [first]
    await platform.get(f"{LETTERS}?since=yesterday", 400)


async def test_an_amended_letter_is_stored_once_and_counted_once(platform: Platform) -> None:
    order = platform.order(price_minor=0, key_hash=b"k" * 16)
    [letter] = await bury(platform, dead(order))
    path = f"{LETTERS}/{letter}"
    assert (await platform.send("POST", f"{path}/redrive"))["outcome"] == "still-bad"
    amended = await platform.send("PUT", path, GOOD)
    assert amended["amended"]["order"]["price"] == "2.50"
    assert amended["amended"]["order"]["order_id"] == format_id(order.order_id)
    assert (amended["amended"]["by"], amended["redriven_at"]) == ("anyone", None)
    # What came is kept beside it.
    assert b64decode(amended["raw_base64"]) == encode_record(order)
    assert await sums(platform) == (1, 0, 0, 1)
    for _ in range(2):
        assert (await platform.send("POST", f"{path}/redrive"))["outcome"] == "stored"
    assert await sums(platform) == (1, 1, 0, 0)
    [row] = await rows_of_view(platform)
    assert (row["drink"], row["orders"], row["quantity"], row["revenue"]) == ("tea", 1, 2, "5.00")
    body, _ = await platform.get(f"/api/v1/orders/{format_id(order.order_id)}")
    assert (body["state"], body["drink"]) == ("stored", "tea")
    listed, _ = await platform.get(LETTERS)
    assert listed["dead_letters"] == []
    # It is an order now, and no letter that could be changed.
    refused = await platform.send("PUT", path, GOOD, 409)
    assert refused["type"] == "urn:coffee-rt:problem:letter-redriven"


async def test_bytes_nobody_can_read_become_the_order_somebody_says_they_were(
    platform: Platform,
) -> None:
    [letter] = await bury(platform, DeadRecord(0, b"\xc1", "unreadable-record", "?"))
    made = (await platform.send("PUT", f"{LETTERS}/{letter}", GOOD))["amended"]["order"]["order_id"]
    # The new id stays, however often it is amended: a repetition is the same order.
    again = await platform.send("PUT", f"{LETTERS}/{letter}", GOOD)
    assert again["amended"]["order"]["order_id"] == made
    await platform.send("POST", f"{LETTERS}/{letter}/redrive")
    body, _ = await platform.get(f"/api/v1/orders/{made}")
    assert body["state"] == "stored"


async def test_a_taken_id_is_given_up_by_the_amended_order(platform: Platform) -> None:
    first = platform.order()
    await platform.store([first])
    other = platform.order(order_id=first.order_id, drink="tea")
    [letter] = await bury(platform, dead(other, code="order-id-conflict"))
    amended = await platform.send("PUT", f"{LETTERS}/{letter}", GOOD)
    assert amended["amended"]["order"]["order_id"] != format_id(first.order_id)
    sent = await platform.send("POST", f"{LETTERS}/{letter}/redrive")
    assert sent["outcome"] == "stored"
    assert await sums(platform) == (2, 2, 0, 0)
    # The id is the first order's, and stays it.
    assert await platform.pool.fetchval("SELECT count(*) FROM order_aliases") == 0
    body, _ = await platform.get(f"/api/v1/orders/{format_id(first.order_id)}")
    assert body["drink"] == first.drink


async def test_an_id_that_was_answered_leads_to_the_amended_order_under_its_new_one(
    platform: Platform,
) -> None:
    answered, amended = platform.order(price_minor=0), platform.order()
    [letter] = await bury(platform, dead(answered))
    new_id = format_id(amended.order_id)
    await platform.send("PUT", f"{LETTERS}/{letter}", GOOD | {"order_id": new_id})
    old = f"/api/v1/orders/{format_id(answered.order_id)}"
    assert (await platform.get(old))[0]["state"] == "dead"
    await platform.send("POST", f"{LETTERS}/{letter}/redrive")
    body, _ = await platform.get(old)
    assert (body["state"], body["order_id"], body["drink"]) == ("stored", new_id, "tea")


async def test_amendments_obey_the_rules_of_orders(platform: Platform) -> None:
    [letter] = await bury(platform, dead(platform.order(price_minor=0)))
    path = f"{LETTERS}/{letter}"
    for body, place in (
        (GOOD | {"price": 0}, "/price"),
        (GOOD | {"price": "1.001"}, "/price"),
        (GOOD | {"quantity": 10_001}, "/quantity"),
        (GOOD | {"store": " "}, "/store"),
        (GOOD | {"drink": "x" * 129}, "/drink"),
        (GOOD | {"note": "a\x00b"}, "/note"),
        (GOOD | {"ordered_at": "2001-01-01T00:00:00Z"}, "/ordered_at"),
        (GOOD | {"order_id": "7"}, "/order_id"),
        (GOOD | {"order_id": "00000000-0000-7000-8000-000000000000"}, "/order_id"),
    ):
        refused = await platform.send("PUT", path, body, 422)
        assert refused["errors"][0]["place"] == place, body
    for unreadable in (b"", b"{", b"\xff", b'{"attributes":{"a":' + b"[" * 60_000):
        await platform.send("PUT", path, unreadable, 400)
    twice = b'{"store":"a","store":"b","drink":"tea","price":1}'
    for bad in (b"[", b"[]", b"{}", twice):
        await platform.send("PUT", path, bad, 422)
    await platform.send("PUT", path, GOOD | {"tenant": 7}, 422)
    await platform.send("PUT", path, b'{"note":"' + b"x" * 70_000 + b'"}', 413)
    await platform.send("PUT", path, GOOD, 415, Content_Type="text/plain")
    await platform.send("PUT", path, GOOD, 415, Content_Encoding="gzip")
    shown, _ = await platform.get(path)
    assert shown["amended"] is None


async def test_a_letter_whose_attributes_have_no_end_is_shown(platform: Platform) -> None:
    deep = b'{"a":' + b"[" * 60_000 + b"]" * 60_000 + b"}"
    [letter] = await bury(platform, dead(platform.order(attributes=deep)))
    shown, _ = await platform.get(f"{LETTERS}/{letter}")
    assert (shown["order"], len(shown["raw_base64"]) > 100_000) == (None, True)


async def test_two_redrives_at_once_and_an_amendment_between_count_a_letter_once(
    platform: Platform,
) -> None:
    ids = await bury(platform, *(dead(platform.order(), number) for number in range(20)))

    async def amend(letter: int) -> int:
        path = f"{platform.address}{LETTERS}/{letter}"
        async with platform.session.put(path, json=GOOD) as response:
            assert response.status in (200, 409)
            return response.status

    everything = {"all": True}
    editing = asyncio.gather(*(amend(letter) for letter in ids))
    sent = await asyncio.gather(
        platform.send("POST", f"{LETTERS}/redrive", everything),
        platform.send("POST", f"{LETTERS}/redrive", everything),
    )
    edits = await editing
    assert sum(each["outcomes"]["stored"] for each in sent) == 20
    assert await sums(platform) == (20, 20, 0, 0)
    rows = await rows_of_view(platform)
    # Whoever was told 200 sees it in the order that was stored.
    assert sum(row["orders"] for row in rows) == 20
    assert sum(row["orders"] for row in rows if row["drink"] == "tea") == edits.count(200)


async def test_an_amendment_waits_for_the_redrive_that_holds_the_letter(
    platform: Platform,
) -> None:
    [letter] = await bury(platform, dead(platform.order()))
    async with platform.pool.transaction() as holder:
        # Where the redrive's INSERT waits, with the letter's row in its hands.
        await holder.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        sending = asyncio.create_task(platform.send("POST", f"{LETTERS}/{letter}/redrive"))
        await _until_waiting(platform, 1)
        amending = asyncio.create_task(platform.send("PUT", f"{LETTERS}/{letter}", GOOD, 409))
        await _until_waiting(platform, 2)
    assert (await sending)["outcome"] == "stored"
    await amending
    shown, _ = await platform.get(f"{LETTERS}/{letter}")
    assert shown["amended"] is None
    assert [row["drink"] for row in await rows_of_view(platform)] == ["latte"]


async def _until_waiting(platform: Platform, number: int) -> None:
    async with asyncio.timeout(20):
        while True:
            waiting = await platform.pool.fetchval(
                """SELECT count(*) FROM pg_stat_activity
                WHERE wait_event_type = 'Lock' AND datname = current_database()"""
            )
            if waiting >= number:
                return
            await asyncio.sleep(0.02)


async def test_a_choice_is_sent_in_bounded_steps(platform: Platform) -> None:
    bad, *good = await bury(
        platform,
        dead(platform.order(price_minor=0)),
        *(dead(platform.order(), number, "unstorable-entry") for number in (1, 2, 3)),
    )
    tried = await platform.send("POST", f"{LETTERS}/redrive", {"all": True, "dry_run": True})
    assert (tried["outcomes"]["stored"], tried["outcomes"]["still-bad"]) == (3, 1)
    assert await sums(platform) == (4, 0, 0, 4)
    found, after = [], 0
    while after is not None:
        wish = {"all": True, "limit": 2, "after": after}
        sent = await platform.send("POST", f"{LETTERS}/redrive", wish)
        found += [(each["id"], each["outcome"]) for each in sent["letters"]]
        after = sent["next"]
    assert found == [(bad, "still-bad"), *((each, "stored") for each in good)]
    assert await sums(platform) == (4, 3, 0, 1)
    for refused in ({}, {"ids": []}, {"all": True, "limit": 501}, {"ids": [0]}, {"id": 1}, []):
        await platform.send("POST", f"{LETTERS}/redrive", refused, 422)
    for text, code, place in (
        (b'{"code":"a\\u0000"}', "bad-text", "/code"),
        (b'{"since":"0001-01-01T00:00:00+14:00"}', "bad-time", "/since"),
        (b'{"until":"2026-01-01T00:00:00"}', "bad-time", "/until"),
        (b'{"ids":[%d]}' % 2**63, "wrong-type", "/ids/0"),
        (b'{"all":true,"dry_run":true,"dry_run":false}', "duplicate-key", "/dry_run"),
    ):
        problem = await platform.send("POST", f"{LETTERS}/redrive", text, 422)
        assert problem["type"].endswith(code), problem
        assert problem["errors"][0]["place"] == place
    bom = await platform.send("POST", f"{LETTERS}/redrive", b'\xef\xbb\xbf{"all":true}', 400)
    assert bom["type"].endswith("bad-encoding")
    sent = await platform.send("POST", f"{LETTERS}/redrive", {"code": "unstorable-entry"})
    assert (sent["tried"], sent["next"]) == (0, None)


async def test_another_tenants_letters_are_neither_seen_nor_touched(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    keys = {tenant: await _admin(database_url, tenant) for tenant in (7, 8)}
    async with served(database_url, valkey_url, redis_namespace, auth="required") as platform:
        [letter] = await bury(platform, dead(platform.order(tenant=7)))
        path = f"{LETTERS}/{letter}"
        stranger = {"Authorization": f"Bearer {keys[8].text}"}
        await platform.get(path, 404, **stranger)
        await platform.send("PUT", path, GOOD, 404, **stranger)
        await platform.send("POST", f"{path}/redrive", None, 404, **stranger)
        for wish in ({"ids": [letter]}, {"all": True}):
            sent = await platform.send("POST", f"{LETTERS}/redrive", wish, 200, **stranger)
            assert sent["tried"] == 0
        assert await sums(platform) == (1, 0, 0, 1)
        mine = {"Authorization": f"Bearer {keys[7].text}"}
        amended = await platform.send("PUT", path, GOOD, 200, **mine)
        assert amended["amended"]["by"] == keys[7].key_id
        sent = await platform.send("POST", f"{path}/redrive", None, 200, **mine)
        assert sent["outcome"] == "stored"
        assert sent["redrive"].startswith(f"api:{keys[7].key_id}:")
        assert await platform.pool.fetchval("SELECT tenant FROM orders") == 7


async def _admin(database_url: str, tenant: int) -> MintedKey:
    key = mint_key()
    async with a_pool(database_url) as pool:
        await PostgresApiKeys(pool).add_api_key(
            ApiKey(key.key_id, tenant, "admin", key.secret_hash, frozenset({"admin"}), None, False)
        )
    return key


async def command(database_url: str, *words: str, text: str = "") -> tuple[int, str]:
    """`coffee-rt dead-letters` on a database: its exit code and all it said."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "coffee_rt", "dead-letters", *words),
        env={**environment(), "COFFEE_RT_DATABASE_URL": database_url},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await running.communicate(text.encode())
    return running.returncode or 0, said.decode()


async def test_letters_are_looked_after_from_a_shell(
    platform: Platform, database_url: str, tmp_path: Path
) -> None:
    first, second = await bury(
        platform,
        dead(platform.order(price_minor=0)),
        DeadRecord(1, b"\xc1", "unreadable-record", "\x1b[31mred"),
    )
    code, said = await command(database_url, "list", "--json", "--code", "bad-price")
    assert (code, [letter["id"] for letter in json.loads(said)]) == (0, [first])
    code, said = await command(database_url, "list")
    assert code == 0
    assert "\x1b" not in said
    code, said = await command(database_url, "show", str(second), "--json")
    assert b64decode(json.loads(said)["raw_base64"]) == b"\xc1"
    code, said = await command(database_url, "show", "999")
    assert (code, "no dead letter has this id" in said) == (1, True)
    file = tmp_path / "order.json"
    file.write_text(json.dumps(GOOD | {"price": 0}))
    code, said = await command(database_url, "edit", str(first), str(file))
    assert (code, "/price" in said) == (1, True)
    file.write_text(json.dumps(GOOD))
    code, said = await command(database_url, "edit", str(first), str(file))
    assert (code, f"redrive --id {first}" in said) == (0, True)
    code, said = await command(database_url, "edit", str(second), "-", text=json.dumps(GOOD))
    assert code == 0
    code, said = await command(database_url, "redrive", "--all")
    assert (code, said.strip()) == (0, "2 stored, 0 still bad.")
    assert await sums(platform) == (2, 2, 0, 0)
    code, said = await command(database_url, "list")
    assert said.strip() == "No dead letter matches."
