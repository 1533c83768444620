"""Structured logs: one event a line, JSON or pretty, secrets masked, from our code and from libraries.

Event names are short sentences in lower case; everything that varies is a field.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

from coffee_rt.runtime.addresses import mask_credentials

Log = structlog.stdlib.BoundLogger

_SECRET_FIELDS = re.compile(r"password|secret|token|authorization|api_?key\Z", re.IGNORECASE)
_CONTROLS = re.compile(r"[^\n\t -~\u00a0-\U0010ffff]")
_API_KEY = re.compile(r"\bcrt_([A-Za-z0-9]+)_[A-Za-z0-9_-]+")


def mask(text: str) -> str:
    """The text without credentials of addresses and without secrets of API keys."""
    return _API_KEY.sub(r"crt_\1_***", mask_credentials(text))


def _mask_event(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if _SECRET_FIELDS.search(name):
            event[name] = "***"
        elif isinstance(value, str):
            event[name] = mask(value)
        elif isinstance(value, BaseException):
            event[name] = mask(f"{type(value).__name__}: {value}")
    return event


def _escape_event(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """For a terminal: what bad data says of itself must not become colours, or anything else, of it."""
    for name, value in event.items():
        if isinstance(value, str):
            # Only a traceback has lines.
            escaped = _CONTROLS.sub(_escaped, value)
            event[name] = escaped if name == "exception" else escaped.replace("\n", "\\n")
    return event


def _escaped(found: re.Match[str]) -> str:
    return repr(found[0])[1:-1]


def configure(
    process: str,
    instance: str = "",
    *,
    log_format: Literal["auto", "json", "pretty"] = "auto",
    level: str = "info",
) -> Log:
    """Send all logs of the process to standard output; returns the process's log."""
    is_pretty = log_format == "pretty" or (log_format == "auto" and sys.stdout.isatty())
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    common: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        stamp,
    ]
    # Tracebacks become text first, so that the mask sees them too.
    last: list[Any] = [structlog.processors.format_exc_info, _mask_event]
    renderer: Any = structlog.processors.JSONRenderer()
    if is_pretty:
        last.append(_escape_event)
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=common,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last, renderer],
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *common,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return get_log(process, instance)


def get_log(process: str, instance: str = "") -> Log:
    """A log whose events carry the process and its instance."""
    fields = {"process": process} | ({"instance": instance} if instance else {})
    log: Log = structlog.get_logger(f"coffee_rt.{process}").bind(**fields)
    return log
