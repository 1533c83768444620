"""Finds the node of a Cluster that holds a key's slot.

The map of slots comes from any node that answers. It is read again when a node says that a slot moved,
when one can't be reached, and before a new connection once it is a minute old.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import ConnectionError as NotConnected

from coffee_rt.redis_nodes.connections import AWAY, Node, ask
from coffee_rt.runtime.redis_address import RedisAddress

MAP_SECONDS_MAX = 60.0
"""Age at which the map is read again, so that nodes which were taken away are forgotten."""
READ_SECONDS_MIN = 0.1
"""Between two readings: while a primary is dead, every attempt to reach it doubts the map."""
SUSPECT_SECONDS = 5.0
"""A node that could not be reached is asked last for so long."""


class ClusterFinder:
    """A Finder. `connect` makes an unopened connection to a node."""

    def __init__(self, address: RedisAddress, connect: Callable[..., AbstractConnection]) -> None:
        self._seeds = [Node(*host) for host in address.hosts]
        self._connect = connect
        self._reading = asyncio.Lock()
        self._slots: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._nodes: list[Node] = []
        self._read_at = float("-inf")
        self._is_doubted = True
        self._suspects: dict[Node, float] = {}

    async def find(self, key: bytes | None) -> Node:
        await self._refresh()
        if key is None:
            return self._by_trust(self._nodes)[0]
        node = self._slots[key_slot(key)]
        if node is None:
            self.doubt()
            raise NotConnected(f"no node of the cluster serves slot {key_slot(key)}")
        return node

    async def verify(self, connection: AbstractConnection) -> None:
        """Nothing to ask: a node that doesn't serve a key says so at each command."""

    @property
    def moves(self) -> int:
        # A node that is cut off from most of the others says so itself, after cluster-node-timeout.
        return 0

    def moved(self, slot: int, node: Node) -> None:
        self._slots[slot] = node
        self.doubt()

    def doubt(self) -> None:
        self._is_doubted = True

    def suspect(self, node: Node) -> None:
        self._suspects[node] = time.monotonic() + SUSPECT_SECONDS

    async def one_a_node(self, keys: Sequence[bytes]) -> list[bytes]:
        await self._refresh()
        # A key whose slot nobody serves counts as a node: whoever asks for it is told.
        first: dict[Node | None, bytes] = {}
        for key in keys:
            first.setdefault(self._slots[key_slot(key)], key)
        return list(first.values())

    async def nodes(self) -> list[Node]:
        await self._refresh()
        return list(self._nodes)

    async def _refresh(self) -> None:
        async with self._reading:
            age = time.monotonic() - self._read_at
            if age < (READ_SECONDS_MIN if self._is_doubted else MAP_SECONDS_MAX):
                return
            self._is_doubted = False
            try:
                await self._read()
            except BaseException:
                self._is_doubted = True
                raise
            self._read_at = time.monotonic()

    async def _read(self) -> None:
        problem: Exception | None = None
        seeds = [node for node in self._seeds if node not in self._nodes]
        for node in [*self._by_trust(self._nodes), *seeds]:
            try:
                self._take(node, await ask(self._connect(node), "CLUSTER", "SLOTS"))
                return
            except AWAY as error:
                self.suspect(node)
                problem = error
        raise NotConnected(f"no node of the cluster answers: {problem or type(problem).__name__}")

    def _take(self, asked: Node, ranges: Sequence[Any]) -> None:
        """What CLUSTER SLOTS says. A node that doesn't know its own address leaves it empty."""
        slots: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        nodes: dict[Node, None] = {}
        for first, last, *members in ranges:
            found = [Node(member[0] or asked.host, int(member[1])) for member in members]
            slots[first : last + 1] = [found[0]] * (last + 1 - first)
            nodes |= dict.fromkeys(node for node in found if node.host != "?")
        if not nodes:
            raise NotConnected(f"{asked} serves no slots: it is in no cluster")
        self._slots, self._nodes = slots, list(nodes)

    def _by_trust(self, nodes: Sequence[Node]) -> list[Node]:
        """In any order, those that could not be reached a moment ago last."""
        now = time.monotonic()
        self._suspects = {node: until for node, until in self._suspects.items() if until > now}
        shuffled = random.sample(nodes, len(nodes))
        return sorted(shuffled, key=lambda node: node in self._suspects)
