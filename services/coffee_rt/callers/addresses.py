"""Whose address a request comes from, and what of it is limited. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

Network = IPv4Network | IPv6Network


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Networks written as 10.0.0.0/8, or as one address. Raises ValueError, which says which text is none."""
    return tuple(map(ip_network, texts))


def client_address(
    client: tuple[str, int] | None, forwarded: bytes | None, trusted: Sequence[Network]
) -> str:
    """The nearest address that is no trusted proxy: X-Forwarded-For is read from its right end, and only
    as long as each hop that wrote it is trusted."""
    address = str(client[0]) if client else "unknown"
    if forwarded is None or not trusted:
        return address
    for hop in reversed(forwarded.decode("latin-1").split(",")):
        if not _is_trusted(address, trusted):
            return address
        address = hop.strip()
    return address


def client_subject(address: str) -> str:
    """What of an address is limited: for IPv6 its /64, because one caller is given all of those."""
    parsed = _parse_address(address)
    if parsed is None:
        return "unknown"
    if isinstance(parsed, IPv4Address):
        return str(parsed)
    return str(ip_network((int(parsed) >> 64 << 64, 64)))


def _is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    parsed = _parse_address(address)
    return parsed is not None and any(parsed in network for network in trusted)


def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """An address, with a port as some proxies write it; an IPv4 one inside IPv6 is that IPv4 one."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        parsed = ip_address(text)
    except ValueError:
        return None
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed
