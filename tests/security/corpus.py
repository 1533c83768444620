"""Bad input as data: orders that must be refused, with the status, the code and the place that say why.

Every text is an order that is good but for one thing. `code` and `place` are those of a single order.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

NOW = datetime.now(UTC).replace(microsecond=0)
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Bad:
    """`array`: code of the whole batch (JSON) that is refused for it. `compat`: the code of the older
    routes where it is another; "" where they take it, as they promised."""

    name: str
    text: bytes
    status: int
    code: str
    place: str = ""
    array: str | None = None
    compat: str | None = None
    is_small: bool = True
    """Else an order of this size is refused for its size alone."""


def order(**raw: bytes | None) -> bytes:
    """An order with members replaced, added, or (None) left out; values are JSON as it is sent."""
    fields: dict[str, bytes | None] = {
        "store": b'"uptown"',
        "drink": b'"latte"',
        "price": b"4.50",
        "timestamp": at(NOW),
        **raw,
    }
    members = [b'"%b":%b' % (name.encode(), value) for name, value in fields.items() if value]
    return b"{" + b",".join(members) + b"}"


def at(moment: datetime) -> bytes:
    return f'"{moment.isoformat()}"'.encode()


GOOD = order()


def _field(
    field: str, values: dict[str, bytes], code: str, status: int = 422, **more: str | bool
) -> list[Bad]:
    return [
        Bad(f"{field} {name}", order(**{field: value}), status, code, f"/{field}", **more)  # type: ignore[arg-type]
        for name, value in values.items()
    ]


BAD: list[Bad] = [
    *_field("store", {"NUL": b'"a\\u0000b"'}, "bad-text"),
    *_field("drink", {"NUL": b'"\\u0000"'}, "bad-text"),
    *_field("note", {"NUL": b'"\\u0000"'}, "bad-text", compat=""),
    *_field("customer_id", {"NUL": b'"\\u0000"'}, "bad-text", compat=""),
    *_field("store", {"empty": b'""', "spaces": b'" \\t"'}, "empty-text"),
    *_field("store", {"129 bytes": b'"' + b"x" * 129 + b'"'}, "too-long"),
    *_field("drink", {"1 MB": b'"' + b"x" * MEGABYTE + b'"'}, "too-long", is_small=False),
    *_field("note", {"1 MB": b'"' + b"x" * MEGABYTE + b'"'}, "too-long", is_small=False, compat=""),
    *_field("store", {"null": b"null", "number": b"7", "list": b"[]"}, "wrong-type"),
    *_field("drink", {"null": b"null", "object": b"{}"}, "wrong-type"),
    *_field(
        "price",
        {
            "1e400": b"1e400",
            "-1e400": b"-1e400",
            "-0": b"-0",
            "0": b"0",
            "0.00": b"0.00",
            "negative": b"-4.50",
            "2^53+1 as float": b"9007199254740993e0",
            "2^63": b"9223372036854775808",
            "too many decimals": b"4.505",
            "50 000 digits": b"1" * 50_000,
            "text NaN": b'"NaN"',
            "text Infinity": b'"Infinity"',
            "text -0": b'"-0"',
            "text with comma": b'"4,50"',
            "full-width digits": '"４.50"'.encode(),
            "text of NUL": b'"\\u0000"',
            "object": b'{"amount":"4.50"}',
            "empty": b'""',
            "null": b"null",
            "true": b"true",
            "list": b"[]",
        },
        "bad-price",
    ),
    *_field("price", {"10^6 digits": b"1" * 1_000_000}, "bad-price", is_small=False),
    *_field(
        "quantity",
        {"0": b"0", "-0": b"-0", "-1": b"-1", "2^53+1": b"9007199254740993", "2^63": b"%d" % 2**63},
        "bad-quantity",
    ),
    *_field(
        "quantity",
        {
            "1.5": b"1.5",
            "1e400": b"1e400",
            "text": b'"1"',
            "true": b"true",
            "5 000 digits": b"1" * 5000,
        },
        "wrong-type",
    ),
    *_field(
        "timestamp",
        {
            "of +14:01": b'"2026-01-01T00:00:00+14:01"',
            "of -23:59": b'"2026-01-01T00:00:00-23:59"',
            "in year 0": b'"0000-01-01T00:00:00Z"',
            "in year 10000": b'"10000-01-01T00:00:00Z"',
            "in month 13": b'"2026-13-01T00:00:00Z"',
            "a word": b'"tomorrow"',
            "with NUL behind it": b'"2026-01-01T00:00:00+00:00\\u0000"',
            "empty": b'""',
        },
        "bad-time",
    ),
    *_field("timestamp", {"without offset": b'"2026-01-01T00:00:00"'}, "bad-time", compat=""),
    *_field(
        "timestamp",
        {
            "in year 1": b'"0001-01-01T00:00:00+14:00"',
            "ten years past": at(NOW - timedelta(days=3653)),
        },
        "time-too-old",
    ),
    *_field(
        "timestamp",
        {
            "in year 9999": b'"9999-12-31T23:59:59-14:00"',
            "in an hour": at(NOW + timedelta(hours=1)),
        },
        "time-ahead",
    ),
    *_field("prize", {"unknown": b"1"}, "unknown-field", compat=""),
    Bad(
        "a field with a slash, a tilde and a backtick",
        order(**{"a/b~`c`": b"1"}),
        422,
        "unknown-field",
        "/a~1b~0`c`",
        compat="",
    ),
    Bad(
        "a field of 60 000 characters",
        order(**{"x" * 60_000: b"1"}),
        422,
        "unknown-field",
        f"/{'x' * 100}...",
        compat="",
    ),
    *_field("attributes", {"a list": b"[]"}, "wrong-type", compat=""),
    Bad(
        "attributes of a hundred thousand lists",
        order(attributes=b'{"a":[' + b"[]," * 100_000 + b"[]]}"),
        422,
        "too-long",
        is_small=False,
        compat="",
    ),
    *_field("attributes", {"NUL": b'{"a":"\\u0000"}'}, "bad-text", compat=""),
    Bad(
        "attributes twice of a name",
        order(attributes=b'{"a":1,"a":2}'),
        422,
        "duplicate-key",
        "/a",
    ),
    Bad("no store", order(store=None), 422, "missing-field", "/store"),
    Bad("no price", order(price=None), 422, "missing-field", "/price"),
    Bad("store twice", order()[:-1] + b',"store":"b"}', 422, "duplicate-key", "/store"),
    Bad(
        "store twice, once escaped",
        order()[:-1] + b',"\\u0073tore":"b"}',
        422,
        "duplicate-key",
        "/store",
    ),
    Bad("null", b"null", 422, "wrong-type"),
    Bad("a number", b"7", 422, "wrong-type"),
    Bad("a list", b"[]", 422, "wrong-type"),
    *(
        Bad(name, text, 400, "bad-json", array="bad-json")
        for name, text in {
            "NaN": order(price=b"NaN"),
            "Infinity": order(price=b"-Infinity"),
            "lone surrogate in a price": order(price=b'"\\ud800"'),
            "lone surrogate": order(store=b'"\\ud800"'),
            "surrogates reversed": order(store=b'"\\udc00\\ud800"'),
            "trailing garbage": GOOD + b"x",
            "two orders": GOOD + GOOD,
            "cut off": GOOD[:-1],
            "control character": order(store=b'"\x01"'),
        }.items()
    ),
    *(
        Bad(name, text, 400, "bad-encoding")
        for name, text in {
            "not UTF-8": order(store=b'"\xff"'),
            "surrogate in UTF-8": order(store=b'"\xed\xa0\x80"'),
        }.items()
    ),
    *(
        Bad(name, text, 400, "bad-encoding", array="bad-json")
        for name, text in {
            "BOM": b"\xef\xbb\xbf" + GOOD,
            "UTF-16": GOOD.decode().encode("utf-16"),
        }.items()
    ),
    Bad(
        "depth 10 000",
        order(attributes=b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
        400,
        "too-deep",
        array="too-deep",
    ),
]

BAD_QUERIES: list[tuple[str, str]] = [
    # (query, the parameter that is at fault)
    ("last=0h", "last"),
    ("last=-1h", "last"),
    ("last=9223372036854775808h", "last"),
    ("last=NaN", "last"),
    ("last=" + "1" * 5000 + "h", "last"),
    ("last=1h&last=2h", "last"),
    ("last=1h&from=2026-01-01T00:00:00Z", "last"),
    ("from=2026-01-01T00:00:00", "from"),
    ("from=0001-01-01T00:00:00%2B14:00", "from"),
    ("from=10000-01-01T00:00:00Z", "from"),
    ("from=-0", "from"),
    ("from=1e400", "from"),
    ("to=9999-12-31T23:59:59-14:00", "to"),
    ("to=9223372036854775808", "to"),
    ("limit=0", "limit"),
    ("limit=-1", "limit"),
    ("limit=1.5", "limit"),
    ("limit=9007199254740993", "limit"),
    ("limit=%D9%A3", "limit"),
    ("limit=" + "9" * 5000, "limit"),
    ("store=%00", "store"),
    ("store=%ED%A0%80%00", "store"),
    ("&".join(f"store={n}" for n in range(101)), "store"),
    ("cursor=" + "A" * 10_000, "cursor"),
    ("cursor=%00", "cursor"),
    ("cursor=5b5d&cursor=5b5d", "cursor"),
    *(
        (f"cursor={key.hex()}", "cursor")
        for key in (
            b'[9223372036854775808,"a","b"]',
            b'[-1,"a","b"]',
            b'[0,"a\\u0000","b"]',
            b'[0,"a",["b"]]',
            b'[0,"\xff","b"]',
            b"[" * 5000,
            b"[" + b"9" * 5000 + b"]",
        )
    ),
    ("limit=5&limit=5", "limit"),
    ("bucket=hour&bucket=day", "bucket"),
    ("from=2026-01-01T00:00:00%2B00:00%00", "from"),
    ("from=%EF%BC%92026-01-01T00:00:00Z", "from"),
    ("last=%D9%A1h", "last"),
    ("last=1h%0A", "last"),
    ("group_by=store,store", "group_by"),
    ("group_by=%22%3BDROP%20TABLE%20orders", "group_by"),
    ("order_by=1", "order_by"),
    ("bucket=year", "bucket"),
    ("position=x", "/position"),
    ("position=" + "9" * 5000 + ".1-1", "/position"),
    ("nonsense=1", "nonsense"),
    ("%00=1", "\x00"),
]
