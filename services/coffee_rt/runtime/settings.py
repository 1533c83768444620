"""Settings that all processes share: one frozen object, of variables that `runtime.environment` reads.

An object made directly has its defaults and what it was given, nothing from outside. Names: COFFEE_RT_<FIELD>
for what all processes share, COFFEE_RT_<PROCESS>_<FIELD> for a process's own fields, COFFEE_RT_REDIS_<FIELD>
and COFFEE_RT_DATABASE_<FIELD> for the servers.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from coffee_rt.runtime.addresses import check_database_address
from coffee_rt.runtime.redis_address import RedisAddress, parse_redis_address

PREFIX = "COFFEE_RT_"

FAILOVER_BREAKER_SECONDS = 2.0
"""How long a log that fails over is left alone at most: its next server is there within seconds."""

OPEN_FILES_BESIDE = 256
"""What a process opens beside the connections of its clients: servers' connections, files, libraries."""

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class SettingsError(Exception):
    """One or more settings can't be used; each line of the text says which and why."""


def shared(default: Any, *, help: str, **bounds: Any) -> Any:  # noqa: A002
    """A field read from COFFEE_RT_<FIELD> (or from the server's prefix in a server's class)."""
    return Field(default, description=help, **bounds)


def own(default: Any, *, help: str, **bounds: Any) -> Any:  # noqa: A002
    """A process's own field, read from COFFEE_RT_<PROCESS>_<FIELD>. Bounds as of pydantic: ge, gt, le."""
    return Field(default, description=help, json_schema_extra={"own": True}, **bounds)


class Settings(BaseSettings):
    """Frozen, refuses unknown fields, and takes values only from its constructor."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=PREFIX, allow_inf_nan=False
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


class RedisSettings(Settings):
    """The Redis or Valkey server that holds the log and carries live updates."""

    model_config = SettingsConfigDict(env_prefix="COFFEE_RT_REDIS_")

    url: str = shared(
        "redis://127.0.0.1:6379/0",
        repr=False,
        help="Address, with user and password if there are any: redis://, rediss:// (TLS), unix://, "
        "redis+sentinel://host:26379,host:26379/MASTER or redis+cluster://host:6379,host:6379.",
    )
    ca_file: Path | None = shared(
        None,
        help="Certificates (PEM) the servers' own are checked with, beside the system's; TLS only.",
    )
    certificate_file: Path | None = shared(
        None, help="Our certificate (PEM), where the servers ask clients for one; TLS only."
    )
    key_file: Path | None = shared(
        None, help="The key of our certificate (PEM), where it is a file of its own."
    )
    connect_seconds_max: float = shared(
        5.0, gt=0, help="Seconds to wait for a connection. Longer hides an outage from the breaker."
    )
    command_seconds_max: float = shared(
        5.0, gt=0, help="Seconds to wait for an answer; blocking reads add their own wait to it."
    )
    pool_size_max: int = shared(
        32, ge=1, help="Connections for commands that don't block. At the limit, callers wait."
    )
    health_check_seconds: float = shared(
        15.0, gt=0, help="Seconds after which an idle connection is pinged before it is used."
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        parse_redis_address(url)
        return url

    @field_validator("ca_file", "certificate_file", "key_file")
    @classmethod
    def _check_file(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is None or "url" not in info.data:
            return path
        if not parse_redis_address(info.data["url"]).is_tls:
            # Else whoever set it would believe that the connection is encrypted.
            raise ValueError("needs an address with TLS: rediss://, rediss+sentinel://, ...")
        if info.field_name == "key_file" and info.data.get("certificate_file") is None:
            raise ValueError("needs the certificate too: COFFEE_RT_REDIS_CERTIFICATE_FILE")
        if not path.is_file():
            raise ValueError("is not a file")
        return path

    @property
    def address(self) -> RedisAddress:
        """`url`, taken apart."""
        return parse_redis_address(self.url)

    def breaker_seconds(self, configured: float) -> float:
        """How long a breaker around this log stays open."""
        fails_over = self.address.fails_over
        return min(configured, FAILOVER_BREAKER_SECONDS) if fails_over else configured


class DatabaseSettings(Settings):
    """The PostgreSQL that holds orders and views."""

    model_config = SettingsConfigDict(env_prefix="COFFEE_RT_DATABASE_")

    url: str = shared(
        "postgresql://127.0.0.1:5432/coffee_rt",
        repr=False,
        help="Address of the primary, with user, password and database.",
    )
    replica_url: str | None = shared(
        None, repr=False, help="Address of a replica for reads that may lag; none: the primary."
    )
    ca_file: Path | None = shared(
        None,
        help="Certificates (PEM) PostgreSQL's own is checked with, its name too (sslmode=verify-full, "
        "or verify-ca where the address says so). Without it the address's sslmode alone decides.",
    )
    certificate_file: Path | None = shared(
        None, help="Our certificate (PEM), where PostgreSQL asks clients for one."
    )
    key_file: Path | None = shared(None, help="The key of our certificate (PEM).")
    pool_size_min: int = shared(1, ge=0, help="Connections kept open by a process.")
    pool_size_max: int = shared(
        8,
        ge=1,
        help="Most connections of a process. Times the pods it must stay below max_connections.",
    )
    acquire_seconds_max: float = shared(
        5.0, gt=0, help="Seconds to wait for a free connection; then the work is retried later."
    )
    command_seconds_max: float = shared(
        30.0, gt=0, help="Seconds a statement may take (a lost synchronous standby would hang it)."
    )
    connection_lifetime_seconds_max: float = shared(
        1800.0, gt=0, help="Age at which a connection is replaced, so that load follows a failover."
    )
    statement_cache_size: int = shared(
        256, ge=0, help="Prepared statements kept a connection; 0 behind an old PgBouncer."
    )

    @field_validator("url", "replica_url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is not None:
            check_database_address(url)
        return url

    @field_validator("ca_file", "certificate_file", "key_file")
    @classmethod
    def _check_file(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is None:
            return path
        if info.field_name == "certificate_file" and info.data.get("ca_file") is None:
            raise ValueError(
                "needs COFFEE_RT_DATABASE_CA_FILE: whom it is shown to must be checked"
            )
        if info.field_name == "key_file" and info.data.get("certificate_file") is None:
            raise ValueError("needs the certificate too: COFFEE_RT_DATABASE_CERTIFICATE_FILE")
        if not path.is_file():
            raise ValueError("is not a file")
        for url in (info.data.get("url"), info.data.get("replica_url")):
            mode = dict(parse_qsl(urlsplit(url or "").query)).get("sslmode", "verify-full")
            if mode not in ("verify-ca", "verify-full"):
                # Else whoever set it would believe that the server is checked.
                raise ValueError(f"can't be used with sslmode={mode} in the address")
        return path

    def model_post_init(self, context: Any, /) -> None:
        # Into the addresses, so that whoever connects by one of them connects by TLS.
        for field in ("url", "replica_url"):
            url = getattr(self, field)
            if url and self.ca_file is not None:
                object.__setattr__(self, field, self._with_tls(url))

    def _with_tls(self, url: str) -> str:
        parts = urlsplit(url)
        query = {"sslmode": "verify-full", **dict(parse_qsl(parts.query))}
        files = {
            "sslrootcert": self.ca_file,
            "sslcert": self.certificate_file,
            "sslkey": self.key_file,
        }
        query |= {name: str(path) for name, path in files.items() if path is not None}
        return urlunsplit(parts._replace(query=urlencode(query)))


class ProcessSettings(Settings):
    """What every process has. A process's class adds `own` fields and the servers it speaks to."""

    process: ClassVar[str] = ""

    namespace: str = shared(
        "coffee-rt",
        pattern=r"^[a-zA-Z0-9._-]{1,64}$",
        help="Prefix of every Redis key, so that several installations can share a server.",
    )
    shards: int = shared(
        4, ge=1, le=1024, help="Streams of the log. Fixed at install; another number won't start."
    )
    currency_decimals: int = shared(
        2, ge=0, le=4, help="Decimals of the currency; amounts are kept in its smallest unit."
    )
    instance: str = shared(
        "",
        pattern=r"^[a-zA-Z0-9._-]{0,128}$",
        help="Name of this process among its kind (the consumer's name); default: host and pid.",
    )
    auth: Literal["required", "off"] = shared(
        "required", help="off: no API keys, every caller may do everything (on a laptop only)."
    )
    http_host: str = shared("127.0.0.1", help="Address to listen on.")
    http_port: int = shared(8000, ge=0, le=65535, help="Port to listen on; 0: any free one.")
    http_connections_max: int = shared(
        3000,
        ge=8,
        help="HTTP connections of this process. At the limit the oldest one without a request makes room.",
    )
    http_answer_seconds_max: float = shared(
        60.0, gt=0, help="Seconds a client may leave an answer unread; then its connection is cut."
    )
    log_format: Literal["auto", "json", "pretty"] = shared(
        "auto", help="auto: pretty on a terminal, else JSON."
    )
    log_level: Literal["debug", "info", "warning", "error"] = shared(
        "info", help="Least severe level that is written."
    )
    open_files_min: int = shared(
        1024,
        ge=64,
        help="Open files needed, if more than for all connections that are allowed; fewer (after raising "
        "to the hard limit) won't start.",
    )
    otlp_endpoint: str | None = shared(
        None, help="Where traces are sent (OTLP over HTTP); none: no traces."
    )
    grace_seconds: float = shared(
        25.0, gt=0, help="Seconds to drain after SIGTERM; then the process ends with exit code 1."
    )
    breaker_failures: int = shared(
        5, ge=1, help="Failures in a row after which a server is left alone for a while."
    )
    breaker_open_seconds: float = shared(
        2.0,
        gt=0,
        help="Seconds at the most for which a failing server is left alone before one call tries it again; half a second at "
        "first, twice as long after each failed try. Longer: what is away for long is asked seldom, and used again later.",
    )

    def model_post_init(self, context: Any, /) -> None:
        if not self.instance:
            # Frozen for everybody else: the default needs the host and the pid.
            object.__setattr__(self, "instance", f"{socket.gethostname()}-{os.getpid()}")
        for host in self.hosts():
            if self.auth == "off" and host not in LOOPBACK:
                raise SettingsError(
                    f"COFFEE_RT_AUTH=off is allowed only on a loopback address, not on {host}: "
                    "whoever reaches it could do everything"
                )

    def open_files(self) -> int:
        """Open files this process may come to need."""
        return max(self.open_files_min, self.http_connections_max + OPEN_FILES_BESIDE)

    def hosts(self) -> tuple[str, ...]:
        """The addresses this process listens on for callers with API keys."""
        return ()
