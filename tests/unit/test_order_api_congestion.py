"""Who is turned away when orders would wait too long, decided from waits that are told, not measured."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from coffee_rt.errors import Overload
from coffee_rt.order_api.body_room import BodyRoom
from coffee_rt.order_api.congestion import Congestion
from coffee_rt.runtime.clock import SystemClock


class Log:
    """What the log's wait is said to be."""

    wait = 0.0

    def look(self) -> float:
        return self.wait


def a_congestion(log: Log) -> Congestion:
    return Congestion(SystemClock(), log.look, wait_seconds_max=0.5, turn_seconds_max=0.22)


def code(congestion: Congestion) -> str | None:
    refusal = congestion.refusal
    return None if refusal is None else refusal.code


def test_one_slow_turn_is_no_overload_and_two_are() -> None:
    congestion = a_congestion(Log())
    congestion.look(3.0)
    assert code(congestion) is None
    congestion.look(0.3)
    assert code(congestion) == "overloaded"
    congestion.look(0.0)
    assert code(congestion) is None


def test_turns_have_a_bound_of_their_own_below_that_of_all_waits() -> None:
    congestion = a_congestion(Log())
    congestion.look(0.23)
    congestion.look(0.23)
    assert code(congestion) == "overloaded"
    congestion.look(0.21)
    assert code(congestion) is None


def test_an_order_that_was_read_long_ago_is_let_go_though_others_are_taken() -> None:
    congestion = a_congestion(Log())
    assert congestion.refuse(0.21) is None
    late = congestion.refuse(0.23)
    assert late is not None
    assert (late.code, late.status, late.retry_after_seconds) == ("overloaded", 503, 1.0)
    assert congestion.refuse(0.0) is None


def test_a_log_that_takes_too_long_is_named() -> None:
    log = Log()
    congestion = a_congestion(log)
    log.wait = 0.6
    congestion.look(0.0)
    assert code(congestion) == "log-slow"
    assert REGISTRY.get_sample_value("coffee_rt_order_api_wait_seconds") == 0.6
    log.wait = 0.5
    congestion.look(0.0)
    assert code(congestion) is None


def test_both_waits_count_together() -> None:
    log = Log()
    congestion = a_congestion(log)
    log.wait = 0.2
    congestion.look(0.2)
    congestion.look(0.2)
    assert code(congestion) == "overloaded"


def test_a_refusal_says_when_to_come_back_and_that_nothing_was_done() -> None:
    congestion = a_congestion(Log())
    congestion.look(9.0)
    congestion.look(9.0)
    refusal = congestion.refusal
    assert refusal is not None
    assert (refusal.status, refusal.retry_after_seconds) == (503, 1.0)


def test_bodies_take_room_until_they_give_it_back() -> None:
    room = BodyRoom(100)
    room.take(60)
    with pytest.raises(Overload, match="bodies-full"):
        room.take(41)
    room.take(40)
    room.give(60)
    room.give(40)
    # One that is larger than the room is read alone: it would never be let in otherwise.
    room.take(1000)
    with pytest.raises(Overload):
        room.take(1)
    room.give(1000)
    room.take(1)
