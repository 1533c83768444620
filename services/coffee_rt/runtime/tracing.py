"""Traces (OpenTelemetry), as an optional extra: no-ops unless `configure` was given an endpoint.

Spans are made per batch, never per order. The context travels in a stream entry as one traceparent text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from coffee_rt.runtime.settings import SettingsError

FLUSH_SECONDS_MAX = 2.0
"""A collector that swallows everything must not hold up the end of a process."""

_tracer: Any = None
_provider: Any = None


def configure(process: str, instance: str, endpoint: str | None) -> None:
    """Send traces to `endpoint` (OTLP over HTTP). Raises SettingsError when the extra is not installed."""
    global _tracer, _provider
    if endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise SettingsError(
            "COFFEE_RT_OTLP_ENDPOINT needs the extra: pip install 'coffee-rt[tracing]'"
        ) from None
    resource = Resource.create(
        {"service.name": f"coffee-rt-{process}", "service.instance.id": instance}
    )
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=FLUSH_SECONDS_MAX)
    _provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracer = _provider.get_tracer("coffee_rt")


def is_enabled() -> bool:
    return _tracer is not None


@contextmanager
def span(name: str, *, parent: Any = None, **attributes: Any) -> Iterator[Any]:
    """A span around the block; yields it, or None without tracing. `parent` is what `extract` gave."""
    if _tracer is None:
        yield None
        return
    with _tracer.start_as_current_span(name, context=parent, attributes=attributes) as opened:
        yield opened


def inject() -> str:
    """The current context as a traceparent text; empty without one."""
    if _tracer is None:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")


def extract(traceparent: str) -> Any:
    """A parent for `span` from a traceparent text; None when there is none. Bad text is no context."""
    if _tracer is None or not traceparent:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})


def shutdown() -> None:
    """Send what is waiting, for FLUSH_SECONDS_MAX at most. Blocks: called when the loop has ended."""
    global _tracer, _provider
    if _provider is not None:
        _provider.force_flush(int(FLUSH_SECONDS_MAX * 1000))
    _tracer = _provider = None
