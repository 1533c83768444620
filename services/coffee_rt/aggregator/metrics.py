"""Metrics of the aggregator."""

from __future__ import annotations

from coffee_rt.runtime import metrics

FOLDS = metrics.counter(
    "coffee_rt_aggregator_folds_total",
    "Folds committed, by view. Flat while orders are stored: look at readiness and PostgreSQL.",
    ("view",),
)
DELTAS_FOLDED = metrics.counter(
    "coffee_rt_aggregator_deltas_folded_total",
    "Deltas moved into views, by view.",
    ("view",),
)
DELTAS_EXPIRED = metrics.counter(
    "coffee_rt_aggregator_deltas_expired_total",
    "Deltas dropped because their bucket is past the view's retention. Rising: very late orders arrive.",
    ("view",),
)
DELTAS_QUARANTINED = metrics.counter(
    "coffee_rt_aggregator_deltas_quarantined_total",
    "Deltas no fold could apply. Above 0: read fold_dead_letters, mend, then rebuild the view.",
)
FOLD_SECONDS = metrics.histogram(
    "coffee_rt_aggregator_fold_seconds",
    "Time of one call that folds the touched lanes of a view. Rising: an old transaction in PostgreSQL, or vacuum is behind.",
)
FAILURES = metrics.counter(
    "coffee_rt_aggregator_failures_total",
    "Calls that PostgreSQL or Redis failed and that will be repeated, by dependency.",
    ("dependency",),
)
WAITING_DELTAS = metrics.gauge(
    "coffee_rt_aggregator_waiting_deltas",
    "Deltas not folded at the last look, over all lanes. Staying high: add instances.",
)
WAITING_SECONDS = metrics.gauge(
    "coffee_rt_aggregator_waiting_seconds",
    "Age of the oldest unfolded delta's newest order. Above a few seconds: views are read with a tail.",
)
INSTANCES = metrics.gauge(
    "coffee_rt_aggregator_instances",
    "Instances that share the lanes, as seen from this one.",
)
LANES_STOLEN = metrics.counter(
    "coffee_rt_aggregator_lanes_stolen_total",
    "Folds of lanes that belong to another instance which left them waiting. Rising: it hangs or is slow.",
)
CHUNKS_LEFT = metrics.gauge(
    "coffee_rt_aggregator_backfill_chunks",
    "Chunks of history that views on their way still lack.",
)
