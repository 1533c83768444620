"""The operator process: of all that run, the one that holds the Lease tends the objects of its namespace."""

from __future__ import annotations

import asyncio
import signal

from coffee_rt.errors import Retryable
from coffee_rt.operator import metrics, object_handlers, pipeline_handlers
from coffee_rt.operator.framework import make_registry, quiet_framework_logs, run_framework
from coffee_rt.operator.leader import Leader
from coffee_rt.operator.settings import OperatorSettings
from coffee_rt.operator.wiring import Operator, make_tender, wired
from coffee_rt.runtime import lifecycle as runtime
from coffee_rt.runtime.breaker import backoff_seconds
from coffee_rt.runtime.environment import load
from coffee_rt.runtime.health import health_app
from coffee_rt.runtime.lifecycle import Lifecycle, serve_http

REGISTRARS = (pipeline_handlers.register, object_handlers.register)
WATCHED_SECONDS_MIN = 60.0
"""A watch that lasted so long was no failed start."""
KINDS = (pipeline_handlers.PLURAL, *object_handlers.KINDS)
"""Kinds that must be known to the API server before kopf starts: it looks for them only once."""


async def main(process: Lifecycle, settings: OperatorSettings) -> None:
    """Lead or stand by until the drain. Then the lease is given up, and another operator goes on."""
    quiet_framework_logs()
    async with wired(settings, process) as operator:
        serving = process.spawn(serve_http(health_app(process.health), settings, process), "http")
        # Who can't be probed does not lead.
        await process.wait_listening()
        leader = Leader(
            leases=operator.leases,
            name=settings.lease_name,
            me=settings.instance,
            duration_seconds=settings.lease_seconds,
            clock=process.clock,
            health=process.health,
            log=process.log,
        )
        leading = process.spawn(leader.run(lambda: work(operator, process)), "lead")
        await process.wait_drain()
        leading.cancel()
        await asyncio.wait({leading})
        await serving


async def work(operator: Operator, process: Lifecycle) -> None:
    """What only the leading operator does; ends by being cancelled, or by a crash."""
    async with asyncio.TaskGroup() as group:
        group.create_task(watch(operator, process), name="watch")
        group.create_task(make_tender(operator).run(), name="tend")
        group.create_task(operator.objects.run(), name="objects")


async def watch(operator: Operator, process: Lifecycle) -> None:
    """kopf, again and again: it gives up when the API server is away for long."""
    try:
        await _watch_always(operator, process)
    finally:
        # Who stands by watches nothing, and is ready all the same.
        process.health.forget("kubernetes")


async def _watch_always(operator: Operator, process: Lifecycle) -> None:
    registry = make_registry(REGISTRARS)
    attempt = 0
    while True:
        started_at = process.clock.monotonic()
        try:
            for plural in KINDS:
                await operator.cluster.list_objects(plural)
            process.health.set("kubernetes", True, f"watching {operator.cluster.namespace}")
            await run_framework(registry, operator, lambda: keep_signals(process))
        except Retryable as error:
            if process.clock.monotonic() - started_at > WATCHED_SECONDS_MIN:
                attempt = 0
            attempt += 1
            metrics.FAILURES.labels("kubernetes").inc()
            process.health.set("kubernetes", False, str(error))
            process.log.warning("objects are not watched", reason=str(error))
            cap = operator.settings.backoff_seconds_max
            await process.clock.sleep(0.5 + backoff_seconds(attempt, cap=cap))


def keep_signals(process: Lifecycle) -> None:
    """The lifecycle's own handlers again, which begin the drain."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, process.begin_drain)


def run(settings: OperatorSettings | None = None) -> int:
    """The process's exit code. Settings come from the environment unless given."""
    return runtime.run("operator", main, settings or load(OperatorSettings))


if __name__ == "__main__":
    raise SystemExit(run())
