"""Every example of docs/protocol.md is true: what it says clients send is understood, what it says servers
send has the shape of what they really do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from coffee_rt.channels.messages import recent_order
from coffee_rt.domain.dashboard import build_dashboard
from coffee_rt.domain.problems import problem_of
from coffee_rt.errors import Rejected
from coffee_rt.fanout.protocol import parse_message
from coffee_rt.streams.contract import Position
from tests.builders import NOW_MS, an_order
from tests.fanout_world import HOUR, Browser, TruthStore, VirtualClock, running_pod, settle
from tests.live_client import LiveView

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def examples(kind: str) -> list[dict[str, Any]]:
    blocks = re.findall(rf"^```json {kind}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert blocks, f"no examples of {kind}"
    return [msgspec.json.decode(block) for block in blocks]


def shape(value: Any) -> Any:
    """Names and kinds of values, as deep as the example goes."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, int | float) else type(value).__name__


async def sent_by_a_real_server() -> dict[str, dict[str, Any]]:
    """One message of each type, as the hub sends it."""
    store, clock = TruthStore(), VirtualClock()
    latte, tea = (0, HOUR, "uptown", "latte"), (0, HOUR, "central", "tea")
    store.orders = [an_order()]
    async with running_pod(store, clock) as pod:
        await pod.hear(store.fold(latte))
        await clock.advance(0.1)
        browser: Browser = pod.browser(filter={"store": ["uptown"]})
        heard = list(browser.socket.received)
        browser.say({"type": "subscribe", "id": 2, "channel": "orders"})
        browser.say({"type": "subscribe", "id": 5, "channel": "view:none"})
        browser.say({"type": "ping", "at": 1})
        await pod.hear(store.fold(latte))
        await clock.advance(0.1)
        await pod.hear(store.fold(tea))
        await pod.hear_orders(recent_order(store.orders[0], 2))
        await clock.advance(2.5)
        browser.say(
            {
                "type": "subscribe",
                "id": 1,
                "channel": "view:sales",
                "resume": {"epoch": "0.0.0", "versions": [0, 0]},
            }
        )
        pod.hub.run_work(pod.hub.drain())
        await settle()
        heard += browser.socket.received
    return {message["type"]: message for message in reversed(heard)}


@pytest.mark.parametrize("example", examples("client"), ids=lambda example: example["type"])
async def test_what_clients_send_is_understood(example: dict[str, Any]) -> None:
    parse_message(msgspec.json.encode(example))
    store, clock = TruthStore(), VirtualClock()
    async with running_pod(store, clock) as pod:
        browser = pod.browser()
        browser.say(example)
        await clock.advance(1.0)
        assert browser.socket.closed is None
        assert browser.socket.take("error") == []


async def test_what_servers_send_looks_as_it_is_written() -> None:
    real = await sent_by_a_real_server()
    written = {example["type"]: example for example in examples("server")}
    assert set(written) == set(real)
    for kind, example in written.items():
        assert shape(example) == shape(real[kind]), kind
    assert written["error"]["detail"] == real["error"]["detail"]


def test_the_messages_in_order_make_a_view() -> None:
    view = LiveView()
    for example in examples("server"):
        if example["type"] in ("snapshot", "delta", "versions"):
            view.apply(example)
    assert view.values() == {("uptown", "latte", HOUR): [2, 4, 900]}
    assert view.versions == [2, 0]


def test_the_problem_is_what_is_answered() -> None:
    [example] = examples("problem")
    assert problem_of(Rejected("bad-since", "must be Unix seconds", "since")).to_dict() == example


def test_the_dashboard_object_has_its_shape() -> None:
    [example] = examples("dashboard")
    drinks = [{"drink": "latte", "orders": 2, "revenue": 900}]
    real = build_dashboard(
        now_us=NOW_MS * 1000,
        decimals=2,
        hour_drinks=drinks,
        month_drinks=drinks,
        recent=[an_order()],
    )
    assert shape(real) == shape(example)
    assert real["current_hour"] == example["current_hour"]


def test_the_position_can_be_given_back() -> None:
    [example] = examples("position")
    assert str(Position.parse(example["position"])) == example["position"]
