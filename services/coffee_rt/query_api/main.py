"""Entry of query_api."""

from __future__ import annotations

from coffee_rt.query_api.settings import QueryApiSettings
from coffee_rt.query_api.wiring import wired
from coffee_rt.runtime import environment, lifecycle
from coffee_rt.runtime.lifecycle import Lifecycle, serve_http


async def main(process: Lifecycle, configuration: QueryApiSettings) -> None:
    """Serve until the drain."""
    async with wired(configuration, process) as app:
        await serve_http(app, configuration, process)


def run() -> int:
    """Exit code of the process. Raises SettingsError."""
    return lifecycle.run("query-api", main, environment.load(QueryApiSettings))
