"""Instants at the edge: ISO 8601 text with an offset -> Unix microseconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from coffee_rt.errors import Rejected

TEXT_MAX = 40
OFFSET_SECONDS_MAX = 14 * 3600
"""No place on earth is further from UTC."""
SECONDS_MAX = 253_370_764_799
"""The end of the year 9998: what is aligned upwards from it can still be written as a date."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_US = 86_400_000_000


def parse_instant(text: str, place: str, *, is_utc_assumed: bool = False) -> int:
    """Unix microseconds of e.g. 2026-03-01T09:30:00+01:00; digits past microseconds are cut off.

    Raises Rejected when it is no instant, or has no offset (unless `is_utc_assumed`), or its offset is
    larger than 14 hours.
    """
    # isprintable: the parser stops at a NUL and takes what is before it.
    if len(text) > TEXT_MAX or text[10:11] not in ("T", "t", " ") or not text.isprintable():
        raise Rejected("bad-time", _FORMAT, place)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise Rejected("bad-time", _FORMAT, place) from None
    zone = at.tzinfo
    if zone is not UTC:
        if zone is None:
            if not is_utc_assumed:
                raise Rejected("bad-time", "needs an offset from UTC, such as Z or +01:00", place)
            at = at.replace(tzinfo=UTC)
        elif abs(_offset_seconds(at)) > OFFSET_SECONDS_MAX:
            raise Rejected("bad-time", "has an offset of more than 14 hours", place)
    since = at - _EPOCH
    return since.days * _DAY_US + since.seconds * 1_000_000 + since.microseconds


_FORMAT = "must be an ISO 8601 instant such as 2026-03-01T09:30:00Z"


def _offset_seconds(at: datetime) -> float:
    offset = at.utcoffset()
    return (offset or timedelta(0)).total_seconds()


def parse_seconds(text: str) -> int:
    """Unix seconds of an ISO 8601 instant as people write it: without an offset it is UTC. Raises ValueError for
    anything else, and outside the years 1970 to 9998: of what is further off no date can be made again."""
    at = datetime.fromisoformat(text)
    seconds = int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
    if not 0 <= seconds <= SECONDS_MAX:
        raise ValueError("not of the years 1970 to 9998")
    return seconds


def check_ordered_at(ordered_at_us: int, now_us: int, ahead_s: int, age_s: int, place: str) -> None:
    """Raises Rejected for an event time too far from now."""
    if ordered_at_us > now_us + ahead_s * 1_000_000:
        raise Rejected("time-ahead", f"is more than {ahead_s // 60} minutes in the future", place)
    if ordered_at_us < now_us - age_s * 1_000_000:
        raise Rejected("time-too-old", f"is more than {age_s // 86400} days ago", place)


def format_instant(at_us: int) -> str:
    """ISO 8601 in UTC with Z; microseconds only where there are any."""
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat().replace("+00:00", "Z")
