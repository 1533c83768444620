"""HTTP of query_api: routes, authorisation, problem answers and headers. No logic of its own."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.routing import Route as StarletteRoute

from coffee_rt import __version__
from coffee_rt.callers.rate import Quota, RateLimited
from coffee_rt.domain.keys import Access
from coffee_rt.domain.problems import CONTENT_TYPE, Problem, problem_of
from coffee_rt.errors import Bug, Busy, CoffeeRtError, Overload, Rejected, Retryable, TooSlow
from coffee_rt.query_api import metrics
from coffee_rt.query_api.gate import Gate
from coffee_rt.query_api.letter_routes import letter_routes
from coffee_rt.query_api.letters import LetterService
from coffee_rt.query_api.routing import Page, Route, query_of
from coffee_rt.query_api.service import QueryService
from coffee_rt.runtime.clock import Clock
from coffee_rt.runtime.health import Health, add_health_routes

TOO_SLOW_RETRY_SECONDS = 10.0
BUSY_RETRY_SECONDS = 1.0
"""The same question would be as slow again at once."""


def build_app(
    service: QueryService,
    letters: LetterService,
    gate: Gate,
    health: Health,
    clock: Clock,
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
    for route in [*_routes(service), *letter_routes(letters)]:
        _add_route(app, route, gate, clock)
    return app


def _routes(service: QueryService) -> list[Route]:
    span = ["from", "to", "last", "position"]
    return [
        Route("/api/v1/views", "views", Access.READ, lambda request, by: service.views(), []),
        Route(
            "/api/v1/views/{name}",
            "view",
            Access.READ,
            lambda request, by: service.view(
                by.tenant, request.path_params["name"], query_of(request)
            ),
            [*span, "group_by", "bucket", "order_by", "limit", "cursor"],
        ),
        Route(
            "/api/v1/views/{name}/top",
            "view_top",
            Access.READ,
            lambda request, by: service.top(
                by.tenant, request.path_params["name"], query_of(request)
            ),
            [*span, "by", "measure", "n"],
        ),
        Route(
            "/api/v1/top",
            "top",
            Access.READ,
            lambda request, by: service.top(by.tenant, None, query_of(request)),
            [*span, "by", "measure", "n"],
        ),
        Route(
            "/api/v1/orders",
            "orders",
            Access.READ,
            lambda request, by: service.recent_orders(by.tenant, query_of(request)),
            ["limit", "before", "store"],
        ),
        Route(
            # Where order_api points a GET of /api/v1/orders that an Ingress gave to it.
            "/api/v1/orders/recent",
            "recent_orders",
            Access.READ,
            lambda request, by: service.recent_orders(by.tenant, query_of(request)),
            ["limit", "before", "store"],
        ),
        Route(
            "/api/v1/orders/{order_id}",
            "order",
            Access.READ,
            lambda request, by: service.order(by.tenant, request.path_params["order_id"]),
            [],
        ),
        Route(
            "/api/dashboard",
            "dashboard",
            Access.READ,
            lambda request, by: service.dashboard(by.tenant),
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
    "code": "Only of this reason.",
    "since": "Only from this time of burial on: ISO 8601 with an offset, or Unix seconds.",
    "until": "Only before this time of burial.",
}


def _add_route(app: FastAPI, route: Route, gate: Gate, clock: Clock) -> None:
    async def endpoint(request: Request) -> Response:
        began = clock.monotonic()
        quota = None
        try:
            principal, quota = gate.enter(request, route.access)
            async with gate.turn(request, principal):
                response = _json(await route.handler(request, principal))
        except (Rejected, Overload, Retryable) as error:
            if isinstance(error, RateLimited):
                quota = error.quota
            response = _refusal(error)
        _tell(response, quota)
        metrics.REQUESTS.labels(route.name, f"{response.status_code // 100}xx").inc()
        metrics.SECONDS.labels(route.name).observe(clock.monotonic() - began)
        return response

    description = route.description or DESCRIPTIONS[route.name]
    app.add_api_route(
        route.path,
        endpoint,
        methods=[route.method],
        name=route.name,
        operation_id=route.name,
        description=description,
        openapi_extra=_document(route),
        responses=_problems(route),
    )


def _refusal(error: CoffeeRtError) -> Response:
    if isinstance(error, TooSlow):
        detail = "This took too long and was ended. Ask for a shorter span, or for less at once."
        error = Overload("too-slow", detail, TOO_SLOW_RETRY_SECONDS)
    if isinstance(error, Busy):
        detail = "All connections to the database are in use."
        error = Overload("database-busy", detail, BUSY_RETRY_SECONDS)
    if isinstance(error, Overload):
        metrics.REFUSALS.labels(error.code).inc()
    return problem_response(problem_of(error))


def _tell(response: Response, quota: Quota | None) -> None:
    """Where the caller stands, in the answer's headers."""
    if quota is not None:
        for name, value in quota.headers():
            response.headers[name.decode()] = value.decode()


def _document(route: Route) -> dict[str, Any]:
    """What of a route's document the framework can't see."""
    in_path = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "integer", "minimum": 1} if kind else {"type": "string"},
        }
        for name, kind in route.path_parts
    ]
    in_query = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": PARAMETERS[name],
            "schema": {"type": "string"},
        }
        for name in route.parameters
    ]
    document: dict[str, Any] = {"parameters": [*in_path, *in_query]}
    if route.body is not None:
        content = {"application/json": {"schema": dict(route.body)}}
        document["requestBody"] = {"required": True, "content": content}
    return document


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


def _problems(route: Route) -> dict[int | str, dict[str, Any]]:
    """What a route answers instead, for its document."""
    texts = {
        400: "A parameter is wrong; `errors` names it.",
        401: "No API key, or not a known one.",
        403: f"The API key lacks the scope {route.access.value}.",
        422: "This is no id of an order." if route.body is None else "The body is refused.",
        429: "Too many requests a minute, or at once; see Retry-After.",
        503: "A server is away, or this took too long; see Retry-After.",
    }
    if route.path_parts:
        texts[404] = "There is none of this name or id."
    texts |= route.problems
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
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(sorted(_methods_of(request)))
        told = tuple(headers.items())
        return problem_response(Problem(error.status_code, code, error.detail, (), told))

    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_http_error)


def _methods_of(request: Request) -> set[str]:
    """What a path takes, of all its routes: the framework names the first one's only."""
    routes = [route for route in request.app.routes if isinstance(route, StarletteRoute)]
    return {
        method
        for route in routes
        if route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
