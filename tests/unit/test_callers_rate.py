"""The shared rate limit: exact within a pod, added up between pods, each on its own while Redis is away."""

from __future__ import annotations

import asyncio
from ipaddress import ip_network

import pytest

from coffee_rt.callers import rate
from coffee_rt.callers.addresses import client_address, client_subject
from coffee_rt.callers.rate import Quota, RateLimiter, StorageAway
from coffee_rt.order_api.http_exchange import read_head
from tests.clocks import StoppedClock


class Storage:
    """What the pods share."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.is_away = False

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        if self.is_away:
            raise StorageAway
        assert expiry >= 60
        self.counts[key] = self.counts.get(key, 0) + amount
        return self.counts[key]


def pods(count: int) -> tuple[StoppedClock, Storage, list[RateLimiter]]:
    clock, storage = StoppedClock(at=600.0), Storage()
    return clock, storage, [RateLimiter(storage, clock, "t") for _ in range(count)]


def taken(pod: RateLimiter, times: int, subject: str = "key:a", limit: int = 10) -> int:
    return sum(not pod.take(subject, limit).is_exceeded for _ in range(times))


async def test_one_pod_takes_exactly_the_limit() -> None:
    clock, _storage, [pod] = pods(1)
    assert taken(pod, 25) == 10
    assert taken(pod, 25, "key:b") == 10
    clock.at += 60
    assert taken(pod, 25) == 10


async def test_pods_add_up_when_they_settle() -> None:
    _clock, _storage, [one, two] = pods(2)
    assert taken(one, 7) == 7
    await one.settle()
    assert taken(two, 1) == 1
    await two.settle()
    assert taken(two, 9) == 2
    await two.settle()
    await one.settle()
    assert (
        taken(one, 9) == 3
    )  # Not told of the others' since it settled; told when it settles next.
    await one.settle()
    assert taken(one, 9) == 0


async def test_refused_requests_are_not_counted() -> None:
    _clock, storage, [pod] = pods(1)
    taken(pod, 1000)
    await pod.settle()
    assert list(storage.counts.values()) == [10]


async def test_while_redis_is_away_each_pod_limits_on_its_own() -> None:
    _clock, storage, [pod] = pods(1)
    storage.is_away = True
    assert taken(pod, 6) == 6
    await pod.settle()
    assert taken(pod, 6) == 4
    storage.is_away = False
    await pod.settle()
    assert list(storage.counts.values()) == [10]


async def test_minutes_that_are_over_are_forgotten() -> None:
    clock, _storage, [pod] = pods(1)
    for number in range(100):
        pod.take(f"address:{number}", 10)
    clock.at += 60
    await pod.settle()
    assert pod._counts == {}


def test_both_forms_of_the_headers_say_the_same() -> None:
    for is_exceeded in (False, True):
        quota = Quota(10, 3, 42, is_exceeded)
        text = b"".join(b"%b: %b\r\n" % pair for pair in quota.headers())
        assert text == quota.to_bytes()
        assert (b"retry-after: 42" in text) == is_exceeded


async def test_subjects_above_the_most_counted_share_one_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rate, "SUBJECTS_MAX", 3)
    _clock, _storage, (pod,) = pods(1)
    for known in "abc":
        assert taken(pod, 1, f"key:{known}") == 1
    assert sum(taken(pod, 1, f"address:{number}", limit=5) for number in range(20)) == 5


async def test_an_increment_under_way_is_not_sent_again() -> None:
    _clock, storage, (pod, _other) = pods(2)
    taken(pod, 5, "key:slow")
    taken(pod, 1, "key:lost")
    held = asyncio.Event()
    increment = storage.incr

    async def incr(key: str, expiry: int, amount: int = 1) -> int:
        if "lost" in key:
            raise StorageAway
        await held.wait()
        return await increment(key, expiry, amount)

    storage.incr = incr  # type: ignore[method-assign]
    settling = asyncio.create_task(pod.settle())
    await asyncio.sleep(0)
    held.set()
    await settling
    storage.incr = increment  # type: ignore[method-assign]
    await pod.settle()
    assert sorted(storage.counts.values()) == [1, 5]
    assert taken(pod, 10, "key:slow") == 5


@pytest.mark.parametrize(
    ("address", "subject"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7:5123", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::9]:443", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("x" * 30_000, "unknown"),
        ("", "unknown"),
    ],
)
def test_an_address_is_limited_by_what_one_caller_is_given(address: str, subject: str) -> None:
    assert client_subject(address) == subject


def test_a_client_is_told_from_others_behind_a_proxy_that_adds_a_line_of_its_own() -> None:
    """Else all clients of the proxy before it are limited as one."""
    lines = [(b"x-forwarded-for", b"6.6.6.6, 192.0.2.1"), (b"x-forwarded-for", b"10.1.1.1")]
    forwarded = read_head(lines)[b"x-forwarded-for"]
    assert client_address(("10.0.0.1", 1), forwarded, [ip_network("10.0.0.0/8")]) == "192.0.2.1"
