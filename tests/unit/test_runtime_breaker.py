"""The breaker opens after failures in a row, lets one call try, and closes on success."""

from __future__ import annotations

import asyncio

import pytest

from coffee_rt.errors import BreakerOpen, Busy, Retryable
from coffee_rt.runtime.breaker import FIRST_OPEN_SECONDS, CircuitBreaker, backoff_seconds
from tests.clocks import StoppedClock


def make_breaker(clock: StoppedClock, failures: int = 3) -> CircuitBreaker:
    return CircuitBreaker(
        "till", failures=failures, open_seconds=30.0, clock=clock, random=lambda: 0.0
    )


async def call(breaker: CircuitBreaker, error: BaseException | None = None) -> None:
    async with breaker:
        if error is not None:
            raise error


async def fail(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        with pytest.raises(Retryable):
            await call(breaker, Retryable("away"))


async def test_opens_after_failures_in_a_row_and_refuses_at_once() -> None:
    breaker = make_breaker(StoppedClock())
    await fail(breaker, 3)
    assert breaker.is_open
    with pytest.raises(BreakerOpen) as refusal:
        await call(breaker)
    assert refusal.value.retry_after_seconds == pytest.approx(FIRST_OPEN_SECONDS)


async def test_success_between_failures_keeps_it_closed() -> None:
    breaker = make_breaker(StoppedClock())
    await fail(breaker, 2)
    await call(breaker)
    await fail(breaker, 2)
    assert not breaker.is_open


async def test_errors_that_are_answers_do_not_count() -> None:
    breaker = make_breaker(StoppedClock(), failures=1)
    with pytest.raises(ValueError, match="bad"):
        await call(breaker, ValueError("bad"))
    assert not breaker.is_open


async def test_being_busy_ourselves_tells_nothing_of_the_server() -> None:
    clock = StoppedClock()
    breaker = make_breaker(clock)
    await fail(breaker, 2)
    for _ in range(5):
        with pytest.raises(Busy):
            await call(breaker, Busy("all in use"))
    assert not breaker.is_open
    await fail(breaker, 1)
    assert breaker.is_open
    clock.at += 31
    with pytest.raises(Busy):
        await call(breaker, Busy("all in use"))
    # The next one tries.
    await call(breaker)
    assert not breaker.is_open


@pytest.mark.parametrize("error", [OSError("reset"), TimeoutError("late"), Retryable("busy")])
async def test_connection_errors_and_time_outs_count(error: Exception) -> None:
    breaker = make_breaker(StoppedClock(), failures=1)
    with pytest.raises(type(error)):
        await call(breaker, error)
    assert breaker.is_open


async def test_half_open_lets_one_call_through_and_closes_on_its_success() -> None:
    clock = StoppedClock()
    breaker = make_breaker(clock)
    await fail(breaker, 3)
    clock.at += 31
    entered, release = asyncio.Event(), asyncio.Event()

    async def probe() -> None:
        async with breaker:
            entered.set()
            await release.wait()

    probing = asyncio.create_task(probe())
    await entered.wait()
    with pytest.raises(BreakerOpen):
        await call(breaker)
    release.set()
    await probing
    assert not breaker.is_open
    await call(breaker)


async def test_each_failed_probe_opens_it_for_twice_as_long_up_to_the_whole_span() -> None:
    clock = StoppedClock()
    breaker = make_breaker(clock)
    await fail(breaker, 3)
    spans = []
    for _ in range(8):
        spans.append(breaker.retry_after_seconds)
        clock.at += spans[-1]
        await fail(breaker, 1)
    assert spans == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30])
    clock.at += 31
    await call(breaker)
    await fail(breaker, 3)
    assert breaker.retry_after_seconds == pytest.approx(FIRST_OPEN_SECONDS)


async def test_calls_of_before_it_opened_make_it_wait_no_longer() -> None:
    breaker = make_breaker(StoppedClock())
    for _ in range(40):
        breaker.record_failure()
    assert breaker.retry_after_seconds == pytest.approx(FIRST_OPEN_SECONDS)


async def test_cancelled_probe_leaves_room_for_the_next() -> None:
    clock = StoppedClock()
    breaker = make_breaker(clock)
    await fail(breaker, 3)
    clock.at += 31
    with pytest.raises(asyncio.CancelledError):
        await call(breaker, asyncio.CancelledError())
    await call(breaker)
    assert not breaker.is_open


def test_backoff_is_jittered_grows_and_is_capped() -> None:
    longest = [backoff_seconds(attempt, random=lambda: 1.0) for attempt in range(12)]
    assert longest[:3] == [0.1, 0.2, 0.4]
    assert max(longest) == 30.0
    assert backoff_seconds(5, random=lambda: 0.0) == 0.0
    assert backoff_seconds(10_000, random=lambda: 1.0) == 30.0
