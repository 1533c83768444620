"""Finds the master by asking its sentinels.

All sentinels are asked at once; what most of them say counts, because one that was cut off may still name
the old master. Whoever they name must say itself that it is the master before it is used.

A master that is cut off from its sentinels, but not from us, answers on for as long as that lasts: what is appended to it will
be taken away, and nothing new arrives to be read. So whoever has asked the sentinels once goes on asking, and leaves a master
that most of them no longer name.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as NotConnected

from coffee_rt.redis_nodes.connections import AWAY, Node, ask
from coffee_rt.runtime.redis_address import RedisAddress

FRESH_SECONDS = 0.5
"""What the sentinels said serves so long, so that a process that opens ten connections asks once."""
AGAIN_SECONDS = 5.0
"""Between two questions of a process that uses a master."""


class SentinelFinder:
    """A Finder. `connect` makes an unopened connection to a sentinel or a server."""

    def __init__(self, address: RedisAddress, connect: Callable[..., AbstractConnection]) -> None:
        self._address = address
        self._connect = connect
        self._asking = asyncio.Lock()
        self._master: Node | None = None
        self._asked_at = 0.0
        self._failures = 0
        self._problem = ""
        """Of the last failure."""
        self._is_login_needed = True
        self._moves = 0
        self._named: set[Node] = set()
        """Whom connections may have been opened to since the last move, by however many sentinels named."""
        self._watching: asyncio.Task[None] | None = None

    async def find(self, key: bytes | None) -> Node:
        failures = self._failures
        async with self._asking:
            if self._failures != failures:
                # Nobody answered while this one waited for its turn. Ten that each ask anew wait ten times as long.
                raise NotConnected(self._problem)
            if self._master is None or time.monotonic() > self._asked_at + FRESH_SECONDS:
                try:
                    self._master = await self._ask_all()
                except NotConnected as error:
                    self._failures += 1
                    self._problem = str(error)
                    raise
                self._asked_at = time.monotonic()
                if self._watching is None or self._watching.done():
                    self._watching = asyncio.create_task(_keep_asking(weakref.ref(self)))
            return self._master

    @property
    def moves(self) -> int:
        return self._moves

    async def verify(self, connection: AbstractConnection) -> None:
        await connection.send_command("ROLE", check_health=False)
        role = (await connection.read_response())[0]
        if role not in (b"master", "master"):
            self.doubt()
            raise NotConnected("the server the sentinels name is not a master (yet)")

    def moved(self, slot: int, node: Node) -> None:
        return

    def doubt(self) -> None:
        self._master = None

    def suspect(self, node: Node) -> None:
        return

    async def one_a_node(self, keys: Sequence[bytes]) -> list[bytes]:
        return list(keys[:1])

    async def nodes(self) -> list[Node]:
        """The master first, then its replicas that are up."""
        master = await self.find(None)
        for host, port in self._address.hosts:
            try:
                replicas = await self._ask(Node(host, port), "REPLICAS", self._address.master)
            except AWAY:
                continue
            found = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in replicas or []]
            up = [one for one in found if "s_down" not in one["flags"].split(",")]
            return [master, *(Node(one["ip"], int(one["port"])) for one in up)]
        return [master]

    async def _ask_all(self) -> Node:
        hosts = self._address.hosts
        name = self._address.master
        asking = [
            asyncio.ensure_future(self._ask(Node(*host), "GET-MASTER-ADDR-BY-NAME", name))
            for host in hosts
        ]
        votes: Counter[Node] = Counter()
        problem = f"no sentinel knows a master called {name}"
        try:
            for answer in asyncio.as_completed(asking):
                try:
                    found = await answer
                except AWAY as error:
                    problem = f"no sentinel answers: {error or type(error).__name__}"
                    continue
                if found is None:
                    continue
                node = Node(found[0], int(found[1]))
                votes[node] += 1
                if votes[node] > len(hosts) // 2:
                    break
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        if not votes:
            raise NotConnected(problem)
        [(master, count)] = votes.most_common(1)
        self._named.add(master)
        if count > len(hosts) // 2 and len(self._named) > 1:
            # Fewer may be those that were cut off, and are no reason to leave a server that answers.
            self._moves += 1
            self._named = {master}
        return master

    async def _ask(self, sentinel: Node, *command: str) -> Any:
        address = self._address
        if address.sentinel_password is not None:
            login = {"username": address.sentinel_username, "password": address.sentinel_password}
        elif self._is_login_needed and address.password is not None:
            login = {"username": address.username, "password": address.password}
        else:
            login = {}
        try:
            return await ask(self._connect(sentinel, **login), "SENTINEL", *command)
        except AuthenticationError:
            if not login or address.sentinel_password is not None:
                raise
            # Sentinels often have no password where the servers have one.
            answer = await ask(self._connect(sentinel), "SENTINEL", *command)
            self._is_login_needed = False
            return answer


async def _keep_asking(reference: weakref.ref[SentinelFinder]) -> None:
    """For as long as anybody else knows the finder."""
    while True:
        await asyncio.sleep(AGAIN_SECONDS)
        finder = reference()
        if finder is None:
            return
        # Where nobody answers, nobody says that there is another: the one there is stays.
        with suppress(*AWAY):
            await finder.find(None)
        del finder
