"""Whether a server keeps what it answered: what to ask it, and what the answers mean. Pure.

A server that was safe at the start can be changed while it runs (CONFIG SET), come back with another
configuration, or be unable to write to its disk: so this is asked again and again.
"""

from __future__ import annotations

from collections.abc import Sequence

REASONS = ("eviction", "append-only", "fsync", "disk")
"""What can be wrong: entries are evicted when memory is full; there is no append-only file; an answer does
not mean that it is on disk; the last write to disk failed."""


def judge_server(info: bytes, fsync: Sequence[bytes] | None) -> dict[str, bool]:
    """Reason -> whether it is so. What the server does not say is left out.

    `info` is INFO's memory and persistence; `fsync` the answer to CONFIG GET appendfsync (a name and its
    value), None where CONFIG isn't allowed.
    """
    facts = dict(line.split(b":", 1) for line in info.split(b"\r\n") if b":" in line)
    judged: dict[str, bool] = {}
    if b"maxmemory_policy" in facts:
        judged["eviction"] = facts[b"maxmemory_policy"] != b"noeviction"
    if b"aof_enabled" in facts:
        judged["append-only"] = facts[b"aof_enabled"] != b"1"
    if fsync and len(fsync) == 2:
        judged["fsync"] = fsync[1] != b"always"
    statuses = [facts.get(b"aof_last_write_status"), facts.get(b"aof_last_bgrewrite_status")]
    if any(statuses):
        judged["disk"] = b"err" in statuses
    return judged


def worst_of(judgements: Sequence[dict[str, bool]]) -> dict[str, bool]:
    """Of several servers: unsafe where one is."""
    return {
        reason: any(judged.get(reason, False) for judged in judgements)
        for reason in REASONS
        if any(reason in judged for judged in judgements)
    }
