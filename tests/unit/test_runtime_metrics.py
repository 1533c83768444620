"""Metrics keep to the naming rules; traces are free of charge when off."""

from __future__ import annotations

import pytest

from coffee_rt.runtime import metrics, tracing


def test_metric_without_prefix_help_or_total_is_refused() -> None:
    with pytest.raises(ValueError, match="must start with coffee_rt_"):
        metrics.gauge("till_open", "Whether the till is open.")
    with pytest.raises(ValueError, match="needs a help text"):
        metrics.gauge("coffee_rt_till_open", "")
    with pytest.raises(ValueError, match="must end in _total"):
        metrics.counter("coffee_rt_till_cups", "Cups sold at the till.")


def test_declared_metric_is_in_the_catalogue_and_in_the_exposition() -> None:
    cups = metrics.counter("coffee_rt_test_cups_total", "Cups sold at the till.", ("size",))
    cups.labels("large").inc(2)
    entry = next(m for m in metrics.catalogue() if m.name == "coffee_rt_test_cups_total")
    assert (entry.kind, entry.labels) == ("counter", ("size",))
    assert b'coffee_rt_test_cups_total{size="large"} 2.0' in metrics.exposition()


def test_tracing_does_nothing_until_configured() -> None:
    assert not tracing.is_enabled()
    with tracing.span("commit", records=3) as span:
        assert span is None
    assert tracing.inject() == ""
    assert tracing.extract("00-" + "a" * 32 + "-" + "b" * 16 + "-01") is None


def test_context_travels_as_a_traceparent() -> None:
    tracing.configure("till", "till-1", "http://127.0.0.1:9/v1/traces")
    try:
        with tracing.span("accept", records=1) as parent:
            carried = tracing.inject()
            parent_trace = parent.get_span_context().trace_id
        assert carried.startswith("00-")
        with tracing.span("store", parent=tracing.extract(carried)) as child:
            assert child.get_span_context().trace_id == parent_trace
            # Nothing is left to send: the collector of this test does not exist.
        tracing._provider._active_span_processor.shutdown()
    finally:
        tracing._provider = tracing._tracer = None
