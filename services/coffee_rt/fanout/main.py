"""Entry of fanout."""

from __future__ import annotations

import asyncio

from coffee_rt.fanout.settings import FanoutSettings
from coffee_rt.fanout.wiring import Fanout, wired
from coffee_rt.runtime import environment, lifecycle
from coffee_rt.runtime.lifecycle import Lifecycle, serve_http


async def main(process: Lifecycle, configuration: FanoutSettings) -> None:
    """Serve until the drain, then send the sessions away."""
    async with wired(configuration, process) as fanout:
        await fanout.start()
        # Side by side: the HTTP server waits for its event streams, which the drain ends.
        await asyncio.gather(
            serve_http(fanout.app, configuration, process), _drain(process, fanout)
        )


async def _drain(process: Lifecycle, fanout: Fanout) -> None:
    await process.wait_drain()
    await fanout.drain()


def run() -> int:
    """Exit code of the process. Raises SettingsError."""
    return lifecycle.run("fanout", main, environment.load(FanoutSettings))
