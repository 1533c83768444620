"""Amounts are exact, and everything that is not a plain positive decimal is refused."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coffee_rt.domain.money import PRICE_MINOR_MAX, format_minor, parse_minor
from coffee_rt.errors import Rejected


@given(st.integers(1, PRICE_MINOR_MAX), st.integers(0, 4))
def test_text_and_minor_units_are_inverse(minor: int, decimals: int) -> None:
    text = format_minor(minor, decimals)
    assert Decimal(text).scaleb(decimals) == minor
    assert parse_minor(text.encode(), decimals) == minor


@pytest.mark.parametrize(
    ("text", "minor"),
    [(b"4", 400), (b"4.5", 450), (b"4.50", 450), (b"4.5000", 450), (b"0.01", 1), (b"007.10", 710)],
)
def test_plain_decimals_are_taken(text: bytes, minor: int) -> None:
    assert parse_minor(text, 2) == minor


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"0", "greater than zero"),
        (b"-0", "greater than zero"),
        (b"-1", "greater than zero"),
        (b"0.001", "more than 2 decimals"),
        (b"4.505", "more than 2 decimals"),
        (b"1e400", "exponent"),
        (b"1E5", "exponent"),
        (b"NaN", "decimal number"),
        (b"Infinity", "decimal number"),
        (b"", "decimal number"),
        (b" 4", "decimal number"),
        (b"4,50", "decimal number"),
        (b"+4", "decimal number"),
        ("٤".encode(), "decimal number"),
        (b"10000000000.01", "at most"),
        (b"9" * 1_000_000, "too many digits"),
        (b"4.50\n", "decimal number"),
    ],
)
def test_other_numbers_are_refused_saying_why(text: bytes, why: str) -> None:
    with pytest.raises(Rejected, match=why) as caught:
        parse_minor(text, 2)
    assert caught.value.place == "/price"


def test_negative_amounts_are_shown_with_their_sign() -> None:
    assert format_minor(-5, 2) == "-0.05"
    assert format_minor(-5, 0) == "-5"
