"""The OpenAPI 3.1 document: the framework's own routes and the hot ones, from the structs that read them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from coffee_rt.domain.intake import IncomingOrder
from coffee_rt.order_api.compat import CompatOrder
from coffee_rt.order_api.routes import BATCH_PATH, ORDERS_PATH, RECENT_PATH

_REF = "#/components/schemas/{name}"

AckLabel = Literal["logged", "stored", "visible", "dead-letter"]
ReplicasLevel = Annotated[
    Literal["memory", "disk"] | msgspec.UnsetType,
    msgspec.Meta(description="Where the replicas have it; absent where none are waited for."),
]


class Accepted(msgspec.Struct):
    """The order is in the log, on disk."""

    order_id: Annotated[str, msgspec.Meta(extra_json_schema={"format": "uuid"})]
    position: Annotated[
        str, msgspec.Meta(description="Where it was logged; reads can wait for it.")
    ]
    ack: AckLabel
    replicas: Annotated[
        int, msgspec.Meta(description="Replicas of the log that have it, as far as waited for.")
    ]
    duplicate: bool
    replicas_level: ReplicasLevel = msgspec.UNSET
    order: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class ProblemError(msgspec.Struct):
    """One fault and its place."""

    place: str
    code: str
    detail: str


class ProblemBody(msgspec.Struct):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[ProblemError] | msgspec.UnsetType = msgspec.UNSET


class RecordResult(msgspec.Struct):
    """What became of one record of a batch: 202 with an id, or a problem."""

    index: int
    status: int
    order_id: str | msgspec.UnsetType = msgspec.UNSET
    position: str | msgspec.UnsetType = msgspec.UNSET
    duplicate: bool | msgspec.UnsetType = msgspec.UNSET
    ack: Annotated[
        AckLabel | msgspec.UnsetType,
        msgspec.Meta(description="dead-letter where the record could not be stored after all."),
    ] = msgspec.UNSET
    problem: ProblemBody | msgspec.UnsetType = msgspec.UNSET


class BatchAccepted(msgspec.Struct):
    """Each record was taken or refused on its own."""

    accepted: int
    rejected: int
    failed: Annotated[
        int,
        msgspec.Meta(description="Outcome unknown or refused for now: repeat with the same key."),
    ]
    duplicates: int
    ack: AckLabel
    replicas: Annotated[
        int, msgspec.Meta(description="Replicas of the log that have each record accepted.")
    ]
    results: list[RecordResult]
    replicas_level: ReplicasLevel = msgspec.UNSET


_STRUCTS = (IncomingOrder, CompatOrder, Accepted, BatchAccepted, ProblemBody)

_PROBLEMS = {
    "400": "Not readable: JSON, encoding, a header or a parameter.",
    "401": "No valid API key.",
    "403": "The API key lacks the scope ingest.",
    "408": "The request took too long to arrive.",
    "409": "The Idempotency-Key or order_id was used with another body.",
    "413": "Too large.",
    "415": "Another Content-Type or Content-Encoding than those listed.",
    "422": "A field can't be taken; errors say which.",
    "429": "Too many requests; see Retry-After and RateLimit-*.",
    "431": "The headers are too large.",
    "503": "Not now (see Retry-After), or outcome unknown: repeat with the same key.",
}
_LIMIT_HEADERS = {
    name: {"schema": {"type": "integer"}, "description": text}
    for name, text in (
        ("RateLimit-Limit", "Requests a minute."),
        ("RateLimit-Remaining", "Requests left in this minute."),
        ("RateLimit-Reset", "Seconds until the next minute."),
    )
}


def _parameter(name: str, place: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": place, "required": False, "schema": schema, "description": text}


def _parameters(prefer: str) -> list[dict[str, Any]]:
    return [
        _parameter(
            "Idempotency-Key",
            "header",
            {"type": "string", "pattern": "^[!-~]{1,255}$"},
            "Makes a repetition safe. In a batch record i counts as having the key K#i.",
        ),
        _parameter("Prefer", "header", {"type": "string", "examples": [prefer]}, "See RFC 7240."),
        _parameter(
            "ack",
            "query",
            {"enum": ["logged", "stored", "visible"], "default": "logged"},
            "How far the order must have come before the answer.",
        ),
        _parameter(
            "wait_ms",
            "query",
            {"type": "integer", "minimum": 0},
            "Longest wait for ack; then the answer names the level reached.",
        ),
    ]


def _problems() -> dict[str, Any]:
    schema = {"$ref": _REF.format(name="ProblemBody")}
    return {
        status: {
            "description": text,
            "content": {"application/problem+json": {"schema": schema}},
        }
        for status, text in _PROBLEMS.items()
    }


def _post(
    summary: str, body: dict[str, Any], answer: str, prefer: str, description: str
) -> dict[str, Any]:
    accepted: dict[str, Any] = {
        "description": description,
        "headers": dict(_LIMIT_HEADERS),
        "content": {"application/json": {"schema": {"$ref": _REF.format(name=answer)}}},
    }
    if answer == "Accepted":
        accepted["headers"]["Location"] = {"schema": {"type": "string"}}
    return {
        "post": {
            "summary": summary,
            "operationId": summary.lower().replace(" ", "_"),
            "tags": ["orders"],
            "parameters": _parameters(prefer),
            "requestBody": {"required": True, "content": body},
            "responses": {"202": accepted, **_problems()},
            "security": [{"bearer": []}, {"api_key": []}],
        }
    }


def _compat(path: str) -> dict[str, Any]:
    return {
        "post": {
            "summary": f"Place an order as the published coffee-rt takes it ({path})",
            "operationId": "compat" + path.replace("/", "_"),
            "tags": ["compatibility"],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"$ref": _REF.format(name="CompatOrder")}}
                },
            },
            "security": [{"bearer": []}, {"api_key": []}],
            "responses": {
                "200": {
                    "description": "Taken.",
                    "content": {"application/json": {"schema": {"type": "object"}}},
                },
                **{
                    status: {
                        "description": text,
                        "content": {"application/json": {"schema": {"type": "object"}}},
                    }
                    for status, text in _PROBLEMS.items()
                },
            },
        }
    }


def _moved(path: str) -> dict[str, Any]:
    return {
        "summary": f"The list of orders is at {path}, of query_api",
        "operationId": "moved_list_of_orders",
        "tags": ["orders"],
        "responses": {
            "307": {
                "description": "Ask there.",
                "headers": {"Location": {"schema": {"type": "string"}}},
            }
        },
    }


def hot_document() -> dict[str, Any]:
    """Paths and components of the hot routes, to be merged into the framework's document."""
    _schemas, components = msgspec.json.schema_components(_STRUCTS, ref_template=_REF)
    order = {"$ref": _REF.format(name="IncomingOrder")}
    array = {"type": "array", "items": order, "minItems": 1}
    batch = {
        "application/json": {"schema": array},
        "application/x-ndjson": {
            "schema": order,
            "example": '{"store":"uptown","drink":"latte","price":"4.50"}\n',
        },
    }
    paths = {
        ORDERS_PATH: _post(
            "Place an order",
            {"application/json": {"schema": order}},
            "Accepted",
            "return=representation",
            "In the log, on disk. A duplicate is answered like the first time.",
        ),
        BATCH_PATH: _post(
            "Place a batch of orders",
            batch,
            "BatchAccepted",
            "return=minimal",
            "Each record taken or refused on its own; bodies may be gzip or zstd.",
        ),
    }
    for path in ("/api/order", "/api/v1/order", "/api/v2/order", "/api/v3/order"):
        paths[path] = _compat(path)
    # Where a router gives every method of the path to this process.
    paths[ORDERS_PATH]["get"] = _moved(RECENT_PATH)
    security = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    return {"paths": paths, "components": {"schemas": components, "securitySchemes": security}}
