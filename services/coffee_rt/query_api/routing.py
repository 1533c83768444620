"""What a route of query_api is, and what it reads of a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.convertors import Convertor, register_url_convertor

from coffee_rt.domain.keys import Access, Principal
from coffee_rt.errors import Rejected


@dataclass(frozen=True, slots=True)
class Page:
    """An answer's body and its freshness headers."""

    body: Any
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200


Handler = Callable[[Request, Principal], Awaitable[Page]]


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `problems` are answers beside those that every route has."""

    path: str
    name: str
    access: Access
    handler: Handler
    parameters: Sequence[str] = ()
    method: str = "GET"
    description: str = ""
    body: Mapping[str, Any] | None = None
    """JSON schema of the body it takes."""
    problems: Mapping[int, str] = field(default_factory=dict)

    @property
    def path_parts(self) -> list[tuple[str, str]]:
        """(name, convertor) of each variable part."""
        parts = [part[1:-1] for part in self.path.split("/") if part.startswith("{")]
        return [(name, kind) for name, _, kind in (part.partition(":") for part in parts)]


class RowIdConvertor(Convertor[int]):
    """A row's number: what is none finds no route, so that words may stand in its place."""

    regex = "[0-9]{1,18}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("row", RowIdConvertor())


def query_of(request: Request) -> dict[str, list[str]]:
    """The query, each name with all its values."""
    query: dict[str, list[str]] = {}
    for name, value in request.query_params.multi_items():
        query.setdefault(name, []).append(value)
    return query


async def json_body(request: Request, bytes_max: int) -> bytes:
    """The body of a request that says it is JSON. Raises Rejected (413, 415). How long it may take is the
    server's bound."""
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.replace(" ", "").replace('"', "").lower()
    if kind.strip().lower() != "application/json" or (
        "charset=" in charset and "charset=utf-8" not in charset
    ):
        raise Rejected("wrong-content-type", "must be application/json", "Content-Type", 415)
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Rejected("wrong-content-encoding", "must not be encoded", "Content-Encoding", 415)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > bytes_max:
            detail = f"The body must be at most {bytes_max} bytes."
            raise Rejected("too-large", detail, status=413)
    return bytes(body)
