"""The address of Redis as one text: one server, a Sentinel's master, or a Cluster. Pure.

    redis://[user:password@]host:6379/0      one server; rediss:// with TLS, unix:///path without a network
    redis+sentinel://[user:password@]host1:26379,host2:26379/MASTER[/0]
    redis+cluster://[user:password@]host1:6379,host2:6379

`rediss+sentinel` and `rediss+cluster` use TLS to every server, sentinels included. Sentinels are given the
servers' user and password, unless `?sentinel_password=` (and `sentinel_username`) names their own; one that
wants none is spoken to without. Of a cluster any node will do: it names the others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

from coffee_rt.runtime.addresses import check_borders

Mode = Literal["single", "sentinel", "cluster"]

SENTINEL_PORT = 26379
REDIS_PORT = 6379
_SCHEMES: dict[str, tuple[Mode, bool]] = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "unix": ("single", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<name>[\w.-]+))(?::(?P<port>\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where Redis is and who we are there."""

    mode: Mode
    is_tls: bool
    hosts: tuple[tuple[str, int], ...] = ()
    """Sentinels, or some of a cluster's nodes. Empty for one server: its library reads the text itself."""
    master: str = ""
    """What the sentinels call the master."""
    database: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)

    @property
    def fails_over(self) -> bool:
        """Whether another server takes the place of one that died, within seconds."""
        return self.mode != "single"


def parse_redis_address(text: str) -> RedisAddress:
    """Raises ValueError with a sentence that holds nothing secret."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError(f"must begin with one of {', '.join(f'{name}://' for name in _SCHEMES)}")
    check_borders(text)
    mode, is_tls = _SCHEMES[scheme]
    if mode == "single":
        _check_port(text)
        return RedisAddress(mode, is_tls)
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    userinfo, _, hosts = authority.rpartition("@")
    username, _, password = userinfo.partition(":")
    master, database = _parse_path(mode, path)
    sentinel_username, sentinel_password = _parse_query(mode, query)
    default_port = SENTINEL_PORT if mode == "sentinel" else REDIS_PORT
    return RedisAddress(
        mode,
        is_tls,
        tuple(_parse_host(host, default_port) for host in hosts.split(",")),
        master,
        database,
        unquote(username) or None,
        unquote(password) or None,
        sentinel_username,
        sentinel_password,
    )


def _check_port(text: str) -> None:
    try:
        _ = urlsplit(text).port
    except ValueError:
        raise ValueError(
            "names a port that is none (in a user or password, write / as %2F)"
        ) from None


def _parse_host(text: str, default_port: int) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    if found is None:
        raise ValueError(
            "must list hosts as host:port,host:port (an IPv6 address in brackets; in a user or "
            "password, write @ : / , ? as %40 %3A %2F %2C %3F)"
        )
    port = int(found["port"] or default_port)
    if not 0 < port < 65536:
        raise ValueError(f"names port {port}, and there is none above 65535 or below 1")
    return found["v6"] or found["name"], port


def _parse_path(mode: Mode, path: str) -> tuple[str, int]:
    """(master, database)"""
    parts = path.rstrip("/").split("/")
    if mode == "cluster":
        if parts not in ([""], ["0"]):
            raise ValueError("must not name a database: a cluster has only one")
        return "", 0
    if not parts[0]:
        raise ValueError("must name the master after the sentinels, as in .../MASTER")
    if len(parts) > 2 or (len(parts) == 2 and not parts[1].isdecimal()):
        raise ValueError("must end in /MASTER or /MASTER/database, the database a number")
    return unquote(parts[0]), int(parts[1]) if len(parts) == 2 else 0


def _parse_query(mode: Mode, query: str) -> tuple[str | None, str | None]:
    """(user, password) of the sentinels where they are others than the servers'."""
    known = {"sentinel_username", "sentinel_password"} if mode == "sentinel" else set()
    given = {name: values[-1] for name, values in parse_qs(query).items()}
    if unknown := sorted(set(given) - known):
        allowed = f"; there are {', '.join(sorted(known))}" if known else ""
        raise ValueError(f"has options that are none ({', '.join(unknown)}){allowed}")
    return given.get("sentinel_username"), given.get("sentinel_password")
