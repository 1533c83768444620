"""The whole fanout as clients meet it: sockets, streams and page, on a real Valkey and PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode

from coffee_rt.domain.keys import mint_key
from coffee_rt.fanout.page_files import PAGE_FOLDER
from coffee_rt.store.contract import ApiKey
from coffee_rt.store.keys import PostgresApiKeys
from tests.fanouts import WAIT_SECONDS, Platform, Talk, rows_of, served
from tests.live_client import LiveView

pytestmark = pytest.mark.integration


@pytest.fixture
async def platform(
    database_url: str, valkey_url: str, redis_namespace: str
) -> AsyncIterator[Platform]:
    async with served(database_url, valkey_url, redis_namespace) as running:
        yield running


async def follow(talk: Talk, view: LiveView, expected: dict[tuple[Any, ...], Any]) -> None:
    """Read until the view shows what is expected."""
    async with asyncio.timeout(WAIT_SECONDS):
        while view.values() != expected:
            view.apply(await talk.hear())
            assert not view.needs_resume


async def test_an_order_is_seen_in_the_snapshot_and_the_next_as_a_delta(
    platform: Platform,
) -> None:
    await platform.store(platform.order(store="uptown", price_minor=450, quantity=2))
    await platform.fold()
    async with platform.connected() as talk:
        welcome = await talk.hear()
        assert welcome["type"] == "welcome"
        await talk.say(type="subscribe", id=1, channel="view:hourly")
        snapshot = await talk.hear("snapshot")
        [row] = rows_of([snapshot], snapshot["columns"])
        assert (row["store"], row["orders"], row["revenue"]) == ("uptown", 1, 900)
        assert (snapshot["money"], snapshot["decimals"]) == (["revenue"], 2)
        await platform.store(platform.order(store="uptown", price_minor=100))
        await platform.fold()
        delta = await talk.hear("delta")
        [row] = rows_of([delta], snapshot["columns"])
        assert (row["orders"], row["quantity"], row["revenue"]) == (2, 3, 1000)
        assert delta["newest_at_ms"] == platform.now_us // 1000


async def test_a_lost_publication_is_made_up_for_after_a_beacon(platform: Platform) -> None:
    async with platform.connected() as talk:
        await talk.say(type="subscribe", id=1, channel="view:minutely")
        await talk.hear("snapshot")
        await platform.store(platform.order())
        await platform.fold(is_published=False)
        await platform.beacon()
        delta = await talk.hear("delta")
        assert len(delta["rows"]) == 1


async def test_resume_on_a_new_connection_brings_the_difference(platform: Platform) -> None:
    view = LiveView()
    bucket = platform.now_us // 3_600_000_000 * 3600
    await platform.store(platform.order(drink="latte"))
    await platform.fold()
    async with platform.connected() as talk:
        await talk.say(**view.subscribe("view:hourly"))
        await follow(talk, view, {("uptown", "latte", bucket): [1, 1, 450]})
    await platform.store(platform.order(drink="tea"))
    await platform.fold()
    async with platform.connected() as talk:
        await talk.say(**view.subscribe("view:hourly"))
        both = {(s, d, bucket): [1, 1, 450] for s, d in (("uptown", "latte"), ("uptown", "tea"))}
        await follow(talk, view, both)
        assert all(message["type"] != "snapshot" for message in talk.seen)


async def test_buckets_older_than_the_memory_are_read_from_the_database(
    platform: Platform,
) -> None:
    old = platform.now_us - 5 * 86_400_000_000
    await platform.store(platform.order(ordered_at_us=old), platform.order())
    await platform.fold()
    async with platform.connected() as talk:
        since = old // 1_000_000 - 3600
        await talk.say(type="subscribe", id=1, channel="view:hourly", since=since)
        assert len((await talk.hear("snapshot"))["rows"]) == 2
        await talk.say(type="subscribe", id=2, channel="view:hourly")
        assert len((await talk.hear("snapshot"))["rows"]) == 1
        await platform.store(platform.order(ordered_at_us=old))
        await platform.fold()
        delta = await talk.hear("delta")
        assert (delta["id"], len(delta["rows"])) == (1, 1)


async def test_the_ticker_begins_with_the_newest_orders(platform: Platform) -> None:
    await platform.store(*(platform.order(drink=f"drink{number}") for number in range(3)))
    async with platform.connected() as talk:
        await talk.say(type="subscribe", id=2, channel="orders")
        first = await talk.hear("orders")
        assert [order["drink"] for order in first["orders"]] == ["drink2", "drink1", "drink0"]
        await platform.store(platform.order(drink="tea"))
        [order] = (await talk.hear("orders"))["orders"]
        assert (order["drink"], order["price"]) == ("tea", "4.50")


async def test_a_cut_from_redis_is_repaired_from_the_database(
    platform: Platform, valkey_url: str
) -> None:
    from redis.asyncio import Redis

    async with platform.connected() as talk, Redis.from_url(valkey_url) as admin:
        await talk.say(type="subscribe", id=1, channel="view:hourly")
        await talk.hear("snapshot")
        await platform.store(platform.order())
        await platform.fold(is_published=False)
        await admin.client_kill_filter(_type="pubsub")
        assert len((await talk.hear("delta"))["rows"]) == 1


async def test_the_same_frames_as_an_event_stream(platform: Platform) -> None:
    await platform.store(platform.order(store="uptown"), platform.order(store="central"))
    await platform.fold()
    url = f"{platform.http}/api/v1/live?channel=view:hourly&store=uptown"
    async with platform.session.get(url) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert "event: welcome" in await next_event(response)
        snapshot = await next_event(response)
        assert "event: snapshot" in snapshot
        assert "central" not in snapshot
        [mark] = [line[4:] for line in snapshot.splitlines() if line.startswith("id: ")]
    await platform.store(platform.order(store="uptown"))
    await platform.fold()
    headers = {"Last-Event-ID": mark}
    async with platform.session.get(url, headers=headers) as response:
        await next_event(response)
        assert "event: delta" in await next_event(response)


async def next_event(response: Any) -> str:
    async with asyncio.timeout(WAIT_SECONDS):
        return str((await response.content.readuntil(b"\n\n")).decode())


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("channel=view:none", 404, "unknown-view"),
        ("", 404, "unknown-view"),
        ("channel=view:hourly&colour=red", 422, "bad-filter"),
        ("channel=view:hourly&since=soon", 422, "bad-since"),
    ],
)
async def test_a_bad_stream_is_a_problem_answer(
    platform: Platform, query: str, status: int, code: str
) -> None:
    async with platform.session.get(f"{platform.http}/api/v1/live?{query}") as response:
        assert response.status == status
        assert response.headers["Content-Type"] == "application/problem+json"
        assert (await response.json(content_type=None))["type"].endswith(code)


async def test_page_files_are_safe_and_fresh(platform: Platform) -> None:
    async with platform.session.get(f"{platform.http}/") as response:
        assert response.status == 200
        assert response.headers["Cache-Control"] == "no-cache"
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        tag = response.headers["ETag"]
    headers = {"If-None-Match": tag}
    async with platform.session.get(f"{platform.http}/", headers=headers) as response:
        assert response.status == 304
    for asset in PAGE_FOLDER.glob("assets/*"):
        async with platform.session.get(f"{platform.http}/assets/{asset.name}") as response:
            assert "immutable" in response.headers["Cache-Control"]
            assert await response.read() == asset.read_bytes()
    for path in ("/nothing", "/assets/../settings.py", "/assets/%2e%2e/settings.py"):
        async with platform.session.get(platform.http + path) as response:
            assert response.status == 404


async def refused_status(platform: Platform, path: str = "/ws", **options: Any) -> int:
    with pytest.raises(InvalidStatus) as refusal:
        async with connect(platform.socket + path, **options):
            pass
    return refusal.value.response.status_code


async def test_origins_are_matched_exactly(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    allowed = ("https://shop.example",)
    async with served(database_url, valkey_url, redis_namespace, origins=allowed) as platform:
        own = platform.socket.replace("ws://", "http://")
        for origin in (own, "https://shop.example", None):
            async with platform.connected(origin=origin) as talk:
                await talk.hear("welcome")
        for origin in ("https://shop.example.evil", "http://shop.example", "null", "https://x"):
            assert await refused_status(platform, origin=origin) == 403
        assert await refused_status(platform, "/other") == 404


async def test_sessions_are_counted_by_address_and_in_all(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    limits = {"sessions_max": 3, "sessions_per_address_max": 2}
    async with served(database_url, valkey_url, redis_namespace, **limits) as platform:
        async with platform.connected() as one, platform.connected() as two:
            await one.hear("welcome")
            await two.hear("welcome")
            async with platform.connected() as three:
                assert (await three.hear_close())[0] == 4429
            elsewhere = {"X-Forwarded-For": "192.0.2.7, 198.51.100.9"}
            async with platform.connected(additional_headers=elsewhere) as four:
                await four.hear("welcome")
                assert await refused_status(platform) == 503
        async with platform.connected() as again:
            await again.hear("welcome")


async def test_sessions_are_counted_by_key_whatever_carries_them(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    limits = {"auth": "required", "keys_refresh_seconds": 0.1, "sessions_per_key_max": 3}
    async with served(database_url, valkey_url, redis_namespace, **limits) as platform:
        shared, revoked = mint_key(), mint_key()
        for key in (shared, revoked):
            await PostgresApiKeys(platform.pool).add_api_key(
                ApiKey(key.key_id, 0, "page", key.secret_hash, frozenset({"read"}), None, False)
            )
        await until_known(platform, revoked.text)
        url = f"{platform.http}/api/v1/live?channel=orders"
        headers = {"Authorization": f"Bearer {shared.text}"}

        async def fill() -> None:
            """All the sessions of the key, one of each kind; then there is no place for another of any."""
            async with (
                platform.connected() as greeted,
                platform.connected("/ws/dashboard", additional_headers=headers) as dashboard,
                platform.session.get(url, headers=headers) as stream,
            ):
                await greeted.say(type="hello", token=shared.text)
                await greeted.hear("welcome")
                await dashboard.hear()
                await stream.content.readuntil(b"\n\n")
                for path in ("/ws", "/ws/dashboard"):
                    async with platform.connected(path, additional_headers=headers) as talk:
                        assert await talk.hear_close() == (4429, "too-many-sessions")
                async with platform.session.get(url, headers=headers) as refused:
                    assert (refused.status, refused.headers["Retry-After"]) == (429, "10")
                other = {"X-API-Key": revoked.text}
                async with platform.connected(additional_headers=other) as talk:
                    await talk.hear("welcome")

        await fill()
        await until_no_key_is_in_use(platform)
        await fill()
        await until_no_key_is_in_use(platform)
        other = {"X-API-Key": revoked.text}
        async with (
            platform.connected(additional_headers=other) as one,
            platform.connected("/ws/dashboard", additional_headers=other) as two,
        ):
            await one.hear("welcome")
            await two.hear()
            await PostgresApiKeys(platform.pool).revoke_api_key(revoked.key_id)
            assert [(await talk.hear_close())[0] for talk in (one, two)] == [1008, 1008]
        await until_no_key_is_in_use(platform)


async def test_connections_a_minute_are_bounded_however_short_they_are(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    async with served(
        database_url, valkey_url, redis_namespace, connects_per_minute=3, rate_settle_seconds=0.05
    ) as platform:
        if time.time() % 60 > 45:
            # A count that a minute's end would divide in two proves nothing.
            await asyncio.sleep(60 - time.time() % 60)
        for _ in range(3):
            async with platform.connected() as talk:
                await talk.hear("welcome")
        async with platform.connected() as talk:
            assert (await talk.hear_close())[0] == 4429
        stream = f"{platform.http}/api/v1/live?channel=view:hourly"
        async with platform.session.get(stream) as response:
            assert b"rate-limited" in await response.content.read()
        elsewhere = {"X-Forwarded-For": "192.0.2.7"}
        async with platform.connected(additional_headers=elsewhere) as talk:
            await talk.hear("welcome")


async def test_a_history_that_is_too_long_is_refused_where_it_is_read(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    async with served(database_url, valkey_url, redis_namespace, deep_rows_max=2) as platform:
        old = platform.now_us - 40 * 86_400_000_000
        await platform.store(
            *(platform.order(ordered_at_us=old, store=store) for store in ("a", "b", "c"))
        )
        await platform.fold()
        async with platform.connected() as talk:
            await talk.hear("welcome")
            since = old // 1_000_000 - 3600
            wish: dict[str, Any] = {"type": "subscribe", "channel": "view:hourly", "since": since}
            await talk.say(**wish, id=1)
            assert (await talk.hear("error"))["code"] == "too-many-rows"
            await talk.say(**wish, id=2, filter={"store": ["a", "c"]})
            assert len((await talk.hear("snapshot"))["rows"]) == 2


async def test_keys_open_sessions_three_ways(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    refresh = {"auth": "required", "keys_refresh_seconds": 0.1, "hello_seconds_max": 0.3}
    async with served(database_url, valkey_url, redis_namespace, **refresh) as platform:
        good, ingest = mint_key(), mint_key()
        for key, scope in ((good, "read"), (ingest, "ingest")):
            await PostgresApiKeys(platform.pool).add_api_key(
                ApiKey(key.key_id, 0, scope, key.secret_hash, frozenset({scope}), None, False)
            )
        await until_known(platform, good.text)
        subprotocols: Any = ["coffee-rt.v1", f"bearer.{good.text}"]
        async with platform.connected(subprotocols=subprotocols) as talk:
            assert talk.connection.subprotocol == "coffee-rt.v1"
            await talk.hear("welcome")
        async with platform.connected() as talk:
            await talk.say(type="hello", token=good.text)
            await talk.hear("welcome")
        for token in (ingest.text, "crt_nobody_nothing", "x"):
            async with platform.connected() as talk:
                await talk.say(type="hello", token=token)
                assert (await talk.hear_close())[0] == 1008
        async with platform.connected() as talk:
            assert (await talk.hear_close())[0] == 4401
        async with platform.session.get(
            f"{platform.http}/api/v1/live?channel=view:hourly"
        ) as response:
            assert response.status == 401
        async with platform.connected("/ws/dashboard") as talk:
            assert (await talk.hear_close())[0] == 1008


async def until_known(platform: Platform, token: str) -> None:
    """Until the process has loaded a key."""
    headers = {"Authorization": f"Bearer {token}"}
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            async with platform.connected(additional_headers=headers) as talk:
                if (await talk.hear())["type"] == "welcome":
                    return


async def until_no_key_is_in_use(platform: Platform) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while platform.fanout.hub.key_sessions._open:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_bad_frames_end_the_session_with_their_code(platform: Platform) -> None:
    async with platform.connected() as talk:
        await talk.connection.send("no json")
        assert (await talk.hear_close())[0] == 4400
    async with platform.connected() as talk:
        await talk.connection.send(b"\x00\x01")
        assert (await talk.hear_close())[0] == 1003
    async with platform.connected() as talk:
        await talk.connection.send("x" * 20_000)
        assert (await talk.hear_close())[0] == 1009
    async with platform.connected() as talk:
        await talk.connection.send(["x" * 1_000] * 40)
        assert (await talk.hear_close())[0] == 1009
    async with platform.connected() as talk:
        await talk.connection.send(["{", '"type":"ping",', '"at":1}'])
        assert (await talk.hear("pong"))["at"] == 1


async def test_a_ping_flood_ends_the_session(platform: Platform) -> None:
    async with platform.connected() as talk:
        for _ in range(300):
            talk.connection.protocol.send_frame(Frame(Opcode.PING, b"x"))
        talk.connection.send_data()
        assert (await talk.hear_close())[0] == 4429


async def test_a_silent_peer_is_cut(
    database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    changes = {"ping_seconds": 0.1}
    async with served(database_url, valkey_url, redis_namespace, **changes) as platform:
        async with platform.connected() as talk:
            await talk.hear("heartbeat")
        _, writer = await asyncio.open_connection("127.0.0.1", platform.fanout.server.port)
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        async with asyncio.timeout(WAIT_SECONDS):
            for count in (1, 0):
                while platform.fanout.hub.session_count != count:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        writer.close()


async def test_the_drain_reaches_sockets_streams_and_health(platform: Platform) -> None:
    url = f"{platform.http}/api/v1/live?channel=orders"
    async with platform.connected() as talk, platform.session.get(url) as stream:
        await talk.hear("welcome")
        await next_event(stream)
        draining = asyncio.create_task(platform.fanout.drain())
        assert (await talk.hear("drain"))["retry_after_ms"] >= 0
        assert await talk.hear_close() == (1012, "restart")
        async with asyncio.timeout(WAIT_SECONDS):
            assert b"event: drain" in await stream.content.read()
        await draining
        async with platform.session.get(f"{platform.http}/readyz") as response:
            assert response.status == 503
