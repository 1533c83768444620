"""What a client may say, and how a session may end (docs/protocol.md). Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from coffee_rt.domain.orders import DIMENSION_BYTES_MAX
from coffee_rt.errors import CoffeeRtError, Overload, Rejected

SUBPROTOCOL = "coffee-rt.v1"
TOKEN_SUBPROTOCOL = "bearer."
"""A browser can't set headers: it may offer this plus its key as a second subprotocol."""

CLOSE_DONE = 1000
CLOSE_BAD_FRAME = 1002
CLOSE_UNSUPPORTED = 1003
CLOSE_POLICY = 1008
CLOSE_TOO_BIG = 1009
CLOSE_DRAIN = 1012
CLOSE_TRY_LATER = 1013
CLOSE_BAD_MESSAGE = 4400
CLOSE_NO_TOKEN = 4401
CLOSE_TOO_MANY = 4429

FILTER_VALUES_MAX = 64
"""Values of a filter in one subscription; a longer list makes every flush slower for all."""
SUBSCRIPTION_ID_MAX = 0xFFFF
LANES_MAX = 64

Filter = tuple[tuple[int, frozenset[str]], ...]
"""(index of the dimension, its allowed texts), by index; hashable, so that equal filters share frames."""


class Resume(msgspec.Struct, frozen=True):
    epoch: str
    versions: list[int]


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    token: str


class Subscribe(msgspec.Struct, frozen=True, tag="subscribe"):
    id: int
    channel: str
    filter: dict[str, list[str] | str] = {}
    since: int | None = None
    resume: Resume | None = None


class Unsubscribe(msgspec.Struct, frozen=True, tag="unsubscribe"):
    id: int


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    at: int | float | None = None


ClientMessage = Hello | Subscribe | Unsubscribe | Ping

_decode = msgspec.json.Decoder(ClientMessage).decode


def close_code_of(error: CoffeeRtError) -> int:
    """How a session ends that is refused for what looking at its token gave."""
    if isinstance(error, Rejected):
        return CLOSE_POLICY
    is_limit = isinstance(error, Overload) and error.status == 429
    return CLOSE_TOO_MANY if is_limit else CLOSE_TRY_LATER


def parse_message(text: bytes) -> ClientMessage:
    """Raises Rejected (bad-message) for anything that is no message of ours."""
    try:
        decoded: ClientMessage = _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected("bad-message", str(error), status=400) from None
    if isinstance(decoded, Subscribe) and not 0 <= decoded.id <= SUBSCRIPTION_ID_MAX:
        raise Rejected("bad-message", f"id must be from 0 to {SUBSCRIPTION_ID_MAX}", "/id", 400)
    return decoded


def parse_filter(wanted: dict[str, list[str] | str], dimensions: Sequence[str]) -> Filter:
    """A filter over a channel's dimensions. Raises Rejected (bad-filter)."""
    parsed = []
    for name, texts in wanted.items():
        if name not in dimensions:
            known = ", ".join(dimensions) or "none"
            raise Rejected("bad-filter", f"no such dimension; known: {known}", f"/filter/{name}")
        allowed = frozenset([texts] if isinstance(texts, str) else texts)
        if not 0 < len(allowed) <= FILTER_VALUES_MAX:
            raise Rejected(
                "bad-filter", f"must have 1 to {FILTER_VALUES_MAX} values", f"/filter/{name}"
            )
        if any(len(text) > DIMENSION_BYTES_MAX for text in allowed):
            raise Rejected("bad-filter", "a value is too long", f"/filter/{name}")
        if any("\x00" in text for text in allowed):
            # PostgreSQL, which reads what is older than the window, can't be asked for it.
            raise Rejected("bad-filter", "a value must not contain NUL", f"/filter/{name}")
        parsed.append((dimensions.index(name), allowed))
    return tuple(sorted(parsed, key=lambda part: part[0]))


def is_match(wanted: Filter, dimensions: Sequence[str]) -> bool:
    return all(dimensions[index] in allowed for index, allowed in wanted)


def parse_mark(mark: str) -> Resume | None:
    """The resume point of an event stream from its Last-Event-ID; None when it is not one of ours."""
    epoch, _, versions = mark.rpartition(":")
    try:
        numbers = [int(version) for version in versions.split(",")]
    except ValueError:
        return None
    return Resume(epoch, numbers) if epoch and len(numbers) <= LANES_MAX else None
