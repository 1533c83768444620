"""Ids say where and when; client ids are bounded in time."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coffee_rt.domain.ids import (
    BACK_MS_MAX,
    IdMinter,
    check_client_id_time,
    display_number,
    format_id,
    id_floor,
    id_shard,
    id_time_ms,
    parse_id,
)
from coffee_rt.errors import Rejected

NOW_MS = 1_763_000_000_000


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1023)), min_size=1, max_size=200))
def test_minted_ids_rise_however_the_clock_trembles(steps: list[tuple[int, int]]) -> None:
    minter = IdMinter()
    now_ms = highest_ms = NOW_MS
    minted = []
    for step, shard in steps:
        now_ms = max(now_ms + step, highest_ms - BACK_MS_MAX)
        highest_ms = max(highest_ms, now_ms)
        minted.append(minter.mint(now_ms, shard))
    assert minted == sorted(set(minted))
    assert [id_shard(order_id) for order_id in minted] == [shard for _, shard in steps]


def test_ids_follow_a_clock_that_was_set_right() -> None:
    minter = IdMinter()
    early = [minter.mint(NOW_MS + 3_000), *minter.mint_many(NOW_MS + 3_000, 0, 2)]
    late = [minter.mint(NOW_MS), *minter.mint_many(NOW_MS, 0, 2)]
    assert [id_time_ms(order_id) for order_id in late] == [NOW_MS] * 3
    assert late == sorted(late)
    again = minter.mint_many(NOW_MS + 3_000, 0, 2)
    assert len({*early, *late, *again}) == 8
    assert [id_time_ms(each) for each in minter.mint_many(NOW_MS, 0, 2)] == [NOW_MS] * 2


def test_more_ids_than_fit_in_a_millisecond_borrow_from_the_next() -> None:
    minter = IdMinter()
    minted = [minter.mint(NOW_MS) for _ in range(10_000)]
    assert minted == sorted(set(minted))
    assert id_time_ms(minted[0]) == NOW_MS
    assert id_time_ms(minted[-1]) == NOW_MS + 2


def test_minted_ids_are_uuids_of_version_7() -> None:
    order_id = IdMinter().mint(NOW_MS, 1023)
    uuid = UUID(bytes=order_id)
    assert uuid.version == 7
    assert uuid.variant == "specified in RFC 4122"
    assert format_id(order_id) == str(uuid)
    assert parse_id(str(uuid)) == order_id


@pytest.mark.parametrize(
    "text", ["", "x", "00000000-0000-4000-8000-000000000000", "0" * 33, "019a\x00"]
)
def test_texts_that_are_no_uuidv7_are_refused(text: str) -> None:
    with pytest.raises(Rejected) as caught:
        parse_id(text)
    assert caught.value.place == "/order_id"


@pytest.mark.parametrize(
    ("offset_ms", "code"),
    [
        (-24 * 3600 * 1000, None),
        (-24 * 3600 * 1000 - 1, "order-id-too-old"),
        (300_000, None),
        (300_001, "order-id-ahead"),
    ],
)
def test_client_ids_are_taken_from_a_day_ago_to_five_minutes_ahead(
    offset_ms: int, code: str | None
) -> None:
    order_id = IdMinter().mint(NOW_MS + offset_ms)
    if code is None:
        check_client_id_time(order_id, NOW_MS)
    else:
        with pytest.raises(Rejected) as caught:
            check_client_id_time(order_id, NOW_MS)
        assert caught.value.code == code


def test_floor_is_below_every_id_of_its_millisecond_and_above_the_one_before() -> None:
    minter = IdMinter()
    before = minter.mint(NOW_MS - 1)
    first = minter.mint(NOW_MS)
    assert before < id_floor(NOW_MS) < first


def test_display_numbers_are_stable_and_exact_as_a_double() -> None:
    order_id = IdMinter().mint(NOW_MS, 7)
    number = display_number(order_id)
    assert number == display_number(order_id)
    assert 0 < number < 2**53
    assert int(float(number)) == number
