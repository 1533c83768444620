"""Settings of query_api."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from coffee_rt.callers.settings import RequestSettings
from coffee_rt.runtime.settings import DatabaseSettings, RedisSettings, own


class QueryApiSettings(RequestSettings):
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
    requests_per_minute: int = own(
        6_000, ge=0, help="Requests a minute of an API key that has no limit of its own; 0: none."
    )
    caller_requests_max: int = own(
        3,
        ge=1,
        help="Requests of one caller answered at once by this process, at most half as many as it may have "
        "connections to PostgreSQL; more wait their turn.",
    )
    caller_waiting_max: int = own(
        32, ge=0, help="Requests of one caller that wait their turn; more get 429."
    )
    caller_wait_seconds_max: float = own(
        5.0, gt=0, help="Seconds a request waits for its turn; then it gets 429."
    )
    statement_seconds_max: float = own(
        5.0,
        gt=0,
        help="Seconds a statement of a read may take; then PostgreSQL ends it, and the answer is 503. Below "
        "COFFEE_RT_DATABASE_COMMAND_SECONDS_MAX.",
    )

    def hosts(self) -> tuple[str, ...]:
        return (self.http_host,)
