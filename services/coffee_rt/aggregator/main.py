"""Entry of the aggregator."""

from __future__ import annotations

from contextlib import suppress

from coffee_rt.aggregator.settings import AggregatorSettings
from coffee_rt.aggregator.wiring import wired
from coffee_rt.errors import Retryable
from coffee_rt.runtime import environment, lifecycle
from coffee_rt.runtime.health import health_app
from coffee_rt.runtime.lifecycle import Lifecycle, serve_http


async def main(process: Lifecycle, configuration: AggregatorSettings) -> None:
    """Fold until the drain. What is unfolded then waits for the other instances, or for the next start."""
    process.health.set("views", False, "starting")
    async with wired(configuration, process) as aggregator:
        process.spawn(aggregator.start(), "start")
        await serve_http(health_app(process.health), configuration, process)
        await process.wait_drain()
        await process.stop_tasks()
        with suppress(Retryable):
            await aggregator.folds.withdraw()


def run() -> int:
    """Exit code of the process. Raises SettingsError."""
    return lifecycle.run("aggregator", main, environment.load(AggregatorSettings))
