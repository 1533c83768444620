"""Dead letters as query_api serves them: listed, shown, amended, sent again.

They are rows of PostgreSQL and nothing else, so all of it needs the primary. Everything is of the caller's
tenant: another tenant's letter is as unknown as one that never was.
"""

from __future__ import annotations

from secrets import token_hex
from typing import Annotated, Any

import msgspec

from coffee_rt.domain.json_text import check_encoding, check_no_duplicates, reject_decode
from coffee_rt.domain.keys import Principal
from coffee_rt.domain.orders import check_text
from coffee_rt.errors import Rejected
from coffee_rt.query_api import answers, parameters
from coffee_rt.query_api.routing import Page
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import Clock
from coffee_rt.store.amending import LetterAmender
from coffee_rt.store.redrives import (
    LETTERS_MAX,
    LetterDesk,
    LetterRedriver,
    LetterSelection,
    Outcome,
    Redriven,
)

LETTERS_DEFAULT = 50
CODE_BYTES_MAX = 100
_HEADERS = {"X-Data-Source": "primary", "Cache-Control": "no-store"}
_LetterId = Annotated[int, msgspec.Meta(ge=1, lt=10**18)]


class RedriveWish(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which letters to send: `ids`, or what matches all the other fields, or `all`."""

    ids: Annotated[list[_LetterId], msgspec.Meta(max_length=LETTERS_MAX)] = []
    code: Annotated[str, msgspec.Meta(max_length=CODE_BYTES_MAX)] | None = None
    since: str | None = None
    until: str | None = None
    all: bool = False
    limit: Annotated[int, msgspec.Meta(ge=1, le=LETTERS_MAX)] = LETTERS_MAX
    after: Annotated[int, msgspec.Meta(ge=0, lt=10**18)] = 0
    dry_run: bool = False


_decode_wish = msgspec.json.Decoder(RedriveWish).decode


class LetterService:
    """Stateless; shared by all requests."""

    def __init__(
        self,
        *,
        desk: LetterDesk,
        redriver: LetterRedriver,
        amender: LetterAmender,
        database: CircuitBreaker,
        clock: Clock,
        decimals: int,
    ) -> None:
        self._desk = desk
        self._redriver = redriver
        self._amender = amender
        self._database = database
        self._clock = clock
        self._decimals = decimals

    async def page(self, tenant: int, query: parameters.Parameters) -> Page:
        """Letters that wait, newest first, in pages."""
        parameters.refuse_unknown(query, {"limit", "before", "code", "since", "until"})
        before = parameters.single(query, "before")
        if before is not None and (
            not before.isascii() or not before.isdigit() or len(before) > 18
        ):
            raise Rejected("bad-parameter", "must be the id of a dead letter", "before", 400)
        limit = parameters.parse_limit(query, LETTERS_DEFAULT, LETTERS_MAX)
        selection = _selection(
            tenant,
            parameters.text_filter(query, "code"),
            parameters.single(query, "since"),
            parameters.single(query, "until"),
        )
        async with self._database:
            letters = await self._desk.page(
                selection, limit, None if before is None else int(before)
            )
        shown = [answers.dead_letter_body(letter) for letter in letters]
        cursor = str(shown[-1]["id"]) if len(shown) == limit else None
        return Page({"dead_letters": shown, "next": cursor}, _HEADERS)

    async def letter(self, tenant: int, letter_id: int) -> Page:
        """One letter with all that is known of it."""
        async with self._database:
            letter = await self._desk.find(tenant, letter_id)
        return Page(answers.whole_letter_body(letter, self._decimals), _HEADERS)

    async def amend(self, by: Principal, letter_id: int, body: bytes) -> Page:
        """Keep an amended order beside the letter's own bytes."""
        now_ms = int(self._clock.now() * 1000)
        async with self._database:
            letter = await self._desk.amend(
                by.tenant,
                letter_id,
                lambda letter: self._amender.order(letter, body, now_ms),
                by.key_id or "anyone",
            )
        return Page(answers.whole_letter_body(letter, self._decimals), _HEADERS)

    async def redrive_one(self, by: Principal, letter_id: int) -> Page:
        """Send a letter. One that was sent before is left as it is, so that this may be repeated."""
        async with self._database:
            await self._desk.find(by.tenant, letter_id)
            selection = LetterSelection(ids=(letter_id,), tenant=by.tenant)
            await self._redriver.send(selection, _name(by))
            # As it is now, whoever sent it.
            letter = await self._desk.find(by.tenant, letter_id)
        return Page(answers.whole_letter_body(letter, self._decimals), _HEADERS)

    async def redrive(self, by: Principal, body: bytes) -> Page:
        """Send the next letters of a choice, oldest first, in one transaction."""
        wish = read_wish(body)
        selection = _selection(by.tenant, wish.code, wish.since, wish.until, tuple(wish.ids))
        name = _name(by)
        async with self._database:
            done = await self._redriver.send(
                selection,
                name,
                letters_max=wish.limit,
                after=wish.after,
                is_dry_run=wish.dry_run,
            )
        return Page(_sent(done, name, wish.dry_run), _HEADERS)


def read_wish(body: bytes) -> RedriveWish:
    """Raises Rejected (422) with its place."""
    try:
        wish = _decode_wish(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        check_encoding(body)
        reject_decode(error)
    # Of `dry_run` twice, with two values, nobody can say which was meant.
    check_no_duplicates(body)
    for place, text in (("/since", wish.since), ("/until", wish.until)):
        if text is not None:
            _check_time(text, place)
    if wish.code is not None:
        check_text(wish.code, CODE_BYTES_MAX, "/code")
    has_filter = (wish.code, wish.since, wish.until) != (None, None, None)
    if not (wish.ids or has_filter or wish.all):
        raise Rejected("no-letters", "choose by ids, code, since or until, or say all", "/ids")
    return wish


def _check_time(text: str, place: str) -> None:
    """Raises Rejected (422) for a time of a body that is none."""
    try:
        parameters.parse_time(text, place)
    except Rejected as error:
        raise Rejected("bad-time", error.detail, place) from None


def _selection(
    tenant: int,
    code: str | None,
    since: str | None,
    until: str | None,
    ids: tuple[int, ...] = (),
) -> LetterSelection:
    return LetterSelection(
        ids=ids,
        code=code,
        tenant=tenant,
        start=None if since is None else parameters.parse_time(since, "since"),
        end=None if until is None else parameters.parse_time(until, "until"),
    )


def _name(by: Principal) -> str:
    """Under which the letters remember who sent them."""
    return f"api:{by.key_id or 'anyone'}:{token_hex(8)}"


def _sent(done: list[Redriven], name: str, is_dry_run: bool) -> dict[str, Any]:
    counts = {outcome.value: 0 for outcome in Outcome}
    for each in done:
        counts[each.outcome.value] += 1
    return {
        "redrive": None if is_dry_run else name,
        "tried": len(done),
        "outcomes": counts,
        "letters": [
            {"id": each.id, "outcome": each.outcome.value, "code": each.code, "detail": each.detail}
            for each in done
        ],
        # Whoever goes on gives it as `after`; without it the letters that are still bad come first again.
        "next": done[-1].id if done else None,
    }
