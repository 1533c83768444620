"""The Lua scripts of the log, each with its SHA-1 as EVALSHA wants it.

Every script touches keys of one shard only (one hash tag, one slot), so all of them run in a cluster.
"""

from __future__ import annotations

from hashlib import sha1
from importlib import resources
from typing import NamedTuple


class Script(NamedTuple):
    text: bytes
    sha: bytes


def _load(name: str) -> Script:
    text = resources.files(__package__).joinpath("lua", f"{name}.lua").read_bytes()
    return Script(text, sha1(text, usedforsecurity=False).hexdigest().encode())


APPEND = _load("append")
TRIM = _load("trim")
BACKLOG = _load("backlog")
SETTLED = _load("settled")
LEAVE = _load("leave")
FOLLOW = _load("follow")
ACKNOWLEDGE = _load("acknowledge")
