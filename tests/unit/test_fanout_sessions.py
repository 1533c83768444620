"""Sessions: what a client may say, what it is sent, and what a slow or bad one costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from coffee_rt.errors import Overload, Rejected
from coffee_rt.fanout.authority import KeySessions
from coffee_rt.fanout.frames import Frame, encode
from coffee_rt.fanout.hub import HubLimits
from coffee_rt.fanout.session import Session, SessionLimits
from coffee_rt.fanout.snapshot_memory import Snapshot, SnapshotMemory
from coffee_rt.fanout.view_channel import ViewLimits
from tests.builders import a_view, an_order
from tests.fanout_world import HOUR, FakeSocket, Pod, TruthStore, VirtualClock, running_pod, settle

LATTE = (0, HOUR, "uptown", "latte")
TEA = (0, HOUR, "central", "tea")


@pytest.fixture
def store() -> TruthStore:
    return TruthStore()


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def pod(store: TruthStore, clock: VirtualClock) -> AsyncIterator[Pod]:
    async with running_pod(store, clock) as pod:
        yield pod


async def test_a_change_reaches_every_browser_as_the_same_bytes(
    pod: Pod, clock: VirtualClock, store: TruthStore
) -> None:
    browsers = [pod.browser() for _ in range(3)]
    await pod.hear(store.fold(LATTE))
    await clock.advance(0.1)
    [view] = pod.hub.views.channels.values()
    assert len(view._audiences) == 1
    for browser in browsers:
        assert browser.read().values() == {("uptown", "latte", HOUR): [1, 2, 450]}


async def test_publications_of_one_commit_travel_in_one_frame(
    pod: Pod, clock: VirtualClock, store: TruthStore
) -> None:
    browser = pod.browser()
    browser.read()
    changes = store.fold(LATTE, TEA, (0, HOUR, "uptown", "tea"), (0, HOUR, "central", "latte"))
    assert len(changes) == 2
    await pod.hear(changes)
    await clock.advance(0.1)
    [delta] = browser.socket.take("delta")
    assert sorted(delta["lanes"]) == [[0, 1, 0], [1, 1, 0]]
    assert len(delta["rows"]) == 4


async def test_a_slow_browser_gets_fewer_frames_and_the_newest_values(
    pod: Pod, clock: VirtualClock, store: TruthStore
) -> None:
    slow, quick = pod.browser(), pod.browser()
    slow.read()
    slow.congest()
    for _ in range(20):
        await pod.hear(store.fold(LATTE))
        await clock.advance(0.1)
    assert slow.socket.take() == []
    assert len(quick.socket.received) > 20
    slow.drain()
    frames = slow.socket.take("delta")
    assert [frame["rows"][0][3] for frame in frames] == [20]
    await pod.hear(store.fold(LATTE))
    await clock.advance(0.1)
    assert [frame["rows"][0][3] for frame in slow.socket.take("delta")] == [21]


async def test_a_browser_too_far_behind_starts_again_from_a_snapshot(
    store: TruthStore, clock: VirtualClock
) -> None:
    limits = HubLimits(view=ViewLimits(delta_rows_max=2))
    async with running_pod(store, clock, limits) as pod:
        browser = pod.browser()
        browser.read()
        browser.congest()
        await pod.hear(store.fold(*((0, HOUR, "uptown", f"drink{n}") for n in range(5))))
        await clock.advance(0.1)
        browser.drain()
        kinds = [message["type"] for message in browser.socket.received]
        assert kinds == ["reset", "snapshot"]
        assert browser.socket.received[0]["reason"] == "lagging"
        assert len(browser.read().rows) == 5


async def test_a_large_snapshot_comes_in_parts_and_waits_for_the_socket(
    store: TruthStore, clock: VirtualClock
) -> None:
    store.fold(*((0, HOUR, "uptown", f"drink{n}") for n in range(30)))
    limits = HubLimits(view=ViewLimits(part_bytes_max=200))
    async with running_pod(store, clock, limits) as pod:
        browser = pod.browser()
        parts = browser.socket.take("snapshot")
        assert [part["part"] for part in parts] == list(range(1, parts[0]["parts"] + 1))
        assert sum(len(part["rows"]) for part in parts) == 30
        for part in parts:
            browser.view.apply(part)
        assert len(browser.view.rows) == 30


async def test_snapshots_are_kept_for_others_but_not_for_long(
    pod: Pod, clock: VirtualClock, store: TruthStore
) -> None:
    await pod.hear(store.fold(LATTE))
    await settle()
    [view] = pod.hub.views.channels.values()
    browser = pod.browser()
    for number in range(2, 12):
        browser.say({"type": "subscribe", "id": number, "channel": "view:sales"})
    assert len(view._snapshots) == 11
    await clock.advance(0.3)
    browser.say({"type": "subscribe", "id": 12, "channel": "view:sales"})
    assert len(view._snapshots) == 1


def test_snapshots_for_others_are_bounded_in_bytes() -> None:
    memory, frame = SnapshotMemory(), Frame("snapshot", b"")
    for number in range(10):
        memory.keep((0, (), 0, number), Snapshot(1.0, 0, (), [frame], 20 << 20))
        assert len(memory) <= 3


async def test_versions_advance_when_nothing_matches_the_filter(
    pod: Pod, clock: VirtualClock, store: TruthStore
) -> None:
    browser = pod.browser(filter={"store": ["nowhere"]})
    await pod.hear(store.fold(LATTE, TEA))
    await clock.advance(2.5)
    assert browser.socket.take("delta") == []
    browser.connect(pod)
    await clock.advance(0.1)
    assert browser.read().versions == store.versions["sales"]


async def test_resume_brings_only_what_changed(
    pod: Pod, clock: VirtualClock, store: TruthStore
) -> None:
    await pod.hear(store.fold(LATTE, TEA))
    await clock.advance(0.1)
    browser = pod.browser()
    browser.read()
    browser.disconnect()
    await pod.hear(store.fold(TEA))
    await clock.advance(0.1)
    browser.connect(pod)
    [delta] = browser.socket.take("delta", "snapshot", "reset")
    assert delta["type"] == "delta"
    assert [row[2] for row in delta["rows"]] == ["tea"]


async def test_resume_above_the_pods_own_versions_reloads_first(
    store: TruthStore, clock: VirtualClock
) -> None:
    async with running_pod(store, clock) as ahead, running_pod(store, clock) as behind:
        browser = ahead.browser()
        await ahead.hear(store.fold(LATTE))
        await clock.advance(0.1)
        known = list(browser.read().versions)
        assert known == store.versions["sales"]
        browser.disconnect()
        browser.connect(behind)
        assert browser.socket.take("snapshot", "reset", "delta") == []
        await clock.advance(1.0)
        assert browser.read().versions == known
        assert browser.view.values() == store.expected()


async def test_resume_above_the_versions_of_a_pod_that_has_rows_waits_for_the_load(
    store: TruthStore, clock: VirtualClock
) -> None:
    async with running_pod(store, clock) as ahead, running_pod(store, clock) as behind:
        browser = ahead.browser()
        first = store.fold(LATTE)
        await ahead.hear(first)
        await behind.hear(first)
        await ahead.hear(store.fold(LATTE))
        await clock.advance(0.1)
        known = list(browser.read().versions)
        browser.disconnect()
        browser.connect(behind)
        assert browser.socket.take("snapshot", "reset", "delta", "versions") == []
        await clock.advance(1.0)
        assert browser.read().versions == known
        assert browser.view.values() == store.expected()


async def test_a_lost_publication_is_noticed_by_the_beacon_and_loaded_once(
    pod: Pod, clock: VirtualClock, store: TruthStore
) -> None:
    browser = pod.browser()
    store.fold(LATTE)
    await pod.hear_beacon()
    await pod.hear_beacon()
    before = store.reads
    await clock.advance(0.6)
    assert browser.read().values() == store.expected()
    assert store.reads == before + 1


async def test_silence_of_the_beacon_makes_the_fanout_ask_itself(
    pod: Pod, clock: VirtualClock, store: TruthStore
) -> None:
    browser = pod.browser()
    store.fold(LATTE)
    await clock.advance(4.5)
    assert browser.read().values() == store.expected()


async def test_publications_out_of_order_need_no_load(
    pod: Pod, clock: VirtualClock, store: TruthStore
) -> None:
    browser = pod.browser()
    first, second = store.fold(LATTE), store.fold(LATTE)
    before = store.reads
    await pod.hear(second)
    await clock.advance(0.05)
    await pod.hear(first)
    await clock.advance(0.3)
    assert browser.read().values() == {("uptown", "latte", HOUR): [2, 4, 900]}
    assert store.reads == before


async def test_a_fold_too_large_to_publish_is_loaded(
    pod: Pod, clock: VirtualClock, store: TruthStore
) -> None:
    browser = pod.browser()
    [change] = store.fold(LATTE)
    change.rows, change.reload = [], True
    await pod.hear([change])
    await clock.advance(0.3)
    assert browser.read().values() == store.expected()


async def test_tenants_see_only_their_own_rows(store: TruthStore, clock: VirtualClock) -> None:
    def authorize(token: str | None) -> int:
        return int(token or 0)

    async with running_pod(store, clock, authorize=authorize) as pod:
        await pod.hear(store.fold(LATTE, (7, HOUR, "secret", "mocha")))
        await clock.advance(0.1)
        socket = FakeSocket()
        session = pod.hub.open(socket, "test", "7")
        session.on_message(b'{"type":"subscribe","id":1,"channel":"view:sales"}')
        [snapshot] = socket.take("snapshot")
        assert [row[1] for row in snapshot["rows"]] == ["secret"]
        browser = pod.browser()
        assert browser.read().values() == store.expected(tenant=0)
        await pod.hear(store.fold((7, HOUR, "secret", "tea")))
        await clock.advance(0.1)
        assert browser.socket.take("delta") == []


async def test_a_view_defined_anew_resets_its_sessions(
    pod: Pod, clock: VirtualClock, store: TruthStore
) -> None:
    browser = pod.browser()
    browser.read()
    store.definitions["sales"] = a_view("sales", measures={"orders": "count"}, lanes=2)
    store.epoch = "2.7.1"
    store.reset_rows()
    await pod.bus.publish("catalogue", b"{}")
    await clock.advance(1.0)
    messages = browser.socket.take("reset", "snapshot")
    assert [message["type"] for message in messages] == ["reset", "snapshot"]
    assert messages[0]["reason"] == "view-changed"
    assert "revenue" not in messages[1]["columns"]


@pytest.mark.parametrize("changed", [{"lanes": 5}, {"dimensions": ["store"]}])
async def test_a_view_defined_anew_is_followed_when_its_new_rows_are_met_first(
    pod: Pod, clock: VirtualClock, store: TruthStore, changed: dict[str, Any]
) -> None:
    """The message of the changed catalogue is late or lost: the beacon tells of another epoch first."""
    browser = pod.browser()
    await pod.hear(store.fold(LATTE))
    await clock.advance(0.1)
    browser.read()
    store.definitions["sales"] = a_view("sales", **changed)
    store.epoch = "2.7.1"
    store.reset_rows()
    group = LATTE if "lanes" in changed else LATTE[:3]
    store.fold(group)
    await pod.hear_beacon()
    await clock.advance(3.0)
    assert browser.read().values() == store.expected()
    assert browser.view.versions == store.versions["sales"]


async def test_browsers_that_shared_an_epoch_are_told_the_next_ones_versions(
    pod: Pod, clock: VirtualClock, store: TruthStore
) -> None:
    browsers = [pod.browser() for _ in range(2)]
    for _ in range(3):
        await pod.hear(store.fold(LATTE))
    await clock.advance(0.1)
    store.epoch = "1.7.2"
    store.reset_rows()
    store.fold(LATTE)
    await pod.hear_beacon()
    await clock.advance(1.0)
    # The version that the old epoch had, once more.
    await pod.hear([*store.fold(LATTE), *store.fold(LATTE)])
    await clock.advance(0.1)
    for browser in browsers:
        assert browser.read().versions == store.versions["sales"]
        assert browser.view.values() == store.expected()


async def test_a_dropped_view_is_said_to_be_unknown(
    pod: Pod, clock: VirtualClock, store: TruthStore
) -> None:
    browser = pod.browser()
    store.definitions.clear()
    await pod.bus.publish("catalogue", b"{}")
    await clock.advance(1.0)
    [error] = browser.socket.take("error")
    assert (error["id"], error["code"]) == (1, "unknown-view")


async def test_orders_come_newest_first_and_only_once(
    pod: Pod, clock: VirtualClock, store: TruthStore
) -> None:
    from coffee_rt.channels.messages import recent_order

    store.orders = [an_order(drink=f"drink{number}") for number in range(60)]
    browser = pod.browser(channel="orders")
    await clock.advance(0.2)
    [first] = browser.socket.take("orders")
    assert [order["drink"] for order in first["orders"]] == [f"drink{n}" for n in range(59, 9, -1)]
    fresh, foreign = an_order(store="central"), an_order(tenant=9)
    await pod.hear_orders(recent_order(fresh, 2), recent_order(foreign, 2))
    await pod.hear_orders(recent_order(fresh, 2))
    await clock.advance(0.2)
    [frame] = browser.socket.take("orders")
    assert [order["store"] for order in frame["orders"]] == ["central"]
    assert frame["orders"][0]["price"] == "4.50"


async def test_orders_of_one_store_when_asked(
    pod: Pod, clock: VirtualClock, store: TruthStore
) -> None:
    store.orders = [an_order(store=name) for name in ("uptown", "central", "uptown")]
    browser = pod.browser(channel="orders", filter={"store": ["central"]})
    await clock.advance(0.2)
    [frame] = browser.socket.take("orders")
    assert [order["store"] for order in frame["orders"]] == ["central"]


async def test_heartbeats_never_pause(pod: Pod, clock: VirtualClock) -> None:
    browser = pod.browser()
    await clock.advance(10.0)
    assert len(browser.socket.take("heartbeat")) >= 4


async def test_heartbeats_tell_how_old_the_news_of_the_database_are(
    pod: Pod, clock: VirtualClock, store: TruthStore
) -> None:
    browser = pod.browser()
    await clock.advance(10.0)
    assert browser.socket.take("heartbeat")[-1]["news_ms"] < 10_000
    store.is_away = True
    await clock.advance(30.0)
    assert browser.socket.take("heartbeat")[-1]["news_ms"] > 20_000
    store.is_away = False
    await clock.advance(10.0)
    assert browser.socket.take("heartbeat")[-1]["news_ms"] < 10_000


async def test_a_ping_is_answered_with_its_own_text(pod: Pod) -> None:
    browser = pod.browser()
    browser.say({"type": "ping", "at": 123})
    assert browser.socket.take("pong") == [{"type": "pong", "at": 123}]


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ({"channel": "view:nothing"}, "unknown-view"),
        ({"channel": "view:sales", "filter": {"colour": ["red"]}}, "bad-filter"),
        ({"channel": "view:sales", "filter": {"store": []}}, "bad-filter"),
        ({"channel": "view:sales", "filter": {"store": ["x" * 200]}}, "bad-filter"),
        ({"channel": "view:sales", "since": 0}, "bad-since"),
        ({"channel": "view:sales", "since": 2**53}, "bad-since"),
        ({"channel": "view:sales", "since": -(2**53)}, "bad-since"),
        ({"channel": "view:sales", "filter": {"store": ["a\x00"]}}, "bad-filter"),
    ],
)
async def test_a_wish_that_cannot_be_met_is_an_error_and_no_goodbye(
    pod: Pod, wish: dict[str, Any], code: str
) -> None:
    browser = pod.browser()
    browser.socket.take()
    browser.say({"type": "subscribe", "id": 5, **wish})
    [error] = browser.socket.take()
    assert (error["type"], error["id"], error["code"]) == ("error", 5, code)
    assert browser.socket.closed is None


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b"\xff\xfe", b'{"type":"sing"}', b"[" * 100_000, b'{"type":"subscribe"}'],
)
async def test_a_message_that_is_none_ends_the_session(pod: Pod, text: bytes) -> None:
    browser = pod.browser()
    browser.session.on_message(text)
    assert browser.socket.closed is not None
    assert browser.socket.closed[0] == 4400
    assert pod.hub.session_count == 0


async def test_more_subscriptions_than_allowed_are_refused(
    store: TruthStore, clock: VirtualClock
) -> None:
    limits = HubLimits(session=SessionLimits(subscriptions_max=2))
    async with running_pod(store, clock, limits) as pod:
        browser = pod.browser()
        for id_ in (2, 3):
            browser.say({"type": "subscribe", "id": id_, "channel": "view:sales"})
        [error] = browser.socket.take("error")
        assert (error["id"], error["code"]) == (3, "too-many-subscriptions")
        browser.say({"type": "unsubscribe", "id": 2})
        browser.say({"type": "subscribe", "id": 3, "channel": "view:sales"})
        assert browser.socket.take("error") == []


async def test_a_flood_of_messages_ends_the_session(pod: Pod) -> None:
    browser = pod.browser()
    for _ in range(200):
        if browser.socket.closed is None:
            browser.say({"type": "ping"})
    assert browser.socket.closed == (4429, "too many messages")


async def test_control_messages_to_a_deaf_socket_are_bounded(
    store: TruthStore, clock: VirtualClock
) -> None:
    limits = HubLimits(session=SessionLimits(outbox_frames_max=10, messages_burst=1000))
    async with running_pod(store, clock, limits) as pod:
        browser = pod.browser()
        browser.congest()
        for _ in range(20):
            if browser.socket.closed is None:
                browser.say({"type": "ping"})
        assert browser.socket.closed == (4429, "too slow")


def only_seven(token: str | None) -> int:
    if token == "busy":
        raise Overload("keys-unavailable", "later", 5.0)
    if token != "crt_seven":
        raise Rejected("bad-api-key", "The API key is not valid.", status=401)
    return 7


async def test_hello_with_a_good_token_opens_the_session(
    store: TruthStore, clock: VirtualClock
) -> None:
    async with running_pod(store, clock, authorize=only_seven, needs_token=True) as pod:
        socket = FakeSocket()
        session = pod.hub.open(socket, "test")
        assert socket.take() == []
        session.on_message(b'{"type":"hello","token":"crt_seven"}')
        [welcome] = socket.take()
        assert welcome["type"] == "welcome"
        assert session.tenant == 7
        await clock.advance(60)
        assert socket.closed is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b'{"type":"hello","token":"crt_eight"}', 1008),
        (b'{"type":"hello","token":"busy"}', 1013),
        (b'{"type":"subscribe","id":1,"channel":"view:sales"}', 4401),
        (None, 4401),
    ],
)
async def test_without_a_good_token_nothing_is_told(
    store: TruthStore, clock: VirtualClock, text: bytes | None, code: int
) -> None:
    async with running_pod(store, clock, authorize=only_seven, needs_token=True) as pod:
        socket = FakeSocket()
        session = pod.hub.open(socket, "test")
        if text is None:
            await clock.advance(6)
        else:
            session.on_message(text)
        assert socket.closed is not None
        assert socket.closed[0] == code
        assert socket.take("welcome", "snapshot") == []


async def test_sessions_of_a_key_are_bounded_however_they_show_it_and_end(
    store: TruthStore, clock: VirtualClock
) -> None:
    limits: dict[str, Any] = {"needs_token": True, "key_sessions": KeySessions(2)}
    valid = {"crt_seven", "crt_eight"}

    def authorize(token: str | None) -> int:
        if token not in valid:
            raise Rejected("bad-api-key", "The API key is not valid.", status=401)
        return 7

    async with running_pod(store, clock, authorize=authorize, **limits) as pod:

        def shown_at_once() -> tuple[Session, FakeSocket]:
            socket = FakeSocket()
            return pod.hub.open(socket, "test", "crt_seven"), socket

        def greeted(token: str = "crt_seven") -> tuple[Session, FakeSocket]:
            socket = FakeSocket()
            session = pod.hub.open(socket, "test")
            session.on_message(encode({"type": "hello", "token": token}))
            return session, socket

        first, second = shown_at_once()[0], greeted()[0]
        for session, socket in (shown_at_once(), greeted()):
            assert socket.closed == (4429, "too-many-sessions")
            [error] = socket.take("error")
            assert "(retry after 10 s)" in error["detail"]
            session.on_closed()
        assert greeted("crt_eight")[1].closed is None

        first.on_closed()  # The client is gone.
        first.on_closed()
        third = greeted()[0]
        assert greeted()[1].closed == (4429, "too-many-sessions")
        second.on_message(b"no message")  # Closed by us.
        fourth, socket = shown_at_once()
        assert socket.closed is None

        valid.remove("crt_seven")
        pod.hub.recheck_keys()
        assert (third.is_closed, fourth.is_closed) == (True, True)
        valid.add("crt_seven")
        for _ in range(2):
            assert shown_at_once()[1].closed is None
        assert greeted()[1].closed == (4429, "too-many-sessions")


async def test_the_drain_tells_everybody_and_closes_bit_by_bit(
    pod: Pod, clock: VirtualClock
) -> None:
    browsers = [pod.browser() for _ in range(40)]
    drained = asyncio.create_task(pod.hub.drain())
    await settle()
    for browser in browsers:
        [drain] = browser.socket.take("drain")
        assert 0 <= drain["retry_after_ms"] <= 5000
    await clock.advance(2.5)
    closed = [browser for browser in browsers if browser.socket.closed]
    assert 0 < len(closed) < 40
    await clock.advance(3)
    await drained
    assert {browser.socket.closed for browser in browsers} == {(1012, "restart")}
    assert pod.hub.session_count == 0


async def test_not_ready_before_the_views_are_loaded(
    store: TruthStore, clock: VirtualClock
) -> None:
    told: list[tuple[bool, str]] = []
    store.is_away = True
    async with running_pod(
        store, clock, on_health=lambda is_ready, detail: told.append((is_ready, detail))
    ) as pod:
        browser = pod.browser()
        assert browser.socket.take("error")[0]["code"] == "loading"
        assert (True, "") not in told
        store.is_away = False
        await clock.advance(3)
        assert told[-1] == (True, "")


async def test_old_rows_leave_memory(pod: Pod, clock: VirtualClock, store: TruthStore) -> None:
    await pod.hear(store.fold((0, HOUR - 60 * 3600, "uptown", "latte"), LATTE))
    await settle()
    [view] = pod.hub.views.channels.values()
    assert len(view.rows) == 2
    await clock.advance(200)
    assert len(view.rows) == 1


async def test_publications_of_endless_depth_or_numbers_end_nothing(
    pod: Pod, clock: VirtualClock, store: TruthStore
) -> None:
    [change] = store.fold(LATTE)
    number = encode(change).replace(b'"newest_at_ms":', b'"newest_at_ms":' + b"9" * 400)
    for topic in ("view:sales", "beacon", "orders"):
        for body in (number, b'{"x":' + b"[" * 100_000):
            await pod.bus.publish(topic, body)
    await settle()
    await pod.hear([change])
    await clock.advance(0.1)
    assert pod.browser().read().values() == {("uptown", "latte", HOUR): [1, 2, 450]}


async def test_bad_publications_change_nothing(pod: Pod, store: TruthStore) -> None:
    for body in (b"", b"{}", b'{"view":"sales"}', b"\xff", b"[]"):
        for topic in ("view:sales", "beacon", "orders"):
            await pod.bus.publish(topic, body)
    [change] = store.fold(LATTE)
    change.rows = [{"tenant": 0}]
    await pod.hear([change])
    await settle()
    [view] = pod.hub.views.channels.values()
    assert view.rows.versions == (0, 0)
