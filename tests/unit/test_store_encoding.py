"""What the store encodes and plans without a database."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from coffee_rt.domain.ids import IdMinter
from coffee_rt.errors import Bug
from coffee_rt.store import copy
from coffee_rt.store.batches import plan_batch
from coffee_rt.store.contract import BadData
from coffee_rt.store.migrations import known_migrations
from coffee_rt.store.order_rows import ON_TIME_SECONDS, RowEncoder, id_range
from coffee_rt.store.partitions import DAY_MS, check_missing_days, parse_partition, partition_of
from tests.builders import NOW_MS, an_order
from tests.store_harness import an_entry


def test_fields_carry_their_length_in_front() -> None:
    assert copy.int2(-1) == b"\x00\x00\x00\x02\xff\xff"
    assert copy.text("é") == b"\x00\x00\x00\x02\xc3\xa9"
    assert copy.timestamptz(copy.EPOCH_US + 1) == b"\x00\x00\x00\x08" + b"\x00" * 7 + b"\x01"
    assert copy.jsonb(b"{}") == b"\x00\x00\x00\x03\x01{}"
    assert copy.payload([copy.row_header(1), copy.NULL]).endswith(
        b"\x00\x01\xff\xff\xff\xff\xff\xff"
    )


@pytest.mark.parametrize(
    ("value", "digits", "weight", "sign"),
    [(0, [], 0, 0), (1, [1], 0, 0), (10_000, [1], 1, 0), (-12_345, [1, 2345], 1, 0x4000)],
)
def test_numeric_is_written_in_base_10000(
    value: int, digits: list[int], weight: int, sign: int
) -> None:
    fields = [len(digits), weight, sign, 0, *digits]
    body = b"".join(field.to_bytes(2, "big") for field in fields)
    assert copy.numeric(value) == len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    "changes",
    [{"store": "\ud800"}, {"price_minor": 2**63}, {"quantity": 2**31}, {"tenant": "x"}],
)
def test_value_that_no_column_holds_is_bad_data(changes: dict[str, object]) -> None:
    order = msgspec.structs.replace(an_order(), **changes)
    with pytest.raises(BadData):
        RowEncoder().encode([(order.order_id, order, bytes(16))])


@pytest.mark.parametrize("changes", [{"body_hash": b"short"}, {"order_id": b"x" * 17}])
def test_id_or_hash_of_another_width_is_bad_data(changes: dict[str, object]) -> None:
    order = msgspec.structs.replace(an_order(), **changes)
    with pytest.raises(BadData):
        plan_batch([an_entry(order)])


def test_rows_are_sorted_by_order_id_across_entries() -> None:
    orders = [an_order() for _ in range(6)]
    plan = plan_batch([an_entry(*orders[3:]), an_entry(*orders[:3])])
    assert plan.orders == orders


@pytest.mark.parametrize("offset_seconds", [-ON_TIME_SECONDS, 0, ON_TIME_SECONDS])
def test_id_range_holds_every_order_on_time(offset_seconds: int) -> None:
    order_id = IdMinter().mint(NOW_MS)
    ordered = NOW_MS // 1000 + offset_seconds
    low, high = id_range(ordered, ordered + 1)
    assert low <= order_id < high


def test_partition_is_named_by_its_day() -> None:
    state = partition_of(NOW_MS // DAY_MS * DAY_MS)
    assert state.name == "orders_y2025m11d13"
    assert parse_partition(state.name) == state
    assert parse_partition("orders_all") is None


@pytest.mark.parametrize("days", [-4000, 31, 10**9])
def test_day_of_an_id_that_was_never_accepted_gets_no_partition(days: int) -> None:
    today = NOW_MS // DAY_MS * DAY_MS
    check_missing_days([today, today + DAY_MS, today - 40 * DAY_MS], NOW_MS, 0)
    with pytest.raises(BadData):
        check_missing_days([today + days * DAY_MS], NOW_MS, 0)


def test_migrations_are_numbered_without_gaps(tmp_path: Path) -> None:
    assert [each.version for each in known_migrations()][:2] == [1, 2]
    (tmp_path / "0002_late.sql").write_text("SELECT 1")
    with pytest.raises(Bug):
        known_migrations(tmp_path)
