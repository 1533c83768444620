"""The worker process: moves the log into PostgreSQL until it is told to stop."""

from __future__ import annotations

from coffee_rt.errors import Rejected
from coffee_rt.runtime import lifecycle as runtime
from coffee_rt.runtime.environment import load
from coffee_rt.runtime.health import health_app
from coffee_rt.runtime.lifecycle import Lifecycle, serve_http
from coffee_rt.runtime.settings import SettingsError
from coffee_rt.worker.pipeline import Worker
from coffee_rt.worker.settings import WorkerSettings
from coffee_rt.worker.wiring import build_worker, tune_interpreter


async def main(lifecycle: Lifecycle, settings: WorkerSettings) -> None:
    """Until drained: health over HTTP beside the pipeline."""
    tune_interpreter()
    async with build_worker(settings, lifecycle) as worker:
        serving = lifecycle.spawn(
            serve_http(health_app(lifecycle.health), settings, lifecycle), "http"
        )
        draining = lifecycle.spawn(_drain(worker, lifecycle), "drain")
        try:
            await worker.run()
        except Rejected as error:
            raise SettingsError(error.detail) from None
        finally:
            draining.cancel()
        await serving


async def _drain(worker: Worker, lifecycle: Lifecycle) -> None:
    await lifecycle.wait_drain()
    worker.begin_drain()


def run(settings: WorkerSettings | None = None) -> int:
    """The process's exit code. Settings come from the environment unless given."""
    return runtime.run("worker", main, settings or load(WorkerSettings))


if __name__ == "__main__":
    raise SystemExit(run())
