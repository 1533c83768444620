"""Settings of query_api."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from coffee_rt.runtime.settings import DatabaseSettings, ProcessSettings, RedisSettings, own


class QueryApiSettings(ProcessSettings):
    """COFFEE_RT_QUERY_API_* and the shared ones."""

    process: ClassVar[str] = "query-api"

    redis: RedisSettings = Field(default_factory=RedisSettings)
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    position_wait_seconds_max: float = own(
        2.0,
        ge=0,
        le=30,
        help="Seconds a read waits for the position it was given; then it says so.",
    )
    catalogue_seconds_max: float = own(
        5.0, ge=0, help="Seconds the list of views is cached; a new view is unlisted that long."
    )
    keys_refresh_seconds: float = own(
        10.0,
        gt=0,
        help="Seconds between loads of the API keys: how long a revoked key still works.",
    )
    keys_age_seconds_max: float = own(
        3600.0, gt=0, help="Age up to which cached API keys are believed while PostgreSQL is away."
    )

    def hosts(self) -> tuple[str, ...]:
        return (self.http_host,)
