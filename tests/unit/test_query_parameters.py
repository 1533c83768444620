"""Query strings become bounded queries, or a refusal that names the parameter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coffee_rt.domain.times import SECONDS_MAX
from coffee_rt.domain.views import Bucket
from coffee_rt.errors import Rejected
from coffee_rt.query_api import parameters
from coffee_rt.store.view_contract import ViewQuery
from tests.builders import a_view

NOW = 1_763_000_000  # 2025-11-13T02:13:20Z
HOUR = 3600


def parse(**query: str | list[str]) -> ViewQuery:
    given_ = {
        name.rstrip("_"): value if isinstance(value, list) else [value]
        for name, value in query.items()
    }
    return parameters.parse_view_query(a_view(), given_, 0, NOW)


def test_last_two_hours_start_with_the_bucket_that_holds_their_first_moment() -> None:
    query = parse(last="2h")
    assert query.start == (NOW - 2 * HOUR) // HOUR * HOUR
    assert query.end > NOW
    assert query.end % HOUR == 0


def test_a_span_holds_its_last_moment_and_nothing_after_it() -> None:
    query = parse(from_="2025-11-13T00:00:00Z", to="2025-11-13T02:00:00Z")
    assert query.end - query.start == 2 * HOUR
    query = parse(from_="2025-11-13T00:30:00+00:00", to="2025-11-13T02:00:01Z")
    assert query.end - query.start == 3 * HOUR


def test_offsets_are_honoured() -> None:
    assert (
        parse(from_="2025-11-13T02:00:00+02:00", to="2025-11-13T02:00:00Z").start
        == parse(from_="2025-11-13T00:00:00Z", to="2025-11-13T02:00:00Z").start
    )


def test_a_dimension_with_the_name_of_a_parameter_is_filtered_by_its_whole_name() -> None:
    view = a_view(dimensions=["store", "attributes.limit", "attributes.size"])

    def filters(**query: str) -> dict[str, tuple[str, ...]]:
        given_ = {name.replace("__", "."): [value] for name, value in query.items()}
        return dict(parameters.parse_view_query(view, given_, 0, NOW).filters)

    assert filters(limit="5") == {}
    assert filters(attributes__limit="5") == {"limit": ("5",)}
    assert filters(size="s") == filters(attributes__size="s") == {"size": ("s",)}


def test_filters_groups_and_buckets_are_taken() -> None:
    query = parse(store=["uptown", "b"], group_by="drink", bucket="day", limit="5")
    assert query.filters == {"store": ("uptown", "b")}
    assert query.group_by == ("drink",)
    assert query.bucket is Bucket.DAY
    assert query.limit == 5
    assert parse(group_by="").group_by == ()
    assert parse(bucket="total").is_total


@pytest.mark.parametrize(
    ("query", "place"),
    [
        ({"last": "2w"}, "last"),
        ({"last": "0h"}, "last"),
        ({"last": ["1h", "2h"]}, "last"),
        ({"last": "1h", "from_": "0"}, "last"),
        ({"from_": "yesterday"}, "from"),
        ({"from_": "2025-11-13T00:00:00"}, "from"),
        ({"from_": "0001-01-01T00:00:00+14:00"}, "from"),
        ({"to": "9" * 12}, "to"),
        ({"from_": "253402300700", "to": "253402300799"}, "to"),
        ({"to": "9999-12-31T23:59:59-14:00"}, "to"),
        ({"to": "2025-11-13T00:00:00+15:00"}, "to"),
        ({"from_": "2025-11-13T03:00:00Z", "to": "2025-11-13T02:00:00Z"}, "to"),
        ({"from_": "0"}, "from"),
        ({"store_name": "x"}, "store_name"),
        ({"store": "a\x00"}, "store"),
        ({"store": ["x"] * 101}, "store"),
        ({"group_by": "colour"}, "group_by"),
        ({"group_by": "store,store"}, "group_by"),
        ({"bucket": "minute"}, "bucket"),
        ({"bucket": "year"}, "bucket"),
        ({"order_by": "store"}, "order_by"),
        ({"limit": "0"}, "limit"),
        ({"limit": "10001"}, "limit"),
        ({"limit": "٣"}, "limit"),
        ({"cursor": "zz"}, "cursor"),
        ({"cursor": "00"}, "cursor"),
        ({"cursor": parameters.encode_cursor([2**60, "a", "b"])}, "cursor"),
        ({"cursor": parameters.encode_cursor([-1, "a", "b"])}, "cursor"),
        ({"cursor": parameters.encode_cursor([1, "a", "\x00"])}, "cursor"),
        ({"cursor": parameters.encode_cursor(["a"])}, "cursor"),
        ({"cursor": parameters.encode_cursor([1, "a", "b"]), "order_by": "orders"}, "cursor"),
    ],
)
def test_bad_parameters_are_refused_naming_them(query: dict[str, str], place: str) -> None:
    with pytest.raises(Rejected) as caught:
        parse(**query)
    assert caught.value.place == place
    assert caught.value.status == 400


_TEXTS = st.text(st.characters(exclude_characters="\x00"), max_size=20)


@given(st.integers(0, SECONDS_MAX), _TEXTS, _TEXTS)
def test_cursors_read_back(bucket: int, store: str, drink: str) -> None:
    key = (bucket, store, drink)
    try:
        text = parameters.encode_cursor(key)
    except UnicodeEncodeError:
        return
    assert parameters.decode_cursor(text, 2, False) == key


def test_top_asks_for_one_dimension_by_one_measure() -> None:
    query = parameters.top_query(
        a_view(),
        {"n": ["3"], "store": ["uptown"]},
        tenant=0,
        now_seconds=NOW,
        by="drink",
        measure="orders",
        span_default="30d",
        count_default=5,
    )
    assert (query.group_by, query.order_by, query.limit) == (("drink",), "orders", 3)
    assert query.is_total
    assert query.start == (NOW - 30 * 86400) // HOUR * HOUR
