"""Where an administrator's command finds the servers: options, the environment, or the running `up`.

First what the command line names; then COFFEE_RT_REDIS_URL and COFFEE_RT_DATABASE_URL; then the `up` that
runs on the data directory. Commands thus work without settings beside a laptop's `up`, and on Kubernetes
with the settings every process has.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import Field

from coffee_rt.embedded.directory import running_environment
from coffee_rt.embedded.server_process import ServerProblem
from coffee_rt.runtime.environment import environment, load
from coffee_rt.runtime.settings import DatabaseSettings, ProcessSettings, RedisSettings

DEFAULT_DATA_DIR = Path("data")
DEFAULT_ADDRESS = "http://127.0.0.1:8080"


T = TypeVar("T", bound="ToolSettings")


class ToolSettings(ProcessSettings):
    """What a command needs to reach an installation; the shared settings, no own ones."""

    redis: RedisSettings = Field(default_factory=RedisSettings)
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)


def reach(
    data_dir: Path | None = None, redis_url: str | None = None, database_url: str | None = None
) -> ToolSettings:
    """Settings to reach the installation with. Raises ServerProblem, or SettingsError for a bad one.

    `data_dir` given: the `up` running there and nothing else.
    """
    return reach_as(ToolSettings, data_dir, redis_url, database_url)


def reach_as(
    cls: type[T],
    data_dir: Path | None = None,
    redis_url: str | None = None,
    database_url: str | None = None,
) -> T:
    """The same for a command with settings of its own."""
    environ = environment()
    running = running_environment(data_dir or DEFAULT_DATA_DIR)
    if data_dir is not None:
        if running is None:
            raise ServerProblem(
                f"No `coffee-rt up` is running on {data_dir}. Start one, or name the servers with "
                "--redis-url and --database-url."
            )
        environ |= running
    elif running is not None and "COFFEE_RT_DATABASE_URL" not in environ:
        environ = running | environ
    if redis_url:
        environ["COFFEE_RT_REDIS_URL"] = redis_url
    if database_url:
        environ["COFFEE_RT_DATABASE_URL"] = database_url
    return load(cls, environ)


def reach_address(data_dir: Path | None = None) -> str:
    """The public HTTP address of the `up` on a data directory; the default one when none runs."""
    try:
        return ((data_dir or DEFAULT_DATA_DIR) / "address").read_text().strip()
    except OSError:
        return DEFAULT_ADDRESS
