"""Addresses of servers as texts with a password in them: read strictly, shown without it. Pure.

A password written without escapes (a slash, a space) moves the borders of what follows. Such an address is
refused here, in a sentence without any of it: later it would be half a password that a library complains of.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

# Up to the last @ before a slash: a password may hold one.
_CREDENTIALS = re.compile(r"://[^/\s]*@")
_ALL_TO_LAST_AT = re.compile(r"(?s)://.*@")
_PASSWORD_OPTION = re.compile(r"(?i)([?&]\w*password=)[^&\s]*")
_POSTGRES_HOST = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^\s:\[\]@]*)(:\d{1,5})?")
_ESCAPES = "in a user or password, write @ : / ? # and space as %40 %3A %2F %3F %23 %20"


def mask_credentials(text: str) -> str:
    """The text with user and password of any address in it replaced."""
    return _PASSWORD_OPTION.sub(r"\1***", _CREDENTIALS.sub("://***@", text))


def mask_secret(value: str) -> str:
    """A setting that is secret: an address without its password, whatever is in it, else nothing of it."""
    if value and "://" not in value:
        return "***"
    return _PASSWORD_OPTION.sub(r"\1***", _ALL_TO_LAST_AT.sub("://***@", value))


def check_borders(text: str) -> None:
    """Raises ValueError when user and password reach beyond where hosts should be."""
    rest = text.partition("://")[2]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if re.search(r"\s", text) or (authority and "@" in rest and "@" not in authority):
        raise ValueError(f"is no address ({_ESCAPES})")


def check_database_address(text: str) -> None:
    """Raises ValueError with a sentence that holds nothing secret."""
    if not text.startswith(("postgresql://", "postgres://")):
        raise ValueError("must begin with postgresql://")
    check_borders(text)
    try:
        parts = urlsplit(text)
        if parts.query:
            parse_qsl(parts.query, strict_parsing=True)
    except ValueError:
        raise ValueError(f"is no address ({_ESCAPES})") from None
    hosts = parts.netloc.rpartition("@")[2].split(",")
    if parts.fragment or not all(_POSTGRES_HOST.fullmatch(host) for host in hosts):
        raise ValueError(f"must name hosts as host:port ({_ESCAPES})")
