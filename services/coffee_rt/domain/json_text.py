"""What JSON text must be before it is trusted, beyond what the decoder checks: encoding, duplicate keys, and
errors that name their place. RFC 8259 lets a parser take the last of two equal keys; we refuse both.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import msgspec

from coffee_rt.errors import Rejected

_AT_PATH = re.compile(r" - at `(?:key in )?\$(?P<path>[^`]*)`\Z")
_FIELD = re.compile(r"(?s)field `(?P<name>.*)`")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_NAME_CHARACTERS_MAX = 100
"""Of a name that a client made up, in a place: the answer must not be much larger than what it answers."""
_BOMS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def check_encoding(text: bytes) -> None:
    """Raises Rejected for a byte order mark or UTF-16/32: a clear word instead of 'invalid character'."""
    if text[:1] in (b"{", b"[", b" ", b"\n", b"\r", b"\t") and text[1:2] != b"\x00":
        return
    if text.startswith(_BOMS) or b"\x00" in text[:4]:
        raise Rejected("bad-encoding", "must be UTF-8 without a byte order mark", status=400)


def reject_decode(error: Exception) -> NoReturn:
    """Turn what msgspec raised into Rejected at its place (a JSON pointer)."""
    if isinstance(error, RecursionError):
        raise Rejected("too-deep", "is nested too deeply", status=400) from None
    if isinstance(error, UnicodeDecodeError):
        raise Rejected("bad-encoding", "must be valid UTF-8", status=400) from None
    message = str(error)
    if not isinstance(error, msgspec.ValidationError):
        detail = message[:1].lower() + message[1:]
        detail = detail.removeprefix("json is malformed: ").removeprefix("jSON is malformed: ")
        raise Rejected("bad-json", f"is not valid JSON: {detail}", status=400) from None
    at = _AT_PATH.search(message)
    pointer = ""
    if at is not None:
        pointer += "".join(f"/{name or index}" for name, index in _STEP.findall(at["path"]))
        message = message[: at.start()]
    named = _FIELD.search(message)
    if "unknown field" in message and named:
        raise Rejected(
            "unknown-field", "is not a known field", f"{pointer}/{pointer_part(named['name'])}"
        ) from None
    if "missing required field" in message and named:
        raise Rejected("missing-field", "is required", f"{pointer}/{named['name']}") from None
    detail = message.replace("`", "").replace(" | null", "").replace("Expected", "must be")
    raise Rejected("wrong-type", detail[:1].lower() + detail[1:], pointer) from None


def pointer_part(name: str) -> str:
    """A name as part of a JSON pointer (RFC 6901), cut off where it is too long to be one of ours."""
    if len(name) > _NAME_CHARACTERS_MAX:
        name = f"{name[:_NAME_CHARACTERS_MAX]}..."
    return name.replace("~", "~0").replace("/", "~1")


def check_no_duplicates(text: bytes) -> None:
    """Raises Rejected when any object in the text has a key twice. Exact and slow: the last resort after
    a cheap test. The text has been decoded before, so it is valid JSON."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        names = set()
        for name, _value in pairs:
            if name in names:
                raise Rejected("duplicate-key", "is given twice", f"/{pointer_part(name)}")
            names.add(name)

    try:
        # Numbers stay text: a million digits would take Python's int() very long.
        json.loads(text, object_pairs_hook=check, parse_int=str, parse_float=str)
    except RecursionError:
        raise Rejected("too-deep", "is nested too deeply", status=400) from None
    except ValueError as error:
        raise Rejected("bad-json", f"is not valid JSON: {error}", status=400) from None
