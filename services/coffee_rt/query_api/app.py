"""HTTP of query_api: routes, authorisation, problem answers and headers. No logic of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from coffee_rt import __version__
from coffee_rt.domain.keys import Access
from coffee_rt.domain.problems import CONTENT_TYPE, Problem, problem_of
from coffee_rt.errors import Bug, Overload, Rejected, Retryable
from coffee_rt.query_api import metrics
from coffee_rt.query_api.service import Page, QueryService
from coffee_rt.runtime.clock import Clock
from coffee_rt.runtime.health import Health, add_health_routes

Handler = Callable[[Request, int], Awaitable[Page]]


class HeaderMap(Protocol):
    """What is read of a request's headers."""

    def get(self, name: str, /) -> str | None: ...


class Authorizer(Protocol):
    """Who is asking."""

    def tenant_of(self, headers: HeaderMap, access: Access) -> int:
        """Raises Rejected (401, 403) or Overload (503)."""


def build_app(
    service: QueryService, authorizer: Authorizer, health: Health, clock: Clock
) -> FastAPI:
    """The application; everything it needs is given."""
    app = FastAPI(
        title="coffee-rt queries",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/query/openapi.json",
    )
    add_health_routes(app, health)
    _add_problem_handlers(app)
    for path, name, access, handler, parameters in _routes(service):
        _add_route(app, path, name, access, handler, parameters, authorizer, clock)
    return app


def _routes(service: QueryService) -> list[tuple[str, str, Access, Handler, list[str]]]:
    span = ["from", "to", "last", "position"]
    return [
        ("/api/v1/views", "views", Access.READ, lambda request, tenant: service.views(), []),
        (
            "/api/v1/views/{name}",
            "view",
            Access.READ,
            lambda request, tenant: service.view(
                tenant, request.path_params["name"], _query(request)
            ),
            [*span, "group_by", "bucket", "order_by", "limit", "cursor"],
        ),
        (
            "/api/v1/views/{name}/top",
            "view_top",
            Access.READ,
            lambda request, tenant: service.top(
                tenant, request.path_params["name"], _query(request)
            ),
            [*span, "by", "measure", "n"],
        ),
        (
            "/api/v1/top",
            "top",
            Access.READ,
            lambda request, tenant: service.top(tenant, None, _query(request)),
            [*span, "by", "measure", "n"],
        ),
        (
            "/api/v1/orders",
            "orders",
            Access.READ,
            lambda request, tenant: service.recent_orders(tenant, _query(request)),
            ["limit", "before", "store"],
        ),
        (
            # Where order_api points a GET of /api/v1/orders that an Ingress gave to it.
            "/api/v1/orders/recent",
            "recent_orders",
            Access.READ,
            lambda request, tenant: service.recent_orders(tenant, _query(request)),
            ["limit", "before", "store"],
        ),
        (
            "/api/v1/orders/{order_id}",
            "order",
            Access.READ,
            lambda request, tenant: service.order(tenant, request.path_params["order_id"]),
            [],
        ),
        (
            "/api/v1/dead-letters",
            "dead_letters",
            Access.ADMIN,
            lambda request, tenant: service.dead_letters(tenant, _query(request)),
            ["limit", "before"],
        ),
        (
            "/api/dashboard",
            "dashboard",
            Access.READ,
            lambda request, tenant: service.dashboard(tenant),
            [],
        ),
    ]


DESCRIPTIONS = {
    "views": "All views, with their definitions and how far their history is filled.",
    "view": "Rows of a view between two times. Any dimension is a filter, e.g. store=uptown.",
    "view_top": "The N best values of a dimension over a span.",
    "top": "The same, from the cheapest view that has it; by default the 5 best drinks of 30 days.",
    "orders": "Newest orders first.",
    "recent_orders": "The same, under a path of its own.",
    "order": "One order, found from the moment of its 202 on.",
    "dead_letters": "Records that could not be stored, newest first.",
    "dashboard": "The published dashboard object.",
}

PARAMETERS = {
    "from": "First moment: ISO 8601 with an offset, or Unix seconds.",
    "to": "Moment after the last.",
    "last": "A span up to now instead: 90m, 2h, 30d. Default: 24h (30d for a ranking).",
    "position": "A position from a 202: the answer waits until it is inside.",
    "group_by": "Dimensions to keep, separated by commas; default all, empty none.",
    "bucket": "minute, hour, day (no finer than the view's) or total.",
    "order_by": "A measure: largest first. Without it: by bucket and dimensions, in pages.",
    "limit": "Most rows in an answer.",
    "cursor": "`next` of the page before.",
    "by": "Dimension to rank; default drink.",
    "measure": "Measure to rank by; default the count.",
    "n": "How many; default 5.",
    "before": "`next` of the page before.",
    "store": "Only this store.",
}


def _query(request: Request) -> dict[str, list[str]]:
    query: dict[str, list[str]] = {}
    for name, value in request.query_params.multi_items():
        query.setdefault(name, []).append(value)
    return query


def _add_route(
    app: FastAPI,
    path: str,
    name: str,
    access: Access,
    handler: Handler,
    parameters: list[str],
    authorizer: Authorizer,
    clock: Clock,
) -> None:
    async def endpoint(request: Request) -> Response:
        began = clock.monotonic()
        try:
            tenant = authorizer.tenant_of(request.headers, access)
            response = _json(await handler(request, tenant))
        except (Rejected, Overload, Retryable) as error:
            response = problem_response(problem_of(error))
        metrics.REQUESTS.labels(name, f"{response.status_code // 100}xx").inc()
        metrics.SECONDS.labels(name).observe(clock.monotonic() - began)
        return response

    shown = [
        {
            "name": parameter,
            "in": "query",
            "required": False,
            "description": PARAMETERS[parameter],
            "schema": {"type": "string"},
        }
        for parameter in parameters
    ]
    in_path = [
        {"name": part[1:-1], "in": "path", "required": True, "schema": {"type": "string"}}
        for part in path.split("/")
        if part.startswith("{")
    ]
    app.add_api_route(
        path,
        endpoint,
        methods=["GET"],
        name=name,
        operation_id=name,
        description=DESCRIPTIONS[name],
        openapi_extra={"parameters": [*in_path, *shown]},
        responses=_problems(access, is_named="{" in path),
    )


_PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}


def _problems(access: Access, *, is_named: bool) -> dict[int | str, dict[str, Any]]:
    """What a route answers instead, for its document."""
    texts = {
        400: "A parameter is wrong; `errors` names it.",
        401: "No API key, or not a known one.",
        403: f"The API key lacks the scope {access.value}.",
        422: "This is no id of an order.",
        503: "A server is away; see Retry-After.",
    }
    if is_named:
        texts[404] = "There is none of this name or id."
    content = {CONTENT_TYPE: {"schema": _PROBLEM_SCHEMA}}
    return {status: {"description": text, "content": content} for status, text in texts.items()}


def _json(page: Page) -> Response:
    return Response(
        msgspec.json.encode(page.body),
        status_code=page.status,
        headers=page.headers,
        media_type="application/json",
    )


def problem_response(problem: Problem) -> Response:
    """A problem as an answer."""
    return Response(
        problem.to_bytes(),
        status_code=problem.status,
        headers=dict(problem.headers),
        media_type=CONTENT_TYPE,
    )


def _add_problem_handlers(app: FastAPI) -> None:
    async def on_http_error(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            return problem_response(problem_of(Bug()))
        code = {404: "no-such-route", 405: "method-not-allowed"}.get(error.status_code, "error")
        headers = tuple((error.headers or {}).items())
        return problem_response(Problem(error.status_code, code, error.detail, (), headers))

    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_http_error)
