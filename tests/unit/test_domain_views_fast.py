"""Deltas computed a group at a time equal those of the algebra, order by order."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from coffee_rt.domain.orders import Order
from coffee_rt.domain.view_documents import parse_view
from coffee_rt.domain.views import ViewDefinition, compute_deltas, compute_deltas_simply
from tests.builders import an_order

texts = st.sampled_from(["", "a", "b", "Łódź ☕", "\x1f"])
attributes = st.one_of(
    st.none(),
    st.dictionaries(
        st.sampled_from(["channel", "table"]),
        st.one_of(texts, st.integers(), st.none(), st.just("x" * 200)),
    ).map(msgspec.json.encode),
)
DAY_US = 86_400_000_000


@st.composite
def orders(draw: st.DrawFn) -> Order:
    return an_order(
        tenant=draw(st.integers(0, 2)),
        store=draw(texts),
        drink=draw(texts),
        price_minor=draw(st.integers(1, 10**12)),
        quantity=draw(st.integers(1, 10_000)),
        ordered_at_us=draw(st.integers(0, 3 * DAY_US)),
        accepted_at_us=draw(st.integers(0, 3 * DAY_US)),
        customer_id=draw(st.one_of(st.none(), texts)),
        attributes=draw(attributes),
    )


@st.composite
def definitions(draw: st.DrawFn) -> ViewDefinition:
    names = ["store", "drink", "customer_id", "attributes.channel", "attributes.table"]
    aggregates = st.sampled_from(["sum", "min", "max"])
    fields = st.sampled_from(["quantity", "price", "revenue"])
    measure = st.one_of(st.just("count"), st.builds(lambda a, f: {a: f}, aggregates, fields))
    return parse_view(
        {
            "name": "sales",
            "bucket": draw(st.sampled_from(["minute", "hour", "day"])),
            "dimensions": draw(st.lists(st.sampled_from(names), max_size=4, unique=True)),
            "measures": {
                f"m{n}": each
                for n, each in enumerate(draw(st.lists(measure, min_size=1, max_size=4)))
            },
            "filter": draw(
                st.dictionaries(
                    st.sampled_from(names), st.lists(texts, min_size=1, max_size=3), max_size=2
                )
            ),
        }
    )


@settings(max_examples=300, deadline=None)
@given(definitions(), st.lists(orders(), max_size=30))
def test_deltas_by_group_equal_deltas_by_order(
    definition: ViewDefinition, batch: list[Order]
) -> None:
    assert compute_deltas(definition, batch) == compute_deltas_simply(definition, batch)
