"""Money: integer minor units inside, exact decimals at the edge. No float ever holds an amount."""

from __future__ import annotations

import re

from coffee_rt.errors import Rejected

PRICE_MINOR_MAX = 10**12
"""Largest unit price, in minor units. Times QUANTITY_MAX it still fits a bigint a thousand times over."""

_PLAIN = re.compile(rb"([0-9]{1,16})(?:\.([0-9]{1,16}))?\Z")
_EXPONENT = re.compile(rb"-?[0-9]+(\.[0-9]+)?[eE][-+]?[0-9]+\Z")


def parse_minor(text: bytes, decimals: int, place: str = "/price") -> int:
    """Minor units of a decimal number written in ASCII, e.g. b"4.5" with 2 decimals gives 450.

    Raises Rejected for anything but a plain, positive decimal with at most `decimals` places that are
    not zero; nothing is ever rounded.
    """
    match = _PLAIN.match(text)
    if match is None:
        raise Rejected("bad-price", _why_not_plain(text), place)
    whole, fraction = match.groups(b"")
    if len(fraction) > decimals:
        if fraction[decimals:].strip(b"0"):
            raise Rejected("bad-price", f"has more than {decimals} decimals", place)
        fraction = fraction[:decimals]
    minor = int(whole + fraction.ljust(decimals, b"0"))
    if minor <= 0:
        raise Rejected("bad-price", "must be greater than zero", place)
    if minor > PRICE_MINOR_MAX:
        raise Rejected(
            "bad-price", f"must be at most {format_minor(PRICE_MINOR_MAX, decimals)}", place
        )
    return minor


def _why_not_plain(text: bytes) -> str:
    if text[:1] == b"-":
        return "must be greater than zero"
    if _EXPONENT.match(text):
        return "must be written without an exponent"
    if re.fullmatch(rb"[0-9]+(\.[0-9]+)?", text):
        return "has too many digits"
    return "must be a decimal number such as 4.50, as a JSON number or string"


def format_minor(minor: int, decimals: int) -> str:
    """Decimal text of an amount, always with `decimals` places: 450 with 2 gives "4.50"."""
    sign = "-" if minor < 0 else ""
    digits = str(abs(minor)).rjust(decimals + 1, "0")
    return f"{sign}{digits[:-decimals]}.{digits[-decimals:]}" if decimals else f"{sign}{digits}"
