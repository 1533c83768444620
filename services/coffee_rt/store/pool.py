"""Connections to PostgreSQL: bounded, recycled, with errors in our families. Also through PgBouncer.

With `statement_cache_size` 0 the pool speaks so that a transaction pooler in front works: no named
statements, no start-up parameters, no session state; every query runs inside an explicit transaction,
because a pooler may give the parse and the execution of one query to two servers otherwise.
A cancelled or failed transaction is rolled back; if even that fails its connection is closed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

import asyncpg

from coffee_rt.errors import Busy, Retryable
from coffee_rt.store.faults import mapped_errors

_ROLLBACK_SECONDS_MAX = 5.0
_IDLE_CONNECTION_SECONDS_MAX = 300.0
_ENDING_SECONDS = 2.0
"""What PostgreSQL may need to end a statement and say so."""
APPLICATION_NAME = "coffee-rt"


class PoolSettings(Protocol):
    """What create_pool reads of runtime.settings.DatabaseSettings."""

    @property
    def url(self) -> Any: ...
    @property
    def pool_size_min(self) -> int: ...
    @property
    def pool_size_max(self) -> int: ...
    @property
    def acquire_seconds_max(self) -> float: ...
    @property
    def command_seconds_max(self) -> float: ...
    @property
    def connection_lifetime_seconds_max(self) -> float: ...
    @property
    def statement_cache_size(self) -> int: ...


class _PlainConnection(asyncpg.Connection):
    """Nothing of ours leaves session state behind, so giving a connection back costs no round trip."""

    opened_at = 0.0

    def get_reset_query(self) -> str:
        return ""


class Pool:
    """Owned by a process's wiring; shared by its tasks. Waiting for a connection is bounded."""

    def __init__(
        self, pool: Any, settings: PoolSettings, statement_seconds_max: float | None = None
    ) -> None:
        self._pool = pool
        self._begin_single = "BEGIN"
        if statement_seconds_max is not None:
            self._begin_single += f"; SET LOCAL statement_timeout = {_ms(statement_seconds_max)}"
        self._acquire_seconds_max = settings.acquire_seconds_max
        self._lifetime_seconds_max = settings.connection_lifetime_seconds_max
        self.is_pooled_outside = settings.statement_cache_size == 0

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """A connection; errors in the block come out as BadData, Retryable, or a bug."""
        with mapped_errors():
            try:
                connection = await self._pool.acquire(timeout=self._acquire_seconds_max)
            except TimeoutError:
                if self._pool.get_size() == self._pool.get_max_size():
                    # All of them are open: it is us who are busy, or the statements they wait for will say more.
                    raise Busy("no database connection became free in time") from None
                raise Retryable("the database could not be reached in time") from None
            try:
                yield connection
            finally:
                # One that was lost has been given back already, and knows nothing of itself.
                opened_at = getattr(connection, "opened_at", time.monotonic())
                if time.monotonic() - opened_at > self._lifetime_seconds_max:
                    await connection.close(timeout=_ROLLBACK_SECONDS_MAX)
                await self._pool.release(connection, timeout=_ROLLBACK_SECONDS_MAX)

    @asynccontextmanager
    async def transaction(self, begin: str = "BEGIN") -> AsyncIterator[Any]:
        """A connection inside a transaction. `begin` may hold more statements after BEGIN: they travel in
        the same round trip. Committed when the block ends; rolled back when it raises."""
        async with self.connection() as connection:
            try:
                await connection.execute(begin)
                yield connection
                await _commit(connection)
            except BaseException:
                await _roll_back(connection)
                raise

    async def fetch(self, query: str, *arguments: Any) -> list[Any]:
        """All rows of one statement, in its own transaction."""
        async with self._single() as connection:
            return list(await connection.fetch(query, *arguments))

    async def fetchrow(self, query: str, *arguments: Any) -> Any:
        async with self._single() as connection:
            return await connection.fetchrow(query, *arguments)

    async def fetchval(self, query: str, *arguments: Any) -> Any:
        async with self._single() as connection:
            return await connection.fetchval(query, *arguments)

    async def execute(self, query: str, *arguments: Any) -> str:
        async with self._single() as connection:
            return str(await connection.execute(query, *arguments))

    def _single(self) -> Any:
        if self.is_pooled_outside:
            return self.transaction(self._begin_single)
        return self.connection()

    async def close(self) -> None:
        """Waits for connections in use, at most a few seconds."""
        try:
            await asyncio.wait_for(self._pool.close(), _ROLLBACK_SECONDS_MAX)
        except TimeoutError:
            self._pool.terminate()


async def create_pool(
    settings: PoolSettings,
    *,
    application_name: str = APPLICATION_NAME,
    statement_seconds_max: float | None = None,
) -> Pool:
    """A pool that also starts while PostgreSQL is away: connections are opened when needed, and
    `pool_size_min` of them at once if it answers.

    `statement_seconds_max` is for PostgreSQL itself, which ends longer statements (TooSlow) also when this
    process is gone; behind a pooler those of single statements only. Ours, `command_seconds_max`, is kept
    above it: it is for a server that says nothing any more."""
    url = settings.url
    dsn = url.get_secret_value() if hasattr(url, "get_secret_value") else str(url)
    server_settings = {"application_name": application_name}
    command_seconds_max = settings.command_seconds_max
    if statement_seconds_max is not None:
        command_seconds_max = max(command_seconds_max, statement_seconds_max + _ENDING_SECONDS)
    if settings.statement_cache_size:
        if statement_seconds_max is not None:
            server_settings["statement_timeout"] = str(_ms(statement_seconds_max))
        # Generic plans of partitioned tables lock every partition (106 locks
        # against 7 for a look-up by id); JIT never pays here.
        server_settings |= {"plan_cache_mode": "force_custom_plan", "jit": "off"}
    pool = asyncpg.create_pool(
        dsn,
        min_size=0,
        max_size=settings.pool_size_max,
        max_queries=2**40,
        max_inactive_connection_lifetime=_IDLE_CONNECTION_SECONDS_MAX,
        command_timeout=command_seconds_max,
        timeout=settings.acquire_seconds_max,
        statement_cache_size=settings.statement_cache_size,
        server_settings=server_settings,
        connection_class=_PlainConnection,
        init=_mark_opened,
    )
    await pool
    made = Pool(pool, settings, statement_seconds_max)
    await _warm(made, min(settings.pool_size_min, settings.pool_size_max))
    return made


async def copy_into(connection: Any, table: str, columns: Sequence[str], payload: bytes) -> None:
    """Binary COPY of an encoded payload, sent as one message."""
    # A memoryview, because asyncpg takes bytes for a file name.
    await connection.copy_to_table(
        table, source=memoryview(payload), columns=list(columns), format="binary"
    )


async def _warm(pool: Pool, connections: int) -> None:
    try:
        async with AsyncExitStack() as stack:
            for _ in range(connections):
                await stack.enter_async_context(pool.connection())
    except Retryable:
        return


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


async def _mark_opened(connection: Any) -> None:
    connection.opened_at = time.monotonic()


async def _commit(connection: Any) -> None:
    status = await connection.execute("COMMIT")
    if status != "COMMIT":
        # COMMIT of a transaction that had failed answers ROLLBACK and raises nothing.
        raise Retryable(f"the transaction was not committed but ended with {status}")


async def _roll_back(connection: Any) -> None:
    if connection.is_closed():
        return
    try:
        if connection.is_in_transaction():
            await connection.execute("ROLLBACK", timeout=_ROLLBACK_SECONDS_MAX)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        connection.terminate()
