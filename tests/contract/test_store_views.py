"""Views, whatever keeps them: folds, reads, snapshots and repairs equal what the orders say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from coffee_rt.domain.orders import Order
from coffee_rt.domain.views import Bucket, ViewDefinition, compute_deltas, lane_of
from coffee_rt.errors import Rejected, Retryable
from coffee_rt.runtime.clock import SystemClock
from coffee_rt.store.memory_view_reads import MemoryViewReader
from coffee_rt.store.memory_views import MemoryViewCatalogue, MemoryViewFolder, MemoryViewRepairer
from coffee_rt.store.view_catalogue import PostgresViewCatalogue
from coffee_rt.store.view_contract import (
    FILE_OWNER,
    NO_OWNER,
    Fold,
    SnapshotScope,
    ViewCatalogueStore,
    ViewFolder,
    ViewQuery,
    ViewReader,
    ViewRepairer,
)
from coffee_rt.store.view_fold import PostgresViewFolder
from coffee_rt.store.view_reads import PostgresViewReader
from coffee_rt.store.view_repair import PostgresViewRepairer
from tests.builders import NOW_MS, a_view, an_order
from tests.store_harness import WriteStore, a_write_store, an_entry
from tests.view_writing import ensure_partition, some_orders

NOW_S = NOW_MS // 1000
END = NOW_S + 86_400
LASTING: dict[str, Any] = {"retention_days": 36_500}


@dataclass
class Views:
    """A store's views and the writer that feeds them."""

    writes: WriteStore
    catalogue: ViewCatalogueStore
    folder: ViewFolder
    repairer: ViewRepairer
    reader: ViewReader

    async def make(self, **changes: object) -> ViewDefinition:
        options: dict[str, Any] = {**LASTING, **changes}
        definition = a_view(**options)
        await self.catalogue.ensure_views([definition])
        return definition

    async def store(self, orders: Sequence[Order]) -> None:
        await self.writes.commit(an_entry(*orders))

    async def fold(self, rows_max: int = 10_000) -> list[Fold]:
        """Fold all that waits."""
        folds = []
        while works := await self.folder.waiting_lanes():
            for work in works:
                fold = await self.folder.fold_lane(work.key, 10_000, rows_max)
                if fold is not None:
                    folds.append(fold)
        return folds

    async def rows(self, **changes: Any) -> list[dict[str, Any]]:
        query = replace(ViewQuery("sales", 0, 0, END), **changes)
        return list((await self.reader.query(query)).rows)


@asynccontextmanager
async def some_views(url: str | None, tail_deltas_max: int = 20_000) -> AsyncIterator[Views]:
    async with a_write_store(url) as writes:
        if writes.pool is not None:
            await ensure_partition(writes.pool)
            yield Views(
                writes,
                PostgresViewCatalogue(writes.pool),
                PostgresViewFolder(writes.pool),
                PostgresViewRepairer(writes.pool),
                PostgresViewReader(writes.pool, tail_deltas_max=tail_deltas_max),
            )
            return
        assert writes.database is not None
        clock = SystemClock()
        yield Views(
            writes,
            MemoryViewCatalogue(writes.database, clock),
            MemoryViewFolder(writes.database, clock),
            MemoryViewRepairer(writes.database, clock),
            MemoryViewReader(writes.database, tail_deltas_max=tail_deltas_max),
        )


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.integration)])
def store_url(request: pytest.FixtureRequest) -> str | None:
    url: str | None = None
    if request.param != "memory":
        url = request.getfixturevalue("database_url")
    return url


@pytest.fixture
async def views(store_url: str | None) -> AsyncIterator[Views]:
    async with some_views(store_url) as made:
        yield made


def expected(
    definition: ViewDefinition, orders: Sequence[Order], tenant: int = 0
) -> list[dict[str, Any]]:
    """What a plain query answers, computed from the orders."""
    names = [measure.name for measure in definition.measures]
    deltas = compute_deltas(definition, list(orders))
    return [
        dict(zip(("bucket", *definition.dimension_columns), group[1:], strict=True))
        | dict(zip(names, deltas[group].measures, strict=True))
        for group in sorted(deltas)
        if group[0] == tenant
    ]


EXTREMES = {
    "orders": "count",
    "revenue": {"sum": "revenue"},
    "least": {"min": "price"},
    "most": {"max": "quantity"},
}


async def test_answer_is_the_same_before_while_and_after_folding(views: Views) -> None:
    definition = await views.make(measures=EXTREMES)
    orders = some_orders(120)
    await views.store(orders[:60])
    assert await views.rows() == expected(definition, orders[:60])
    await views.fold()
    assert await views.rows() == expected(definition, orders[:60])
    await views.store(orders[60:])
    half_folded = (await views.folder.waiting_lanes())[0]
    await views.folder.fold_lane(half_folded.key, 10_000, 10_000)
    assert await views.rows() == expected(definition, orders)
    assert await views.rows(tenant=1) == expected(definition, orders, tenant=1)
    await views.fold()
    answer = await views.reader.query(ViewQuery("sales", 0, 0, END))
    assert list(answer.rows) == expected(definition, orders)
    assert (answer.unfolded, answer.is_tail_skipped) == (0, False)


async def test_folds_tell_every_changed_row_once_with_rising_versions(views: Views) -> None:
    definition = await views.make(lanes=4)
    versions = [0] * 4
    known: dict[tuple[Any, ...], dict[str, Any]] = {}
    orders = some_orders(90)
    for start in range(0, 90, 30):
        await views.store(orders[start : start + 30])
        for fold in await views.fold():
            assert (fold.view, fold.previous) == ("sales", versions[fold.lane])
            assert fold.version == fold.previous + 1
            versions[fold.lane] = fold.version
            for row in fold.rows:
                group = (row["tenant"], row["bucket"], row["store"], row["drink"])
                assert lane_of(group, 4) == fold.lane == row["lane"]
                assert row["version"] == fold.version
                known[group] = row
    snapshot = await views.reader.snapshot("sales", 0)
    assert list(snapshot.versions) == versions
    told = sorted(known.values(), key=str)
    assert sorted(snapshot.rows, key=str) == told
    assert len(told) == len(compute_deltas(definition, orders))


async def test_fold_of_more_rows_than_asked_says_reload(views: Views) -> None:
    await views.make(lanes=1)
    await views.store([an_order(store=f"s{number}") for number in range(5)])
    [fold] = await views.fold(rows_max=4)
    assert (list(fold.rows), fold.is_reload) == ([], True)


async def test_rows_above_a_version_repair_a_gap(views: Views) -> None:
    await views.make(lanes=1)
    await views.store([an_order(store="first")])
    await views.fold()
    await views.store([an_order(store="second"), an_order(store="third")])
    await views.fold()
    repaired = await views.reader.rows_above("sales", 0, 1, 0)
    assert sorted(row["store"] for row in repaired.rows) == ["second", "third"]
    assert list(repaired.versions) == [2]
    assert list((await views.reader.rows_above("sales", 0, 1, END)).rows) == []


async def test_snapshot_begins_where_it_is_asked_to(views: Views) -> None:
    await views.make()
    await views.store([an_order(), an_order(ordered_at_us=NOW_MS * 1000 - 7_200_000_000)])
    await views.fold()
    snapshot = await views.reader.snapshot("sales", NOW_S - 3600)
    assert [row["bucket"] for row in snapshot.rows] == [NOW_S // 3600 * 3600]
    assert list((await views.reader.snapshot("sales", END)).rows) == []


async def test_snapshot_of_a_scope_is_confined_where_it_is_read(views: Views) -> None:
    await views.make()
    orders = [an_order(store=f"s{number}", drink="tea") for number in range(6)]
    others = [an_order(store="s1", drink="latte"), an_order(store="s1", drink="tea", tenant=5)]
    await views.store([*orders, *others])
    await views.fold()

    async def read(rows_max: int, **filters: tuple[str, ...]) -> list[tuple[str, str]]:
        scope = SnapshotScope(orders[0].tenant, tuple(filters.items()), rows_max)
        rows = (await views.reader.snapshot("sales", 0, scope)).rows
        assert {row["tenant"] for row in rows} <= {orders[0].tenant}
        return sorted((row["store"], row["drink"]) for row in rows)

    assert len(await read(100)) == 7
    assert len(await read(3)) == 3
    assert await read(100, store=("s1", "s2")) == [("s1", "latte"), ("s1", "tea"), ("s2", "tea")]
    assert await read(100, store=("s1",), drink=("tea", "x")) == [("s1", "tea")]
    assert await read(100, store=("nowhere",)) == []
    whole = await views.reader.snapshot("sales", 0)
    scope = SnapshotScope(orders[0].tenant, (("store", ("nowhere",)),), 1)
    assert (await views.reader.snapshot("sales", 0, scope)).versions == whole.versions


async def test_floor_of_an_idle_lane_rises_above_every_commit(views: Views) -> None:
    await views.make()
    committed = await views.writes.commit(an_entry(*some_orders(20)))
    touched = set(committed.touched_lanes["sales"])
    _, before = await views.folder.lane_versions()
    assert all(lane.floor <= committed.xid for lane in before if lane.lane in touched)
    await views.fold()
    epochs, after = await views.folder.lane_versions()
    assert all(lane.floor > committed.xid for lane in after)
    assert list(epochs) == ["sales"]


async def test_answers_are_filtered_grouped_and_coarsened(views: Views) -> None:
    definition = await views.make()
    orders = some_orders(150, hours=30)
    await views.store(orders[:100])
    await views.fold()
    await views.store(orders[100:])
    mine = [order for order in orders if order.tenant == 0]
    uptown = [order for order in mine if order.store == "uptown"]
    assert await views.rows(filters={"store": ("uptown",)}) == expected(definition, uptown)
    daily = replace(definition, bucket=Bucket.DAY, dimensions=("drink",))
    assert await views.rows(bucket=Bucket.DAY, group_by=("drink",)) == expected(daily, mine)
    [total] = await views.rows(is_total=True, group_by=())
    assert total == {
        "orders": len(mine),
        "quantity": sum(order.quantity for order in mine),
        "revenue": sum(order.revenue_minor for order in mine),
    }
    start = NOW_S // 3600 * 3600
    recent = [order for order in mine if order.ordered_at_us >= start * 1_000_000]
    assert await views.rows(start=start) == expected(definition, recent)


async def test_best_of_a_dimension_come_first(views: Views) -> None:
    await views.make()
    orders = some_orders(80)
    await views.store(orders)
    sums: dict[str, int] = {}
    for order in orders:
        if order.tenant == 0:
            sums[order.drink] = sums.get(order.drink, 0) + order.quantity
    best = sorted(sums, key=lambda drink: -sums[drink])[:2]
    rows = await views.rows(is_total=True, group_by=("drink",), order_by="quantity", limit=2)
    assert [(row["drink"], row["quantity"]) for row in rows] == [
        (drink, sums[drink]) for drink in best
    ]


async def test_pages_join_to_the_whole_answer(views: Views) -> None:
    await views.make()
    await views.store(some_orders(100))
    whole = await views.rows()
    pages: list[dict[str, Any]] = []
    after: tuple[Any, ...] | None = None
    while page := await views.rows(limit=4, after=after):
        pages += page
        after = (page[-1]["bucket"], page[-1]["store"], page[-1]["drink"])
    assert pages == whole
    iterated = await views.reader.iterate(ViewQuery("sales", 0, 0, END))
    assert [row async for row in iterated] == whole


async def test_too_many_unfolded_deltas_are_left_out_and_said(store_url: str | None) -> None:
    async with some_views(store_url, tail_deltas_max=3) as views:
        definition = await views.make()
        folded = some_orders(5)
        await views.store(folded)
        await views.fold()
        await views.store([an_order(store=f"s{number}") for number in range(4)])
        answer = await views.reader.query(ViewQuery("sales", 0, 0, END))
        assert list(answer.rows) == expected(definition, folded)
        assert (answer.is_tail_skipped, answer.unfolded) == (True, 0)


async def test_an_empty_answer_still_says_how_fresh_it_is(views: Views) -> None:
    await views.make()
    await views.store([an_order()])
    await views.fold()
    answer = await views.reader.query(ViewQuery("sales", 5, 0, END))
    assert (list(answer.rows), answer.version, answer.newest_at_ms) == ([], 1, 0)
    whole = await views.reader.query(ViewQuery("sales", 0, 0, END))
    assert whole.newest_at_ms == NOW_MS


@pytest.mark.parametrize(
    "changes",
    [
        {"view": "nothing"},
        {"filters": {"size": ("big",)}},
        {"group_by": ("size",)},
        {"order_by": "store"},
        {"bucket": Bucket.MINUTE},
        {"after": (1,)},
        {"after": (1, "a", "b"), "order_by": "orders"},
    ],
)
async def test_what_a_view_can_not_answer_is_refused(views: Views, changes: dict[str, Any]) -> None:
    await views.make()
    with pytest.raises(Rejected):
        await views.rows(**changes)


async def test_attributes_and_customers_are_dimensions(views: Views) -> None:
    definition = await views.make(dimensions=["customer_id", "attributes.channel"])
    orders = [
        an_order(customer_id="c1", attributes=b'{"channel":"web"}'),
        an_order(attributes=b'{"channel":7}'),
        an_order(attributes=b'{"channel":"' + b"x" * 129 + b'"}'),
        an_order(attributes=b'{"other":"web"}', customer_id="c1"),
    ]
    await views.store(orders)
    assert await views.rows() == expected(definition, orders)
    await views.fold()
    for chunk in await views.repairer.plan_chunks("sales_1", None, None):
        assert await views.repairer.audit_chunk(chunk) == []
        assert await views.repairer.rebuild_chunk(chunk) == 0
    assert await views.rows() == expected(definition, orders)


async def test_a_filter_holds_for_new_orders_and_for_history(views: Views) -> None:
    filters = {"drink": ["latte", "it's \\' or 1=1 --"], "attributes.channel": ["", "kiosk"]}
    orders = [
        *some_orders(40, seed=1),
        an_order(drink="it's \\' or 1=1 --", attributes=b'{"channel":"kiosk"}'),
        an_order(attributes=b'{"channel":"web"}'),
    ]
    await views.store(orders[20:])
    definition = await views.make(filter=filters)
    await views.store(orders[:20])
    await views.fold()
    for chunk in await views.repairer.plan_chunks("sales_1", None, None):
        await views.repairer.rebuild_chunk(chunk)
        assert await views.repairer.audit_chunk(chunk) == []
    assert await views.rows() == expected(definition, orders)
    assert 0 < len(await views.rows()) < len(expected(a_view(), orders))
    [state] = await views.catalogue.views()
    assert state.definition == definition


async def test_another_owners_view_is_left_alone(views: Views) -> None:
    await views.make()
    other = a_view(dimensions=["drink"], **LASTING)
    await views.catalogue.ensure_views([other], "object:shop/sales")
    [state] = await views.catalogue.views()
    assert (state.owner, state.definition.dimensions) == (FILE_OWNER, ("store", "drink"))
    with pytest.raises(Rejected):
        await views.catalogue.drop_view("sales", "object:shop/sales")
    await views.catalogue.drop_view("sales", FILE_OWNER)
    assert await views.catalogue.views() == []


async def test_a_files_view_may_be_taken_over_but_never_an_objects(views: Views) -> None:
    definition = await views.make()
    await views.catalogue.ensure_views([definition], "object:shop/sales", is_adopting=True)
    await views.catalogue.ensure_views([definition], "object:bar/sales", is_adopting=True)
    await views.catalogue.ensure_views([a_view(bucket="day")])
    [state] = await views.catalogue.views()
    assert (state.owner, state.internal) == ("object:shop/sales", "sales_1")
    assert state.definition == definition


async def test_a_released_view_belongs_to_whoever_defines_it_next(views: Views) -> None:
    definition = a_view(**LASTING)
    await views.catalogue.ensure_views([definition], "object:shop/sales")
    assert not await views.catalogue.release_view("sales", "object:bar/sales")
    assert await views.catalogue.release_view("sales", "object:shop/sales")
    assert [state.owner for state in await views.catalogue.views()] == [NO_OWNER]
    await views.catalogue.ensure_views([definition])
    [state] = await views.catalogue.views()
    assert (state.owner, state.internal) == (FILE_OWNER, "sales_1")


async def test_progress_of_another_epoch_is_not_noted(views: Views) -> None:
    """A promoted PostgreSQL may lack the chunks that the progress speaks of."""
    await views.make()
    [before] = await views.catalogue.views()
    for internal, epoch in ((before.internal, "1.0.99"), ("gone_1", before.epoch)):
        with pytest.raises((Retryable, Rejected)):
            await views.repairer.mark_backfilled(internal, None, epoch=epoch)
    assert await views.catalogue.views() == [before]
    await views.repairer.mark_backfilled(before.internal, 7_200, epoch=before.epoch)
    [state] = await views.catalogue.views()
    assert state.backfilled_to == 7_200


async def test_another_retention_alone_changes_the_view_in_its_place(views: Views) -> None:
    orders = some_orders(40)
    await views.make()
    await views.store(orders)
    await views.fold()
    await views.repairer.mark_backfilled("sales_1", None)
    shorter = await views.make(retention_days=36_000)
    [state] = await views.catalogue.views()
    assert (state.internal, state.definition, state.is_live) == ("sales_1", shorter, True)
    assert state.backfilled_to is None
    assert await views.rows() == expected(shorter, orders)


async def test_days_that_a_longer_retention_adds_are_filled_while_readers_keep_the_view(
    views: Views,
) -> None:
    orders = some_orders(40)
    await views.make(retention_days=2)
    await views.store(orders)
    folds = await views.fold()
    assert sum(fold.expired_deltas for fold in folds) > 0
    await views.repairer.mark_backfilled("sales_1", None)
    longer = a_view(**LASTING)
    assert await views.catalogue.ensure_views([longer]) == ["sales_1"]
    [state] = await views.catalogue.views()
    assert (state.is_live, state.backfilled_to) == (True, 0)
    for chunk in await views.repairer.plan_chunks("sales_1", 0, None):
        await views.repairer.rebuild_chunk(chunk)
    await views.repairer.mark_backfilled("sales_1", None)
    await views.store(late := some_orders(5, seed=9))
    assert sum(fold.expired_deltas for fold in await views.fold()) == 0
    assert await views.rows() == expected(longer, [*orders, *late])


async def test_a_retention_changed_amid_a_replacement_keeps_the_replacement(views: Views) -> None:
    await views.make()
    await views.make(dimensions=["drink"])
    await views.make(dimensions=["drink"], retention_days=36_000)
    states = await views.catalogue.views()
    assert [(state.internal, state.definition.retention_days) for state in states] == [
        ("sales_2", 36_000),
        ("sales_1", 36_500),
    ]


async def test_history_is_filled_for_a_view_made_later(views: Views) -> None:
    old, new = some_orders(40, seed=1, hours=60), some_orders(40, seed=2, hours=60)
    await views.store(old)
    definition = await views.make(measures=EXTREMES)
    await views.store(new)
    await views.fold()
    for chunk in await views.repairer.plan_chunks("sales_1", None, None):
        await views.repairer.rebuild_chunk(chunk)
    assert await views.rows() == expected(definition, [*old, *new])
    assert await views.fold() == []
    await views.repairer.mark_backfilled("sales_1", None)
    [state] = await views.catalogue.views()
    assert (state.is_live, state.backfilled_to) == (True, None)
    assert await views.catalogue.ensure_views([definition]) == []


async def test_planned_chunks_keep_to_the_span(views: Views) -> None:
    await views.make()
    await views.store(some_orders(60, hours=12))
    start = NOW_S // 3600 * 3600 - 5 * 3600
    chunks = await views.repairer.plan_chunks("sales_1", start, start + 2 * 3600)
    assert [(chunk.start, chunk.end) for chunk in chunks] == [
        (start, start + 3600),
        (start + 3600, start + 7200),
    ]


async def test_a_changed_definition_takes_over_with_another_epoch(views: Views) -> None:
    orders = some_orders(40)
    await views.make()
    epochs, _ = await views.folder.lane_versions()
    await views.store(orders[:20])
    await views.fold()
    changed = await views.make(dimensions=["drink"])
    await views.store(orders[20:])
    for chunk in await views.repairer.plan_chunks("sales_2", None, None):
        await views.repairer.rebuild_chunk(chunk)
    old_rows = await views.rows()
    await views.repairer.mark_backfilled("sales_2", None)
    await views.catalogue.make_current("sales_2")
    assert "store" in old_rows[0]
    # A reader may know the old set of views for a moment; its tables are gone, so it finds out.
    assert await views.rows() == expected(changed, orders)
    after, _ = await views.folder.lane_versions()
    assert after["sales"] != epochs["sales"]


async def test_a_replacement_takes_over_with_all_that_was_visible(views: Views) -> None:
    """What was folded into the view it replaces, and told to be visible, is folded into it too."""
    await views.make()
    changed = await views.make(dimensions=["drink"], lanes=3)
    orders = some_orders(40)
    await views.store(orders)
    await views.repairer.mark_backfilled("sales_2", None)
    await views.catalogue.make_current("sales_2")
    assert await views.folder.waiting_lanes() == []
    folded = (await views.reader.snapshot("sales", 0)).rows
    groups = {(row["tenant"], row["bucket"], row["drink"]) for row in folded}
    assert groups == set(compute_deltas(changed, orders))
    assert await views.rows() == expected(changed, orders)


async def test_an_instance_that_withdraws_is_no_longer_counted(views: Views) -> None:
    assert await views.folder.announce("a", 60.0) == ["a"]
    assert await views.folder.announce("b", 60.0) == ["a", "b"]
    await views.folder.withdraw("a")
    assert await views.folder.announce("b", 60.0) == ["b"]


async def test_a_dropped_view_answers_no_more(views: Views) -> None:
    await views.make()
    await views.rows()
    await views.catalogue.drop_view("sales")
    with pytest.raises(Rejected):
        await views.rows()
    await views.store(some_orders(3))
    assert await views.folder.waiting_lanes() == []
