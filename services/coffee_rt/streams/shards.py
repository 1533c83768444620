"""Names of the log's keys, and how shards are spread.

Each shard's keys carry one hash tag, so that a script finds them on one node. The number of shards is
fixed when the log is first used: another number would look for idempotency keys in the wrong place.
"""

from __future__ import annotations

from binascii import crc_hqx
from functools import lru_cache

from coffee_rt.domain.ids import SHARDS_MAX
from coffee_rt.errors import Rejected

SLOTS = 16384
"""Slots of Redis Cluster."""


def slot_of(text: str) -> int:
    """Cluster slot of a hash tag (CRC16/XMODEM, Redis Cluster specification)."""
    return crc_hqx(text.encode(), 0) % SLOTS


@lru_cache(maxsize=SHARDS_MAX)
def tag(shard: int, shards: int) -> str:
    """Hash tag of a shard: the smallest suffix that puts it into its own share of the slots, so that
    shards spread evenly over whatever nodes share them."""
    low, high = shard * SLOTS // shards, (shard + 1) * SLOTS // shards
    suffix = 0
    while not low <= slot_of(f"{shard}.{suffix}") < high:
        suffix += 1
    return f"{shard}.{suffix}"


class LogKeys:
    """The names of one log's keys. Immutable."""

    __slots__ = (
        "client_ids", "counters", "keys", "marks", "namespace", "shards", "streams", "timelines"
    )  # fmt: skip

    def __init__(self, namespace: str, shards: int) -> None:
        if not 0 < shards <= SHARDS_MAX:
            raise Rejected("bad-shards", f"must be 1 to {SHARDS_MAX}, not {shards}", "/shards")
        if not namespace or "{" in namespace or "}" in namespace:
            raise Rejected("bad-namespace", "must be a name without braces", "/namespace")
        self.namespace = namespace
        self.shards = shards
        tags = [tag(shard, shards) for shard in range(shards)]
        self.streams = [f"{namespace}:orders:{{{t}}}".encode() for t in tags]
        self.counters = [f"{namespace}:count:{{{t}}}".encode() for t in tags]
        self.marks = [f"{namespace}:trim:{{{t}}}".encode() for t in tags]
        self.timelines = [f"{namespace}:timeline:{{{t}}}".encode() for t in tags]
        self.keys = [f"{namespace}:key:{{{t}}}:".encode() for t in tags]
        """Prefixes: the hex of the key's hash follows."""
        self.client_ids = [f"{namespace}:oid:{{{t}}}:".encode() for t in tags]
        """Prefixes: the hex of the order id follows."""

    @property
    def groups(self) -> bytes:
        """Registry of consumer groups: name -> when it was registered."""
        return f"{self.namespace}:groups".encode()

    @property
    def install(self) -> bytes:
        return f"{self.namespace}:install".encode()


def check_shards(stored: int, wanted: int) -> None:
    """Raises Rejected when the log was installed with another number of shards."""
    if stored != wanted:
        raise Rejected(
            "other-shards",
            f"this log was installed with {stored} shards and can't be used with {wanted}: "
            f"set COFFEE_RT_SHARDS={stored}",
            "/shards",
        )
