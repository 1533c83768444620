"""Who may open a session."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from multidict import CIMultiDict

from coffee_rt.callers.rate import RateLimited, RateLimiter
from coffee_rt.errors import Overload, Rejected
from coffee_rt.fanout.door import Door
from tests.clocks import StoppedClock
from tests.unit.test_callers_rate import Storage

PROXIES = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


def a_door(sessions: int = 10, per_address: int = 2) -> Door:
    return Door(
        sessions_max=sessions,
        sessions_per_address_max=per_address,
        origins=["https://shop.example"],
        trusted_proxies=PROXIES,
    )


def headers(**values: str) -> CIMultiDict[str]:
    return CIMultiDict({name.replace("_", "-"): value for name, value in values.items()})


@pytest.mark.parametrize(
    "origin", ["https://shop.example", "http://coffee.example:8080", "HTTP://COFFEE.example:8080"]
)
def test_known_origins_and_the_own_one_may_connect(origin: str) -> None:
    a_door().check(headers(host="coffee.example:8080", origin=origin))


@pytest.mark.parametrize(
    "origin",
    [
        "https://shop.example:444",
        "https://shop.example/",
        "https://sub.shop.example",
        "http://coffee.example",
        "http://coffee.example:8080.evil",
        "http://coffee.example:8080@evil",
        "null",
        "",
        "file://",
    ],
)
def test_other_origins_are_refused(origin: str) -> None:
    with pytest.raises(Rejected) as refusal:
        a_door().check(headers(host="coffee.example:8080", origin=origin))
    assert refusal.value.status == 403


def test_the_token_may_be_a_header_or_a_subprotocol() -> None:
    door = a_door()
    assert door.check(headers(authorization="Bearer crt_a")).token == "crt_a"
    assert door.check(headers(x_api_key="crt_a")).token == "crt_a"
    offered = door.check(headers(sec_websocket_protocol="coffee-rt.v1, bearer.crt_a"))
    assert (offered.token, offered.subprotocol) == ("crt_a", "coffee-rt.v1")
    assert door.check(headers()).token is None


def test_forwarded_addresses_are_believed_only_from_proxies() -> None:
    door = a_door(per_address=10)
    behind = door.check(headers(x_forwarded_for="6.6.6.6, 192.0.2.1, 10.1.1.1"))
    assert door.enter(behind, "10.0.0.1") == "192.0.2.1"
    assert door.enter(behind, "203.0.113.5") == "203.0.113.5"
    assert door.enter(door.check(headers()), "10.0.0.1") == "10.0.0.1"
    assert door.enter(door.check(headers(x_forwarded_for="nonsense")), "10.0.0.1") == "unknown"
    lines = headers(x_forwarded_for="6.6.6.6")
    lines.add("x-forwarded-for", "192.0.2.9")
    assert door.enter(door.check(lines), "10.0.0.1") == "192.0.2.9"


def test_all_addresses_of_one_ipv6_network_are_one_callers() -> None:
    door = a_door(per_address=2)
    visitor = door.check(headers())
    for host in (1, 2):
        assert door.enter(visitor, f"2001:db8:1:2::{host}") == "2001:db8:1:2::/64"
    with pytest.raises(Overload):
        door.enter(visitor, "2001:db8:1:2::3")
    door.enter(visitor, "2001:db8:1:3::1")


async def test_connections_a_minute_are_bounded_however_short_they_are() -> None:
    clock, counts = StoppedClock(at=600.0), Storage()
    doors = [
        Door(
            sessions_max=10,
            sessions_per_address_max=10,
            rate=RateLimiter(counts, clock, "t"),
            connects_per_minute=4,
        )
        for _ in range(2)
    ]
    visitor = doors[0].check(headers())
    for _ in range(4):
        doors[0].leave(doors[0].enter(visitor, "192.0.2.1"))
    for door in doors:
        assert door._rate is not None
        await door._rate.settle()
    with pytest.raises(RateLimited) as refusal:
        doors[0].enter(visitor, "192.0.2.1")
    assert refusal.value.status == 429
    doors[1].leave(doors[1].enter(visitor, "192.0.2.1"))
    await doors[1]._rate.settle()  # type: ignore[union-attr]
    with pytest.raises(RateLimited):
        doors[1].enter(visitor, "192.0.2.1")
    doors[1].enter(visitor, "192.0.2.2")


def test_numbers_are_bounded_and_given_back() -> None:
    door = a_door(sessions=3)
    visitor = door.check(headers())
    addresses = [door.enter(visitor, "192.0.2.1") for _ in range(2)]
    with pytest.raises(Overload) as refusal:
        door.enter(visitor, "192.0.2.1")
    assert refusal.value.status == 429
    door.enter(visitor, "192.0.2.2")
    with pytest.raises(Overload):
        door.check(headers())
    door.leave(addresses[0])
    door.enter(door.check(headers()), "192.0.2.1")


def test_a_closed_door_says_when_to_come_back() -> None:
    door = a_door()
    door.is_closed = True
    with pytest.raises(Overload):
        door.check(headers())
