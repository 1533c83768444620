"""Metrics of the live channels, the same in every process that publishes or subscribes."""

from __future__ import annotations

from coffee_rt.runtime.metrics import counter

dropped_messages = counter(
    "coffee_rt_channels_dropped_messages_total",
    "Received messages thrown away because their reader was too slow. The reader repaired itself from "
    "PostgreSQL; if it rises steadily, the process needs more CPU.",
)
reconnects = counter(
    "coffee_rt_channels_reconnects_total",
    "Subscriptions opened again after their connection to Redis was lost. Rising: look at Redis.",
)
failed_publications = counter(
    "coffee_rt_channels_failed_publications_total",
    "Messages that Redis did not take. Live views repair themselves from the beacon or by polling.",
)
