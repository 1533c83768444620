"""Settings of fanout."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from coffee_rt.callers.settings import CallerSettings, own_proxies
from coffee_rt.runtime.settings import DatabaseSettings, RedisSettings, own


class FanoutSettings(CallerSettings):
    """COFFEE_RT_FANOUT_* and the shared ones."""

    process: ClassVar[str] = "fanout"

    redis: RedisSettings = Field(default_factory=RedisSettings)
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    websocket_host: str = own("127.0.0.1", help="Address to listen on for WebSockets.")
    websocket_port: int = own(
        8001, ge=0, le=65535, help="Port to listen on for WebSockets; 0: any free one."
    )
    page_folder: Path | None = own(
        None, help="Folder of the built dashboard page; none: the one inside the package."
    )
    origins: tuple[str, ...] = own(
        (),
        help="Web origins that may connect besides the page's own, exactly as browsers send them, "
        "such as https://shop.example; with commas between.",
    )
    trusted_proxies: tuple[str, ...] = own_proxies(("127.0.0.0/8", "::1/128"))
    sessions_max: int = own(
        10_000, ge=1, help="Open sessions of this process; more are refused with 503."
    )
    sessions_per_address_max: int = own(
        2_000, ge=1, help="Open sessions of one client address; more are closed with 4429."
    )
    sessions_per_key_max: int = own(
        5_000,
        ge=1,
        help="Open sessions of one API key; more are closed with 4429. Half of all, so that no key takes "
        "every place.",
    )
    connects_per_minute: int = own(
        6_000,
        ge=0,
        help="Connections a minute of one client address, of all pods; more are closed with 4429. 0: no limit.",
    )
    subscriptions_max: int = own(16, ge=1, le=256, help="Subscriptions of one session.")
    message_bytes_max: int = own(
        16_384, ge=1_024, help="Bytes of a client's message; a larger one is closed with 1009."
    )
    messages_per_second_max: float = own(
        20.0, gt=0, help="Messages and pings of a session in the long run; more: closed with 4429."
    )
    messages_burst_max: int = own(100, ge=1, help="Messages and pings at once.")
    hello_seconds_max: float = own(
        5.0, gt=0, help="Seconds to show a token where keys are on; then closed with 4401."
    )
    ping_seconds: float = own(
        20.0, gt=0, help="Seconds between pings; a socket silent for a whole round is cut."
    )
    heartbeat_seconds: float = own(
        2.0, gt=0, le=2.0, help="Seconds between heartbeats; pages reconnect after 5 s of silence."
    )
    frame_interval_ms: float = own(
        # Below the distance of two commits, so that each is seen when it comes. With many sockets the
        # hub paces itself: a flush is followed by a rest as long as it took.
        10.0,
        ge=0,
        help="At most one frame a channel in so long; larger saves CPU, adds delay.",
    )
    rows_max: int = own(
        100_000,
        ge=100,
        help="Rows of one view in memory (300 bytes each); beyond: a shorter window.",
    )
    delta_rows_max: int = own(
        5_000, ge=1, help="Changed rows of one frame; a session further behind gets a snapshot."
    )
    deep_rows_max: int = own(
        200_000, ge=1, help="Rows of a snapshot read from PostgreSQL; more are refused."
    )
    drain_seconds: float = own(
        5.0, gt=0, help="Seconds over which sessions are sent away; below the grace period."
    )

    def hosts(self) -> tuple[str, ...]:
        return (self.http_host, self.websocket_host)

    def open_files(self) -> int:
        return super().open_files() + self.sessions_max
