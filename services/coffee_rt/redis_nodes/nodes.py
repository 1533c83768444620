"""The servers behind a Redis address: connections to whichever of them holds a key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    ConnectionPool,
    SSLConnection,
    parse_url,
)

from coffee_rt.redis_nodes.cluster import ClusterFinder
from coffee_rt.redis_nodes.connections import (
    ASK_SECONDS_MAX,
    Finder,
    FoundConnection,
    Node,
    NodeConnection,
    tls_context,
)
from coffee_rt.redis_nodes.sentinels import SentinelFinder
from coffee_rt.runtime.settings import RedisSettings


class FollowingPool(ConnectionPool):
    """Hands out no connection to a server that another has replaced, though it may work."""

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        if connection.is_connected and has_moved(connection):
            await connection.disconnect()
        await super().ensure_connection(connection)


class RedisNodes:
    """Made once for each adapter of a process and shared by its tasks; opens nothing by itself.

    `settings` may be just an address.
    """

    def __init__(self, settings: RedisSettings | str) -> None:
        if isinstance(settings, str):
            settings = RedisSettings(url=settings)
        address = settings.address
        self.fails_over = address.fails_over
        """Whether another server takes a dead one's place."""
        self.is_spread = address.mode == "cluster"
        """Whether keys live on several servers."""
        self._finder: Finder | None = None
        if address.mode == "single":
            options: dict[str, Any] = dict(parse_url(settings.url))
        else:
            options = {"username": address.username, "password": address.password}
        given = {name: options.pop(name) for name in list(options) if name.startswith("ssl_")}
        kind = options.pop("connection_class", Connection)
        if kind in (Connection, SSLConnection):
            self._kind: type[AbstractConnection] = NodeConnection
            options["tls"] = tls_context(settings, given) if address.is_tls else None
        else:
            self._kind = cast(type[AbstractConnection], kind)
        self._options = options
        if address.mode == "sentinel":
            self._options["db"] = address.database
            self._finder = SentinelFinder(address, self._to_sentinel)
        elif address.mode == "cluster":
            self._finder = ClusterFinder(address, self._to_node)

    def connection(self, key: bytes | None, **options: Any) -> AbstractConnection:
        """An unopened connection to the server that will hold `key` when it is opened."""
        kind, own = self._plan(key)
        return kind(**{**own, **options})

    def connection_to(self, node: Node, **options: Any) -> AbstractConnection:
        """An unopened connection to one server, whatever it holds."""
        return NodeConnection(**{**self._options, "host": node.host, "port": node.port, **options})

    def pool(self, key: bytes | None, **options: Any) -> ConnectionPool:
        """A redis-py pool to the server that holds `key`; it follows a failover."""
        kind, own = self._plan(key)
        return FollowingPool(connection_class=kind, **{**own, **options})

    def pool_to(self, node: Node, **options: Any) -> ConnectionPool:
        """A redis-py pool to one server, whatever it holds."""
        place = {"host": node.host, "port": node.port}
        return ConnectionPool(
            connection_class=NodeConnection, **{**self._options, **place, **options}
        )

    def learn(self, code: str, text: str, answered_by: str) -> None:
        """What an error reply of a server on `answered_by` (its host) says of where keys are."""
        if self._finder is None:
            return
        if code == "MOVED":
            _, slot, place = text.split(" ")[:3]
            self._finder.moved(int(slot), node_of(place, answered_by))
        elif code in ("READONLY", "CLUSTERDOWN", "MASTERDOWN", "LOADING"):
            self._finder.doubt()

    def doubt(self) -> None:
        """A server that was used was lost: look before the next connection."""
        if self._finder is not None:
            self._finder.doubt()

    async def one_a_node(self, keys: Sequence[bytes]) -> list[bytes]:
        """Of these keys one for each server that holds some. Raises redis's errors."""
        if self._finder is None:
            return list(keys[:1])
        return await self._finder.one_a_node(keys)

    async def nodes(self) -> list[Node] | None:
        """Every server that holds data, a master first; None where there is only the one of the address."""
        return None if self._finder is None else await self._finder.nodes()

    def _plan(self, key: bytes | None) -> tuple[type[AbstractConnection], dict[str, Any]]:
        if self._finder is None:
            return self._kind, self._options
        return FoundConnection, {**self._options, "finder": self._finder, "key": key}

    def _to_sentinel(self, node: Node, **login: Any) -> AbstractConnection:
        return self._to_node(node, **{"username": None, "password": None, "db": 0, **login})

    def _to_node(self, node: Node, **options: Any) -> AbstractConnection:
        return self.connection_to(
            node,
            **{
                "protocol": 2,
                "decode_responses": True,
                "socket_timeout": ASK_SECONDS_MAX,
                "socket_connect_timeout": ASK_SECONDS_MAX,
                "driver_info": None,
                **options,
            },
        )


def has_moved(connection: AbstractConnection | None) -> bool:
    """Whether another server has taken over since this connection was opened: then it is to be opened anew, though it
    may work."""
    return isinstance(connection, FoundConnection) and connection.has_moved


def node_of(place: str, answered_by: str) -> Node:
    """The node a redirection names as host:port; without a host the one that answered."""
    host, _, port = place.rpartition(":")
    return Node(host if host not in ("", "?") else answered_by, int(port))
