"""Metrics of fanout."""

from __future__ import annotations

from coffee_rt.runtime.metrics import counter, gauge, histogram

sessions = gauge(
    "coffee_rt_fanout_sessions_count",
    "Open client sessions by kind (websocket, stream, dashboard). What the process scales on.",
    ["kind"],
)
for _kind in ("websocket", "stream", "dashboard"):
    sessions.labels(_kind)
subscriptions = gauge("coffee_rt_fanout_subscriptions_count", "Open subscriptions of all sessions.")
frames = counter("coffee_rt_fanout_frames_total", "Frames written to sockets by type.", ["type"])
frame_bytes = counter("coffee_rt_fanout_frame_bytes_total", "Bytes of frames written to sockets.")
flush_seconds = histogram(
    "coffee_rt_fanout_flush_seconds",
    "Time to send one round of changes to everybody. Near the frame interval: add processes.",
)
lagging = gauge(
    "coffee_rt_fanout_lagging_subscriptions_count",
    "Subscriptions whose browser reads too slowly: they get fewer frames, never a wrong number.",
)
resets = counter(
    "coffee_rt_fanout_resets_total",
    "Sessions told to start again from a snapshot, by reason. Many 'lagging': browsers are too slow.",
    ["reason"],
)
resumes = counter(
    "coffee_rt_fanout_resumes_total",
    "Subscriptions that brought versions, by result: delta (kept its rows) or snapshot.",
    ["result"],
)
reloads = counter(
    "coffee_rt_fanout_reloads_total",
    "Loads from PostgreSQL by what was loaded (view, lane, deep, poll). Lanes: publications get lost.",
    ["what"],
)
reload_failures = counter(
    "coffee_rt_fanout_reload_failures_total",
    "Loads from PostgreSQL that failed and will be tried again. Rising: look at the database.",
)
publications = counter(
    "coffee_rt_fanout_publications_total",
    "Publications received by what became of them (applied, stale, gap, reload, other-epoch, bad).",
    ["verdict"],
)
beacon_silences = counter(
    "coffee_rt_fanout_beacon_silences_total",
    "Times lane versions were polled because no beacon came. Rising: is an aggregator running?",
)
view_rows = gauge(
    "coffee_rt_fanout_view_rows_count", "Rows of all views held in memory for snapshots."
)
publication_age_seconds = histogram(
    "coffee_rt_fanout_publication_age_seconds",
    "From the acceptance of a publication's newest order to its arrival here.",
)
refused = counter(
    "coffee_rt_fanout_refused_total",
    "Connections and subscriptions refused by reason. 'origin': set COFFEE_RT_FANOUT_ORIGINS.",
    ["reason"],
)
closed = counter(
    "coffee_rt_fanout_closed_total", "Sessions closed by us, by WebSocket close code.", ["code"]
)
