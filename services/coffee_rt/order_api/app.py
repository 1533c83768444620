"""The web framework's part of order_api: health, metrics, the OpenAPI document and its page."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import Response

from coffee_rt import __version__
from coffee_rt.domain.problems import CONTENT_TYPE, Problem
from coffee_rt.order_api.openapi import hot_document
from coffee_rt.order_api.routes import ORDERS_PATH
from coffee_rt.runtime.health import Health, add_health_routes

OPENAPI_PATH = f"{ORDERS_PATH}/openapi.json"
_CODES = {404: "not-found", 405: "method-not-allowed"}


def build_app(health: Health) -> FastAPI:
    app = FastAPI(
        title="coffee-rt orders",
        version=__version__,
        openapi_url=OPENAPI_PATH,
        docs_url=None,
        redoc_url=None,
    )
    add_health_routes(app, health)
    app.add_exception_handler(HTTPException, _answer_problem)

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title,
                version=app.version,
                openapi_version="3.1.0",
                routes=app.routes,
                description="Takes orders, one or many; a 202 means on disk.",
            )
            hot = hot_document()
            made["paths"] = hot["paths"] | made.get("paths", {})
            for kind, parts in hot["components"].items():
                made.setdefault("components", {}).setdefault(kind, {}).update(parts)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
    return app


async def _answer_problem(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = str(error.detail) if isinstance(error, HTTPException) else ""
    problem = Problem(status, _CODES.get(status, "http-error"), detail)
    headers = dict(getattr(error, "headers", None) or {})
    return Response(problem.to_bytes(), status, headers, media_type=CONTENT_TYPE)
