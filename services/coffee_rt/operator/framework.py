"""kopf inside our lifecycle: its registry, its settings, its login, and one run of it.

kopf's own command line is not used. Signals, logs, health and the choice of the one operator that works
are ours; kopf watches objects and calls handlers. Its tasks end with `run_framework`, all of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

import kopf

from coffee_rt.errors import Retryable
from coffee_rt.operator.contract import GROUP
from coffee_rt.operator.wiring import Operator

FINALIZER = f"{GROUP}/operator"

END_SECONDS_MAX = 8.0

Registrar = Callable[[kopf.OperatorRegistry], None]
"""Each module of handlers has one, named `register`."""


def make_registry(registrars: Iterable[Registrar]) -> kopf.OperatorRegistry:
    """All handlers. The login is ours, so that what else is installed does not change it."""
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry, id="service-account", errors=kopf.ErrorsMode.PERMANENT)(
        _login_service_account
    )
    kopf.on.login(registry=registry, id="kubeconfig", errors=kopf.ErrorsMode.PERMANENT)(
        _login_kubeconfig
    )
    for register in registrars:
        register(registry)
    return registry


def _login_service_account(**arguments: Any) -> kopf.ConnectionInfo | None:
    return kopf.login_with_service_account(**arguments)


def _login_kubeconfig(**arguments: Any) -> kopf.ConnectionInfo | None:
    # In a pod its own account is meant, whatever file an image may carry.
    if kopf.login_with_service_account(**arguments) is not None:
        return None
    return kopf.login_with_kubeconfig(**arguments)


def framework_settings() -> kopf.OperatorSettings:
    """kopf's settings that differ from its own."""
    settings = kopf.OperatorSettings()
    # Only one namespace's objects are tended: no right to list namespaces or definitions is needed.
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.persistence.finalizer = FINALIZER
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
    # The lifecycle's grace period is what ends a hanging process.
    settings.process.ultimate_exiting_timeout = None
    settings.posting.loggers = False
    settings.posting.reporting_component = "coffee-rt-operator"
    settings.posting.event_name_prefix = "coffee-rt-"
    settings.networking.request_timeout = 15.0
    settings.networking.connect_timeout = 5.0
    settings.watching.connect_timeout = 5.0
    settings.background.cancellation_polling = 5.0
    return settings


def quiet_framework_logs() -> None:
    """kopf tells of each object it looks at, its client of each request; what matters we say ourselves."""
    for name in ("kopf.objects", "kopf.activities", "kopf._core", "httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)


async def run_framework(
    registry: kopf.OperatorRegistry,
    operator: Operator,
    restore_signals: Callable[[], None],
) -> None:
    """Watch and handle until cancelled. Raises Retryable when kopf gives up: the API server was away for too
    long, or refuses."""
    tasks = await kopf.spawn_tasks(
        registry=registry,
        settings=framework_settings(),
        memo=operator,
        namespaces=[operator.cluster.namespace],
        standalone=True,
    )
    # kopf takes SIGTERM and SIGINT for itself.
    restore_signals()
    try:
        # Not kopf.run_tasks: at its end it cancels every younger task of the loop, whosever it is.
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _end(tasks)
    for task in done:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise Retryable(f"kopf gave up: {type(error).__name__}: {error}") from error
    raise Retryable("kopf ended by itself")


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """kopf's own tasks first, which end what they began; then daemons and timers that did not listen."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=END_SECONDS_MAX)
    left = [task for task in asyncio.all_tasks() if task.get_name().startswith("runner of ")]
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=END_SECONDS_MAX)
