"""Floors of autoscalers and the measured drain rate: the pure planners of the operator."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from coffee_rt.operator.contract import Autoscaler
from coffee_rt.operator.drain_rate import DrainSample, measure, smooth
from coffee_rt.operator.floors import (
    Descent,
    FloorPlan,
    base_of,
    fanout_need,
    is_due,
    limits_of,
    plan_floor,
    plan_unknown,
    worker_need,
)
from coffee_rt.operator.pipeline_spec import FloorSpec

SPEC = FloorSpec(lower_after_seconds=120, lower_every_seconds=30)

needs = st.floats(min_value=0, max_value=1e9, allow_nan=False)
counts = st.integers(min_value=1, max_value=50)
limits = st.none() | counts


def autoscaler(pods_min: int = 1, pods_max: int = 10, **more: int) -> Autoscaler:
    return Autoscaler("worker", pods_min, pods_max, "1", **more)


def applied(scaler: Autoscaler, plan: FloorPlan) -> Autoscaler:
    """The autoscaler after set_floor was told of a plan."""
    noted = plan.floor != plan.base
    return replace(
        scaler,
        replicas_min=plan.floor,
        floor=plan.floor if noted else None,
        base=plan.base if noted else None,
    )


@st.composite
def autoscalers(draw: st.DrawFn) -> Autoscaler:
    low = draw(counts)
    high = draw(st.integers(min_value=low, max_value=60))
    scaler = autoscaler(low, high)
    if draw(st.booleans()):
        floor = draw(st.integers(min_value=low, max_value=high))
        return replace(scaler, replicas_min=floor, floor=floor, base=low)
    return scaler


@st.composite
def specs(draw: st.DrawFn) -> FloorSpec:
    low, high = draw(limits), draw(limits)
    if low is not None and high is not None:
        low, high = min(low, high), max(low, high)
    after = draw(st.floats(min_value=0, max_value=600))
    return FloorSpec(True, low, high, after, draw(st.floats(min_value=1, max_value=600)))


@given(needs, autoscalers(), specs(), st.floats(min_value=0, max_value=1e6))
def test_a_floor_is_never_outside_what_the_autoscaler_allows(
    need: float, scaler: Autoscaler, spec: FloorSpec, now: float
) -> None:
    plan = plan_floor(need, scaler, spec, Descent(), now)
    assert base_of(scaler) <= plan.floor <= scaler.replicas_max
    low, high = limits_of(scaler, spec)
    assert low <= plan.floor <= high


@given(needs, autoscalers(), specs())
def test_a_floor_meets_the_need_at_once_within_its_limits_and_tolerance(
    need: float, scaler: Autoscaler, spec: FloorSpec
) -> None:
    plan = plan_floor(need, scaler, spec, Descent(), 0.0)
    _low, high = limits_of(scaler, spec)
    assert plan.floor >= high or need <= plan.floor * 1.1


@given(needs, autoscalers(), specs())
def test_a_constant_need_comes_to_rest_and_stays(
    need: float, scaler: Autoscaler, spec: FloorSpec
) -> None:
    descent, now, floors = Descent(), 0.0, []
    for _ in range(200):
        plan = plan_floor(need, scaler, spec, descent, now)
        scaler, descent, now = applied(scaler, plan), plan.descent, now + 601.0
        floors.append(plan.floor)
    assert len(set(floors[100:])) == 1
    assert not is_due(plan_floor(need, scaler, spec, descent, now), scaler)


@given(needs, autoscalers(), specs())
def test_one_planned_floor_applied_is_not_due_again(
    need: float, scaler: Autoscaler, spec: FloorSpec
) -> None:
    plan = plan_floor(need, scaler, spec, Descent(), 0.0)
    assert not is_due(plan, applied(scaler, plan))


@given(st.lists(needs, min_size=2, max_size=60), autoscalers(), specs())
def test_pods_go_one_at_a_time_and_not_before_their_time(
    wanted: list[float], scaler: Autoscaler, spec: FloorSpec
) -> None:
    descent, now, lowered_at, last = Descent(), 0.0, -math.inf, None
    for need in wanted:
        plan = plan_floor(need, scaler, spec, descent, now)
        current = max(scaler.replicas_min, limits_of(scaler, spec)[0])
        current = min(current, limits_of(scaler, spec)[1])
        if plan.floor < current:
            assert plan.floor == current - 1
            assert now - lowered_at >= spec.lower_every_seconds or last == "raised"
            lowered_at, last = now, "lowered"
        elif plan.floor > current:
            last = "raised"
        scaler, descent, now = applied(scaler, plan), plan.descent, now + 7.0


def test_a_floor_goes_down_only_after_fewer_pods_were_enough_for_a_while() -> None:
    scaler = autoscaler(6, 10, floor=6, base=2)
    plan = plan_floor(0.0, scaler, SPEC, Descent(), 0.0)
    assert (plan.floor, plan.reason) == (6, "Lowering")
    plan = plan_floor(0.0, scaler, SPEC, plan.descent, 119.0)
    assert plan.floor == 6
    plan = plan_floor(0.0, scaler, SPEC, plan.descent, 120.0)
    assert plan.floor == 5
    scaler = applied(scaler, plan)
    assert plan_floor(0.0, scaler, SPEC, plan.descent, 149.0).floor == 5
    plan = plan_floor(0.0, scaler, SPEC, plan.descent, 150.0)
    assert plan.floor == 4


def test_one_busy_moment_starts_the_wait_anew() -> None:
    scaler = autoscaler(6, 10, floor=6, base=2)
    plan = plan_floor(0.0, scaler, SPEC, Descent(), 0.0)
    plan = plan_floor(5.9, scaler, SPEC, plan.descent, 100.0)
    plan = plan_floor(0.0, scaler, SPEC, plan.descent, 125.0)
    assert plan.floor == 6
    assert plan_floor(0.0, scaler, SPEC, plan.descent, 244.0).floor == 6
    assert plan_floor(0.0, scaler, SPEC, plan.descent, 245.0).floor == 5


def test_a_need_within_a_tenth_of_the_floor_does_not_raise_it() -> None:
    scaler = autoscaler(4, 10, floor=4, base=2)
    assert plan_floor(4.3, scaler, SPEC, Descent(), 0.0).floor == 4
    assert plan_floor(4.5, scaler, SPEC, Descent(), 0.0).floor == 5


def test_somebody_elses_minimum_becomes_the_new_base() -> None:
    raised = autoscaler(6, 10, floor=6, base=2)
    assert base_of(raised) == 2
    assert base_of(replace(raised, replicas_min=3)) == 3
    plan = plan_floor(6.0, replace(raised, replicas_min=3), SPEC, Descent(), 0.0)
    assert (plan.floor, plan.base) == (6, 3)


def test_at_its_base_an_autoscaler_carries_no_note() -> None:
    plan = plan_floor(0.0, autoscaler(2, 10), SPEC, Descent(), 0.0)
    assert not is_due(plan, autoscaler(2, 10))
    assert is_due(plan, autoscaler(2, 10, floor=2, base=2))


@given(autoscalers(), specs())
def test_what_can_not_be_seen_changes_no_floor_within_limits(
    scaler: Autoscaler, spec: FloorSpec
) -> None:
    low, high = limits_of(scaler, spec)
    plan = plan_unknown(scaler, spec, Descent(3.0, 1.0))
    assert plan.floor == min(max(scaler.replicas_min, low), high)
    assert plan.descent == Descent(None, 1.0)


def test_a_workers_need_is_the_backlog_over_rate_and_target() -> None:
    assert worker_need(1_200_000, 5000, 60) == 4.0
    assert worker_need(0, 5000, 60) == 0.0
    assert worker_need(10, 0.0, 60) <= 1e6
    assert fanout_need(4001, 2000) > 2.0


def sample(at: float, done: int, undelivered: int, pods: int = 2) -> DrainSample:
    return DrainSample(at, done, done, undelivered, pods)


def test_a_rate_is_what_busy_pods_did_between_two_looks() -> None:
    assert measure(sample(0, 0, 90_000), sample(5, 40_000, 50_000)) == 4000.0


def test_pods_that_wait_for_orders_say_nothing_of_their_rate() -> None:
    assert measure(sample(0, 0, 10), sample(5, 40_000, 90_000)) is None
    assert measure(sample(0, 0, 90_000), sample(5, 40_000, 0)) is None


def test_an_outage_is_no_measurement_and_neither_is_a_changed_number_of_pods() -> None:
    assert measure(None, sample(5, 1, 1)) is None
    assert measure(sample(0, 0, 90_000), sample(5, 0, 90_000)) is None
    assert measure(sample(0, 100, 90_000), sample(5, 50, 90_000)) is None
    assert measure(sample(0, 0, 90_000), sample(5, 40_000, 50_000, pods=3)) is None
    assert measure(sample(0, 0, 90_000, 0), sample(5, 40_000, 50_000, 0)) is None
    assert measure(sample(0, 0, 90_000), sample(0.2, 400, 90_000)) is None


def test_a_stuck_entry_that_gets_unstuck_is_no_high_rate() -> None:
    before = DrainSample(0, 100_000, 0, 90_000, 1)
    after = DrainSample(5, 120_000, 120_000, 70_000, 1)
    assert measure(before, after) == 4000.0


@given(st.floats(min_value=0.1, max_value=1e6), st.floats(min_value=0.1, max_value=1e6), counts)
def test_a_smoothed_rate_lies_between_old_and_new(rate: float, new: float, seconds: int) -> None:
    low, high = sorted((rate, new))
    assert low * 0.999 <= smooth(rate, new, seconds) <= high * 1.001
    assert smooth(None, new, seconds) == new
