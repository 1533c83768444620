"""An event loop in virtual time that runs several processes, and interleaves them by a seed.

Inside a process callbacks run in the order asyncio promises; which process runs next is drawn. No callback
takes time: when nothing can run, the clock jumps to the next timer. A process can be killed (its coroutines
end where they stand, nothing of it runs again) or frozen (its callbacks wait) between any two callbacks,
that is at every await.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from asyncio import Handle, TimerHandle
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any

STEPS_MAX = 150_000
"""Callbacks of one run; a run that needs more turns in circles."""

_process: ContextVar[Process] = ContextVar("process")


class Stuck(AssertionError):
    """The run does not come to an end."""


class Process:
    """One incarnation of a process: its callbacks, its tasks, its clock's error. Made by the loop."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.name = name
        self.is_dead = False
        self.is_frozen = False
        self.clock_error_seconds = 0.0
        self.steps = 0
        self.trap: tuple[int, Callable[[Process], None]] | None = None
        """(step, what happens to the process just before it)."""
        self.context: Context = copy_context()
        self.context.run(_process.set, self)
        self._loop = loop
        self._ready: deque[Handle] = deque()
        self._tasks: list[asyncio.Task[Any]] = []
        self._tasks_pruned_at = 64

    @property
    def is_runnable(self) -> bool:
        return bool(self._ready) and not self.is_frozen and not self.is_dead

    def start(self, work: Coroutine[Any, Any, Any], name: str = "") -> asyncio.Task[Any]:
        """A task of this process, from outside of it."""
        task: asyncio.Task[Any] = self.run(self._loop.create_task, work, name=name or None)
        return task

    def run(self, act: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call from outside what belongs to this process."""
        # A copy: the context itself may be entered already.
        return self.context.copy().run(act, *arguments, **named)

    def push(self, handle: Handle) -> None:
        if self.is_dead:
            return
        self._ready.append(handle)
        if len(self._ready) == 1 and not self.is_frozen:
            self._loop.runnable.append(self)

    def pop(self) -> Handle:
        return self._ready.popleft()

    def adopt(self, task: asyncio.Task[Any]) -> None:
        self._tasks.append(task)
        if len(self._tasks) > self._tasks_pruned_at:
            self._tasks = [each for each in self._tasks if not each.done()]
            self._tasks_pruned_at = 2 * len(self._tasks) + 64

    def freeze(self) -> None:
        self.is_frozen = True
        self._loop.rest(self)

    def thaw(self) -> None:
        if self.is_frozen and not self.is_dead:
            self.is_frozen = False
            if self._ready:
                self._loop.runnable.append(self)

    def kill(self) -> None:
        """As by kill -9. Coroutines are closed here and not whenever garbage is collected."""
        self.is_dead = True
        self._loop.rest(self)
        self._ready.clear()
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                self.run(_close, task)
        self._tasks.clear()


def _close(task: asyncio.Task[Any]) -> None:
    coroutine = task.get_coro()
    try:
        coroutine.close()
    except RuntimeError:
        # What it would still await in a `finally` never happens: the process is dead.
        return


class VirtualLoop(asyncio.BaseEventLoop):
    """Made for one run. `drive` runs it; `now` is its clock in seconds."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.now = 0.0
        self.steps = 0
        self.runnable: list[Process] = []
        self.crashes: list[str] = []
        """What escaped from callbacks."""
        self._chance = chance
        self._timers: list[tuple[float, int, TimerHandle]] = []
        self._numbers = itertools.count()
        self.world = Process(self, "world")
        """Whatever belongs to no process of the platform."""
        self.set_exception_handler(self._on_crash)

    def time(self) -> float:
        return self.now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Handle:
        handle = Handle(callback, args, self, context)
        process = _process.get(self.world) if context is None else context.get(_process, self.world)
        process.push(handle)
        return handle

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: Context | None = None,
    ) -> TimerHandle:
        timer = TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def create_task(  # type: ignore[override]
        self, coro: Any, *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        _process.get(self.world).adopt(task)
        return task

    def rest(self, process: Process) -> None:
        """The process has nothing to run, or may not."""
        if process in self.runnable:
            self.runnable.remove(process)

    def drive(self, is_over: Callable[[], bool]) -> None:
        """Run until `is_over` (asked when the clock moves). Raises Stuck."""
        asyncio._set_running_loop(self)
        try:
            while True:
                self._run_ready()
                if is_over():
                    return
                self._move_clock()
        finally:
            asyncio._set_running_loop(None)

    def _run_ready(self) -> None:
        runnable, draw = self.runnable, self._chance.random
        while runnable:
            process = runnable[int(draw() * len(runnable))] if len(runnable) > 1 else runnable[0]
            process.steps += 1
            if process.trap is not None and process.steps >= process.trap[0]:
                spring, process.trap = process.trap[1], None
                spring(process)
                if not process.is_runnable:
                    continue
            handle = process.pop()
            if not process.is_runnable:
                runnable.remove(process)
            if not handle._cancelled:
                handle._run()
            self.steps += 1
            if self.steps > STEPS_MAX:
                raise Stuck(f"{STEPS_MAX} callbacks and no end, at {self.now:.3f} s")

    def _move_clock(self) -> None:
        """To the next timer; it and its equals become ready."""
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not timers:
            raise Stuck(f"nothing will ever happen again, at {self.now:.3f} s")
        self.now = max(self.now, timers[0][0])
        while timers and timers[0][0] <= self.now:
            timer = heapq.heappop(timers)[2]
            if not timer._cancelled:
                timer._context.get(_process, self.world).push(timer)  # type: ignore[attr-defined]

    def _timer_handle_cancelled(self, handle: TimerHandle) -> None:
        """A cancelled timer stays in the heap until its time."""

    def _on_crash(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "handle" in context:
            self.crashes.append(f"{context['message']}: {context.get('exception')!r}")


def current_process() -> Process:
    """The process that the running callback belongs to."""
    return _process.get()
