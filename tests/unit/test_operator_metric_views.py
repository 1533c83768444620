"""MetricView objects become views, are told of truly, and are let go of as they ask."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coffee_rt.domain.views import ViewDefinition
from coffee_rt.errors import Rejected, Retryable
from coffee_rt.operator.metric_view_plan import (
    Step,
    fill_progress,
    plan_view,
    read_definition,
    view_name,
)
from coffee_rt.store.view_contract import FILE_OWNER, NO_OWNER, VIEWS_MAX, ViewState
from tests.builders import a_view
from tests.operator_bed import OperatorBed
from tests.view_writing import some_orders

PLURAL = "metricviews"
MINE = "object:shop/sales"


def a_spec(**changes: Any) -> dict[str, Any]:
    """The spec of a_view()."""
    measures = [
        {"name": "orders", "aggregate": "count"},
        {"name": "quantity", "aggregate": "sum", "field": "quantity"},
        {"name": "revenue", "aggregate": "sum", "field": "revenue"},
    ]
    spec = {"bucket": "hour", "dimensions": ["store", "drink"], "measures": measures}
    return {**spec, "retentionDays": 36_500, **changes}


def a_state(definition: ViewDefinition, **changes: Any) -> ViewState:
    options: dict[str, Any] = {
        "internal": f"{definition.name}_1",
        "epoch": "1.1.1",
        "is_live": True,
        "backfilled_to": None,
    }
    return ViewState(definition=definition, **(options | changes))


@pytest.fixture
def bed() -> OperatorBed:
    return OperatorBed()


def test_a_spec_is_read_as_the_definition_it_describes() -> None:
    spec = a_spec(
        view="sales_by_till",
        lanes=3,
        filter=[
            {"field": "drink", "values": ["tea", "latte"]},
            {"field": "attributes.till", "values": ["1"]},
        ],
    )
    filters = {"drink": ["latte", "tea"], "attributes.till": "1"}
    assert read_definition("anything", spec) == a_view(
        "sales_by_till", lanes=3, retention_days=36_500, filter=filters
    )


def test_an_objects_own_name_becomes_a_views() -> None:
    assert view_name("by-channel", {}) == "by_channel"
    assert view_name("by-channel", {"view": "other"}) == "other"


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"bucket": "week"}, "/bucket"),
        ({"measures": []}, "/measures"),
        ({"measures": None}, "/measures"),
        ({"measures": [{"name": "a", "aggregate": "avg", "field": "price"}]}, "/measures/a"),
        ({"measures": [{"name": "a", "aggregate": "sum"}]}, "/measures/a"),
        ({"measures": [{"name": "a", "aggregate": "count"}] * 2}, "/measures/1/name"),
        ({"filter": [{"field": "price", "values": ["1"]}]}, "/filter/price"),
        ({"filter": [{"field": "drink"}]}, "/filter/drink"),
        ({"view": "Sales"}, "/name"),
    ],
)
def test_a_bad_spec_is_refused_naming_the_place(changes: dict[str, Any], place: str) -> None:
    with pytest.raises(Rejected) as caught:
        read_definition("sales", a_spec(**changes))
    assert caught.value.place == place


@given(
    st.sampled_from([FILE_OWNER, NO_OWNER, MINE, "object:bar/sales"]), st.booleans(), st.booleans()
)
def test_only_ones_own_and_abandoned_views_are_changed(
    owner: str, is_same: bool, is_adopting: bool
) -> None:
    wanted = a_view()
    there = wanted if is_same else a_view(bucket="day")
    step = plan_view(wanted, MINE, [a_state(there, owner=owner)], is_adopting=is_adopting)
    if owner == MINE:
        assert step is (Step.NOTHING if is_same else Step.ENSURE)
    elif owner == NO_OWNER or (owner == FILE_OWNER and is_adopting):
        assert step is Step.ENSURE
    else:
        assert step is Step.CONFLICT


@given(
    st.lists(st.integers(1, 1000), unique=True).map(sorted),
    st.integers(0, 1100),
    st.floats(0, 10_000),
)
def test_progress_is_never_beyond_its_end(ends: list[int], to: int, seconds: float) -> None:
    progress = fill_progress(ends, to, (100.0, 0), 100.0, 100.0 + seconds)
    status = progress.to_status()
    assert 0 <= status["chunksDone"] <= status["chunksTotal"] == len(ends)
    assert (status["percent"] == 100) is (status["chunksDone"] == len(ends))
    assert progress.eta_seconds is None or progress.eta_seconds >= 0


def test_the_rest_takes_as_long_as_the_pace_says() -> None:
    ends = list(range(10, 110, 10))
    progress = fill_progress(ends, 40, (100.0, 2), 110.0, 120.0)
    assert (progress.done, progress.eta_seconds, progress.is_stalled) == (4, 60, False)
    assert fill_progress(ends, 40, (100.0, 2), 110.0, 180.0).is_stalled


async def test_a_new_view_is_made_watched_and_live(bed: OperatorBed) -> None:
    await bed.store(some_orders(60, hours=8))
    views = bed.operator().metric_views
    bed.cluster.put(PLURAL, "sales", a_spec())
    assert not await views.turn()
    [state] = await bed.catalogue.views()
    assert (state.owner, state.internal) == (MINE, "sales_1")
    assert bed.condition(PLURAL, "sales") == ("False", "Filling")
    await bed.fill("sales_1", chunks_max=3)
    bed.clock.at += 6
    await views.turn()
    backfill = bed.status(PLURAL, "sales")["backfill"]
    assert (backfill["chunksDone"], backfill["etaSeconds"] > 0) == (3, True)
    assert 0 < backfill["percent"] < 100
    await bed.fill("sales_1")
    assert await views.turn()
    status = bed.status(PLURAL, "sales")
    assert (status["phase"], status["view"], "backfill" in status) == ("Live", "sales", False)
    assert bed.condition(PLURAL, "sales") == ("True", "Live")
    assert [reason for _, reason, _ in bed.cluster.events] == ["Filling", "Live"]


async def test_a_changed_spec_is_built_beside_the_view_readers_keep(bed: OperatorBed) -> None:
    views = bed.operator().metric_views
    bed.cluster.put(PLURAL, "sales", a_spec())
    await views.turn()
    await bed.fill("sales_1")
    bed.cluster.put(PLURAL, "sales", a_spec(bucket="day"))
    await views.turn()
    assert bed.condition(PLURAL, "sales") == ("False", "Replacing")
    assert [(s.internal, s.is_current) for s in await bed.catalogue.views()] == [
        ("sales_2", False),
        ("sales_1", True),
    ]
    await bed.fill("sales_2")
    await views.turn()
    [state] = await bed.catalogue.views()
    assert (state.internal, state.owner) == ("sales_2", MINE)
    assert bed.condition(PLURAL, "sales") == ("True", "Live")


async def test_a_calm_view_is_told_once(bed: OperatorBed) -> None:
    views = bed.operator().metric_views
    bed.cluster.put(PLURAL, "sales", a_spec())
    await views.turn()
    await bed.fill("sales_1")
    await views.turn()
    writes: list[str] = []
    bed.cluster.fault_hook = writes.append
    bed.clock.at += 1000
    assert await bed.operator().metric_views.turn()
    assert writes == ["list"]


async def test_a_files_view_is_a_conflict_until_it_is_adopted(bed: OperatorBed) -> None:
    await bed.catalogue.ensure_views([a_view(retention_days=36_500)])
    await bed.fill("sales_1")
    views = bed.operator().metric_views
    bed.cluster.put(PLURAL, "sales", a_spec(bucket="day"))
    for _ in range(3):
        await views.turn()
    assert bed.condition(PLURAL, "sales") == ("False", "Conflict")
    [state] = await bed.catalogue.views()
    assert (state.internal, state.owner) == ("sales_1", FILE_OWNER)
    bed.cluster.put(PLURAL, "sales", a_spec(adopt=True))
    await views.turn()
    [state] = await bed.catalogue.views()
    assert (state.internal, state.owner, state.is_live) == ("sales_1", MINE, True)
    assert bed.condition(PLURAL, "sales") == ("True", "Live")


async def test_two_objects_never_fight_over_a_view(bed: OperatorBed) -> None:
    views = bed.operator().metric_views
    bed.cluster.put(PLURAL, "sales", a_spec())
    bed.cluster.put(PLURAL, "other", a_spec(view="sales", bucket="day", adopt=True))
    for _ in range(3):
        await views.turn()
    assert [state.internal for state in await bed.catalogue.views()] == ["sales_1"]
    assert bed.condition(PLURAL, "other") == ("False", "Conflict")
    assert bed.condition(PLURAL, "sales")[1] == "Filling"


async def test_an_invalid_spec_says_where(bed: OperatorBed) -> None:
    bed.cluster.put(PLURAL, "sales", a_spec(dimensions=["price"]))
    assert await bed.operator().metric_views.turn()
    assert bed.condition(PLURAL, "sales") == ("False", "Invalid")
    assert "/dimensions/0" in bed.status(PLURAL, "sales")["conditions"][0]["message"]
    assert await bed.catalogue.views() == []


async def test_no_more_views_are_made_than_may_be(bed: OperatorBed) -> None:
    await bed.catalogue.ensure_views([a_view(f"view_{number}") for number in range(VIEWS_MAX)])
    bed.cluster.put(PLURAL, "sales", a_spec())
    assert not await bed.operator().metric_views.turn()
    assert bed.condition(PLURAL, "sales") == ("False", "TooManyViews")
    await bed.catalogue.drop_view("view_0")
    await bed.operator().metric_views.turn()
    assert bed.condition(PLURAL, "sales") == ("False", "Filling")


@pytest.mark.parametrize("policy", ["Keep", "Drop"])
async def test_a_deleted_objects_view_is_kept_or_dropped(bed: OperatorBed, policy: str) -> None:
    await bed.catalogue.ensure_views([a_view("others")])
    views = bed.operator().metric_views
    bed.cluster.put(PLURAL, "sales", a_spec(deletionPolicy=policy))
    await views.turn()
    leaving = bed.cluster.mark_leaving(PLURAL, "sales")
    await views.remove(leaving)
    # The object may be told of until its finalizer is off, and the removal be repeated.
    await views.turn()
    await views.remove(leaving)
    names = {state.definition.name: state.owner for state in await bed.catalogue.views()}
    kept = {"sales": NO_OWNER} if policy == "Keep" else {}
    assert names == {"others": FILE_OWNER, **kept}
    assert bed.cluster.events[-1][1] == ("Kept" if policy == "Keep" else "Dropped")


async def test_a_kept_view_is_taken_up_again_without_a_backfill(bed: OperatorBed) -> None:
    views = bed.operator().metric_views
    bed.cluster.put(PLURAL, "sales", a_spec())
    await views.turn()
    await bed.fill("sales_1")
    await views.remove(bed.cluster.mark_leaving(PLURAL, "sales"))
    del bed.cluster.objects[PLURAL, "sales"]
    bed.cluster.put(PLURAL, "sales", a_spec())
    await views.turn()
    assert bed.condition(PLURAL, "sales") == ("True", "Live")
    assert [(s.internal, s.owner) for s in await bed.catalogue.views()] == [("sales_1", MINE)]


async def test_another_retention_leaves_the_view_ready(bed: OperatorBed) -> None:
    views = bed.operator().metric_views
    bed.cluster.put(PLURAL, "sales", a_spec(retentionDays=400))
    await views.turn()
    await bed.fill("sales_1")
    bed.cluster.put(PLURAL, "sales", a_spec(retentionDays=500))
    await views.turn()
    assert bed.condition(PLURAL, "sales") == ("True", "Filling")
    assert bed.condition(PLURAL, "sales", "Filled") == ("False", "Filling")
    await bed.fill("sales_1")
    bed.cluster.put(PLURAL, "sales", a_spec(retentionDays=30))
    await views.turn()
    assert bed.condition(PLURAL, "sales") == ("True", "Live")
    assert [state.internal for state in await bed.catalogue.views()] == ["sales_1"]


async def test_what_could_not_be_told_is_told_in_a_later_turn(bed: OperatorBed) -> None:
    def fail(call: str) -> None:
        if call == "write":
            raise Retryable("the API server is away")

    views = bed.operator().metric_views
    bed.cluster.put(PLURAL, "sales", a_spec())
    bed.cluster.fault_hook = fail
    assert not await views.turn()
    assert [state.internal for state in await bed.catalogue.views()] == ["sales_1"]
    bed.cluster.fault_hook = None
    await views.turn()
    assert bed.condition(PLURAL, "sales")[1] == "Filling"
