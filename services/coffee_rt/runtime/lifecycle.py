"""A process from start to end: loop, logs, limits, signals, drain, exit code.

SIGTERM or SIGINT begins the drain; `main` sees it by `wait_drain`, finishes what it holds and returns: exit 0.
A task that crashes ends the process with 1, loudly: a half-dead process that still answers is worse than a
restart. Signals after the first change nothing (a terminal's Ctrl-C reaches parent and children alike).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import uvloop

from coffee_rt.runtime import logs, tracing
from coffee_rt.runtime.clock import Clock, SystemClock
from coffee_rt.runtime.environment import masked
from coffee_rt.runtime.files import ensure_open_files
from coffee_rt.runtime.health import Health
from coffee_rt.runtime.http import serve_http as serve_http
from coffee_rt.runtime.settings import ProcessSettings, SettingsError

S = TypeVar("S", bound=ProcessSettings)
T = TypeVar("T")


CANCEL_SECONDS = 0.5
CANCELLATIONS_MAX = 10
"""A task that is still there after so many cancellations is left behind, and named in the log."""


class Lifecycle:
    """What a process's `main` gets: clock, health, log, background tasks, and word of the drain.

    Made by `run` (or by a test, inside a running loop); shared by all tasks of the process.
    """

    def __init__(
        self,
        process: str,
        *,
        clock: Clock | None = None,
        health: Health | None = None,
        log: logs.Log | None = None,
    ) -> None:
        self.process = process
        self.clock: Clock = clock or SystemClock()
        self.health = health or Health()
        self.log: logs.Log = log or logs.get_log(process)
        self.http_address: tuple[str, int] | None = None
        """Where `serve_http` listens, once it does."""
        self._drain = asyncio.Event()
        self._listening = asyncio.Event()
        self._crashed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def is_draining(self) -> bool:
        return self._drain.is_set()

    def begin_drain(self) -> None:
        """Idempotent: not ready from now on, and `wait_drain` returns."""
        if not self._drain.is_set():
            self.health.set_draining()
            self.log.info("draining")
            self._drain.set()

    async def wait_drain(self) -> None:
        await self._drain.wait()

    def set_listening(self, host: str, port: int) -> None:
        """Said by `serve_http` once connections are taken."""
        self.http_address = (host, port)
        self.log.info("listening", host=host, port=port)
        self._listening.set()

    async def wait_listening(self) -> tuple[str, int]:
        """Host and port once `serve_http` listens."""
        await self._listening.wait()
        assert self.http_address is not None
        return self.http_address

    async def wait_crash(self) -> BaseException:
        """The error of the first spawned task that crashed."""
        return await asyncio.shield(self._crashed)

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run a background task. Its crash ends the process with exit code 1; a SettingsError, which is found
        where a server that was away says so, with 2 and its sentence."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            if isinstance(error, SettingsError):
                self.log.error("cannot go on", reason=str(error))
            else:
                self.log.critical("task crashed", task=task.get_name(), exc_info=error)
            if not self._crashed.done():
                self._crashed.set_result(error)

    async def stop_tasks(self) -> set[asyncio.Future[Any]]:
        """Cancel what is still running in the background, and wait for it; what does not end. To be called before
        what it uses is closed: it would open that again."""
        return await _end({task for task in self._tasks if task is not asyncio.current_task()})


def run(process: str, main: Callable[[Lifecycle, S], Awaitable[None]], settings: S) -> int:
    """Run a process until it is drained; its exit code (0 only for a drain within the grace period)."""
    log = logs.configure(
        process, settings.instance, log_format=settings.log_format, level=settings.log_level
    )
    try:
        files = ensure_open_files(settings.open_files())
        tracing.configure(process, settings.instance, settings.otlp_endpoint)
    except SettingsError as error:
        log.error("cannot start", reason=str(error))
        return 2
    log.info("starting", open_files_max=files, settings=masked(settings))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_supervise(process, main, settings, log))
    finally:
        tracing.shutdown()
        sys.stdout.flush()


async def _supervise(
    process: str,
    main: Callable[[Lifecycle, S], Awaitable[None]],
    settings: S,
    log: logs.Log,
) -> int:
    lifecycle = Lifecycle(process, log=log)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lifecycle.begin_drain)
    work = asyncio.ensure_future(_as_coroutine(main(lifecycle, settings)))
    crash = asyncio.create_task(lifecycle.wait_crash())
    drain = asyncio.create_task(lifecycle.wait_drain())
    await asyncio.wait({work, crash, drain}, return_when=asyncio.FIRST_COMPLETED)
    if not work.done() and not crash.done():
        await asyncio.wait(
            {work, crash}, timeout=settings.grace_seconds, return_when=asyncio.FIRST_COMPLETED
        )
    code = _exit_code(work, crash, log)
    left = await _end({work, crash, drain}) | await lifecycle.stop_tasks()
    if left:
        # The loop would wait for them without end, and with it whoever waits for this process.
        log.error("tasks do not end; ending without them", tasks=[repr(task) for task in left])
        sys.stdout.flush()
        os._exit(code or 1)
    log.info("stopped", code=code)
    return code


async def _end(tasks: set[asyncio.Future[Any]]) -> set[asyncio.Future[Any]]:
    """Cancel tasks until they end; those that do not.

    More than once, because a time-out below that ends in the same moment can swallow a cancellation.
    """
    waiting = {task for task in tasks if not task.done()}
    for _ in range(CANCELLATIONS_MAX):
        for task in waiting:
            task.cancel()
        if waiting:
            _, waiting = await asyncio.wait(waiting, timeout=CANCEL_SECONDS)
    return waiting


async def _as_coroutine(work: Awaitable[None]) -> None:
    await work


def _exit_code(work: asyncio.Future[None], crash: asyncio.Task[Any], log: logs.Log) -> int:
    if crash.done():
        return 2 if isinstance(crash.result(), SettingsError) else 1
    if not work.done():
        log.error("grace period is over, ending with work undone")
        return 1
    error = work.exception()
    if isinstance(error, SettingsError):
        log.error("cannot start", reason=str(error))
        return 2
    if error is not None:
        log.critical("process crashed", exc_info=error)
        return 1
    return 0
