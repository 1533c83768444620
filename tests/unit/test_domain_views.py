"""Definitions are checked with their place; deltas merge to the same result in any order."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coffee_rt.domain.orders import Order
from coffee_rt.domain.view_documents import parse_view
from coffee_rt.domain.views import (
    Bucket,
    compute_deltas,
    group_of,
    lane_of,
    merge_deltas,
)
from coffee_rt.errors import Rejected
from tests.builders import NOW_MS, a_view, an_order

EXTREMES = {
    "orders": "count",
    "cheapest": {"min": "price"},
    "dearest": {"max": "revenue"},
    "quantity": {"sum": "quantity"},
}

orders = st.builds(
    an_order,
    tenant=st.integers(0, 1),
    store=st.sampled_from(["a", "b"]),
    drink=st.sampled_from(["x", "y"]),
    price_minor=st.integers(1, 1000),
    quantity=st.integers(1, 5),
    ordered_at_us=st.integers(0, 3).map(lambda hour: (NOW_MS + hour * 3_600_000) * 1000),
    accepted_at_us=st.integers(NOW_MS, NOW_MS + 10).map(lambda ms: ms * 1000),
)


@given(st.lists(orders, max_size=40), st.integers(0, 40))
def test_deltas_of_any_split_merge_to_the_deltas_of_the_whole(
    batch: list[Order], split: int
) -> None:
    view = a_view(measures=EXTREMES)
    whole = compute_deltas(view, batch)
    merged = compute_deltas(view, batch[split:])
    for group, delta in compute_deltas(view, batch[:split]).items():
        known = merged.get(group)
        merged[group] = delta if known is None else merge_deltas(view, delta, known)
    assert merged == whole


def test_a_delta_is_what_the_orders_add_up_to() -> None:
    view = a_view()
    deltas = compute_deltas(
        view,
        [an_order(price_minor=450, quantity=2), an_order(price_minor=300), an_order(store="b")],
    )
    bucket = NOW_MS // 1000 // 3600 * 3600
    assert deltas[(0, bucket, "uptown", "latte")].measures == [2, 3, 1200]
    assert deltas[(0, bucket, "b", "latte")].measures == [1, 1, 450]


def test_an_order_belongs_to_the_bucket_of_its_own_time() -> None:
    late = an_order(ordered_at_us=(NOW_MS - 3 * 3_600_000) * 1000)
    for bucket in Bucket:
        view = a_view(bucket=bucket.value)
        assert (
            group_of(view, late)[1]
            == late.ordered_at_us // 1_000_000 // bucket.seconds * bucket.seconds
        )


@pytest.mark.parametrize(
    ("attributes", "value"),
    [
        (None, ""),
        (b"{}", ""),
        (b'{"channel":"kiosk"}', "kiosk"),
        (b'{"channel":7}', ""),
        (b'{"channel":null}', ""),
        (b'{"channel":"' + b"x" * 129 + b'"}', ""),
    ],
)
def test_attribute_dimensions_take_only_short_texts(attributes: bytes | None, value: str) -> None:
    view = a_view(dimensions=["attributes.channel"])
    assert view.dimension_columns == ("channel",)
    assert group_of(view, an_order(attributes=attributes))[2] == value


def test_lanes_are_stable_and_used_evenly() -> None:
    lanes = [lane_of((0, hour * 3600, "uptown", f"drink {hour}"), 8) for hour in range(4000)]
    counts = [lanes.count(lane) for lane in range(8)]
    assert min(counts) > 400
    # Pinned: SQL computes the same, and rows keep the lane they were made with.
    assert lane_of((0, 3600, "a", "b"), 8) == 2


def test_a_filter_lets_in_orders_whose_every_field_has_one_of_its_values() -> None:
    view = a_view(filter={"drink": ["latte", "tea"], "attributes.channel": "kiosk"})
    kiosk = b'{"channel":"kiosk"}'
    inside = [an_order(attributes=kiosk), an_order(drink="tea", attributes=kiosk)]
    outside = [an_order(), an_order(drink="mocha", attributes=kiosk)]
    assert compute_deltas(view, [*inside, *outside]) == compute_deltas(a_view(), inside)
    assert compute_deltas(view, outside) == {}


def test_a_missing_field_is_an_empty_text_to_a_filter() -> None:
    view = a_view(filter={"customer_id": ["", "c1"]})
    orders = [an_order(), an_order(customer_id="c1"), an_order(customer_id="c2")]
    assert sum(delta.measures[0] for delta in compute_deltas(view, orders).values()) == 2


def test_filters_that_mean_the_same_are_equal() -> None:
    one = a_view(filter={"store": "a", "drink": ["x", "y"]})
    other = a_view(filter={"drink": ["y", "x", "y"], "store": ["a"]})
    assert one == other


def test_a_definition_reads_back_from_its_own_document() -> None:
    view = a_view(measures=EXTREMES, lanes=3, retention_days=9, filter={"store": ["b", "a"]})
    assert parse_view(view.to_dict()) == view


def test_buckets_get_coarser() -> None:
    assert all(fine.seconds < coarse.seconds for fine, coarse in pairwise(Bucket))


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"name": "Sales"}, "/name"),
        ({"name": "sales; drop table orders"}, "/name"),
        ({"name": "a" * 32}, "/name"),
        ({"name": None}, "/name"),
        ({"bucket": "week"}, "/bucket"),
        ({"bucket": []}, "/bucket"),
        ({"dimensions": ["store", "price"]}, "/dimensions/1"),
        ({"dimensions": [["store"]]}, "/dimensions/0"),
        ({"dimensions": "store"}, "/dimensions"),
        ({"dimensions": ["store"] * 5}, "/dimensions"),
        ({"dimensions": ["attributes.version"]}, "/dimensions/0"),
        ({"dimensions": ["store", "store"]}, "/measures"),
        ({"measures": {}}, "/measures"),
        ({"measures": {"orders": "sum"}}, "/measures/orders"),
        ({"measures": {"orders": {"avg": "price"}}}, "/measures/orders"),
        ({"measures": {"orders": {"sum": ["price"]}}}, "/measures/orders"),
        ({"measures": {"bucket": "count"}}, "/measures/bucket"),
        ({"measures": {"store": "count"}}, "/measures"),
        ({"lanes": 0}, "/lanes"),
        ({"lanes": True}, "/lanes"),
        ({"retention_days": 1}, "/retention_days"),
        ({"colour": "blue"}, "/colour"),
        ({"filter": "latte"}, "/filter"),
        ({"filter": {"price": "1"}}, "/filter/price"),
        ({"filter": {"drink": []}}, "/filter/drink"),
        ({"filter": {"drink": ["latte", 7]}}, "/filter/drink/1"),
        ({"filter": {"drink": {"not": "tea"}}}, "/filter/drink"),
        ({"filter": {"drink": "x" * 129}}, "/filter/drink"),
        ({"filter": {"drink": "nul \x00"}}, "/filter/drink"),
        ({"filter": {"drink": [f"d{n}" for n in range(101)]}}, "/filter/drink"),
        ({"filter": {f"attributes.a{n}": "x" for n in range(5)}}, "/filter"),
    ],
)
def test_bad_definitions_are_refused_naming_the_place(
    changes: dict[str, object], place: str
) -> None:
    with pytest.raises(Rejected) as caught:
        a_view(**{"name": "sales", **changes})  # type: ignore[arg-type]
    assert caught.value.place == place


@pytest.mark.parametrize("document", [None, [], "hourly", 7, {1: 2}])
def test_documents_that_are_no_object_are_refused(document: object) -> None:
    with pytest.raises(Rejected):
        parse_view(document)
