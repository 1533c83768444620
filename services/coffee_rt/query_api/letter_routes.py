"""The routes of dead letters: paths, bodies and what their document says. All need the scope admin."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import Request

from coffee_rt.domain.intake import IncomingOrder
from coffee_rt.domain.keys import Access, Principal
from coffee_rt.query_api.letters import LetterService, RedriveWish
from coffee_rt.query_api.routing import Page, Route, json_body, query_of
from coffee_rt.store.amending import ORDER_BYTES_MAX

LETTERS_PATH = "/api/v1/dead-letters"
LETTER_PATH = "/api/v1/dead-letters/{letter_id:row}"
_BODY_PROBLEMS = {413: "The body is too large.", 415: "The body is not plain application/json."}


def letter_routes(letters: LetterService) -> list[Route]:
    """All of them; everything they need is given."""

    async def amend(request: Request, by: Principal) -> Page:
        body = await json_body(request, ORDER_BYTES_MAX)
        return await letters.amend(by, request.path_params["letter_id"], body)

    async def redrive(request: Request, by: Principal) -> Page:
        return await letters.redrive(by, await json_body(request, ORDER_BYTES_MAX))

    return [
        Route(
            LETTERS_PATH,
            "dead_letters",
            Access.ADMIN,
            lambda request, by: letters.page(by.tenant, query_of(request)),
            ["limit", "before", "code", "since", "until"],
            description="Records that could not be stored, newest first.",
        ),
        Route(
            f"{LETTERS_PATH}/redrive",
            "redrive_letters",
            Access.ADMIN,
            redrive,
            method="POST",
            description="Send the oldest dead letters of a choice again; each is stored once.",
            body=_schema(RedriveWish),
            problems=_BODY_PROBLEMS,
        ),
        Route(
            LETTER_PATH,
            "dead_letter",
            Access.ADMIN,
            lambda request, by: letters.letter(by.tenant, request.path_params["letter_id"]),
            description="One dead letter: its bytes, its order where it can be read, what became of it.",
        ),
        Route(
            LETTER_PATH,
            "amend_letter",
            Access.ADMIN,
            amend,
            method="PUT",
            description="Keep an amended order, which a redrive stores in place of the letter's bytes.",
            body=_schema(IncomingOrder),
            problems={**_BODY_PROBLEMS, 409: "The letter was sent already."},
        ),
        Route(
            f"{LETTER_PATH}/redrive",
            "redrive_letter",
            Access.ADMIN,
            lambda request, by: letters.redrive_one(by, request.path_params["letter_id"]),
            method="POST",
            description="Send one dead letter again; it is stored once, however often this is repeated.",
        ),
    ]


def _schema(kind: Any) -> dict[str, Any]:
    """The JSON schema of a body, in one piece."""
    schema = msgspec.json.schema(kind)
    [made] = schema["$defs"].values()
    return dict(made)
