"""HTTP of fanout: health, the event stream, the dashboard page. No logic of its own."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from coffee_rt.domain.problems import CONTENT_TYPE, Problem, problem_of
from coffee_rt.errors import CoffeeRtError
from coffee_rt.fanout.page_files import SECURITY_HEADERS, PageFile, content_security_policy
from coffee_rt.fanout.streams import LiveStreams
from coffee_rt.runtime.health import PATHS, Health, HealthApp


def build_app(streams: LiveStreams, page: Mapping[str, PageFile], health: Health) -> Starlette:
    """The application; everything it needs is given."""

    async def live(request: Request) -> Response:
        try:
            return await streams.open(request)
        except CoffeeRtError as error:
            return _problem_response(problem_of(error))

    async def file(request: Request) -> Response:
        found = page.get(request.url.path)
        if found is None:
            detail = "There is nothing at this address."
            return _problem_response(Problem(404, "no-such-route", detail))
        return _file_response(request, found)

    async def on_http_error(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        code = {404: "no-such-route", 405: "method-not-allowed"}.get(status, "error")
        return _problem_response(Problem(status, code, code.replace("-", " ").capitalize() + "."))

    return Starlette(
        routes=[
            *(Route(path, HealthApp(health), methods=["GET"]) for path in PATHS),
            Route("/api/v1/live", live, methods=["GET"]),
            Route("/{path:path}", file, methods=["GET"]),
        ],
        exception_handlers={HTTPException: on_http_error},
    )


def _file_response(request: Request, file: PageFile) -> Response:
    headers = {
        **SECURITY_HEADERS,
        "Content-Security-Policy": content_security_policy(request.headers.get("Host", "")),
        "Cache-Control": file.cache_control,
        "ETag": file.tag,
        "Vary": "Accept-Encoding",
    }
    if request.headers.get("If-None-Match") == file.tag:
        return Response(status_code=304, headers=headers)
    body = file.body
    if file.compressed and "gzip" in request.headers.get("Accept-Encoding", ""):
        body = file.compressed
        headers["Content-Encoding"] = "gzip"
    return Response(body, headers=headers, media_type=file.kind)


def _problem_response(problem: Problem) -> Response:
    return Response(problem.to_bytes(), problem.status, dict(problem.headers), CONTENT_TYPE)
