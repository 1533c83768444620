"""What an error of PostgreSQL means: bad data, the world being away, or a bug of ours.

Only data that no repetition can save is BadData. "No partition for the row" carries a CHECK's code but is
the world's fault: a partition is made and the entry stays pending until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from coffee_rt.errors import Retryable, TooSlow
from coffee_rt.store.contract import BadData

_RETRYABLE_CLASSES = frozenset({"08", "40", "53", "55", "57", "58"})
"""58: PostgreSQL's disk or system fails, not a statement of ours."""
_REFUSED_CLASSES = frozenset({"28", "3D"})
"""Wrong password, no such database: mended outside, or by a restart with other settings."""
_READ_ONLY = "25006"
_IDLE_IN_TRANSACTION = "25P03"
_TRANSACTION_TIMEOUT = "25P04"
_BAD_DATA_STATES = frozenset({"23502", "54000"})
_CHECK = "23514"
_STATEMENT_ENDED = "57014"
"""By statement_timeout, or by an operator's pg_cancel_backend."""


class MissingPartition(Retryable):
    """A row's day has no partition yet."""


def map_error(error: BaseException) -> BaseException:
    """The error to raise instead: BadData, Retryable, or the same one (a bug, or not PostgreSQL's)."""
    if isinstance(error, asyncpg.PostgresError):
        return _map_postgres(error)
    if isinstance(error, asyncpg.InternalClientError):
        return Retryable(f"PostgreSQL client: {error}")
    if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
        return BadData(f"a value does not fit its parameter: {error}")
    if isinstance(error, asyncpg.InterfaceError) and _is_lost_connection(error):
        return Retryable(f"PostgreSQL connection: {error}")
    if isinstance(error, OSError | asyncio.TimeoutError | EOFError):
        return Retryable(f"PostgreSQL: {error or type(error).__name__}")
    return error


def _map_postgres(error: asyncpg.PostgresError) -> BaseException:
    state = error.sqlstate or ""
    if state == _CHECK and error.constraint_name is None:
        return MissingPartition(str(error))
    if state == _STATEMENT_ENDED:
        return TooSlow(f"PostgreSQL {state}: {error}")
    if state[:2] == "22" or state in _BAD_DATA_STATES or state == _CHECK:
        return BadData(f"{state}: {error}")
    if state[:2] in _RETRYABLE_CLASSES | _REFUSED_CLASSES or state in (
        _READ_ONLY,
        _IDLE_IN_TRANSACTION,
        _TRANSACTION_TIMEOUT,
    ):
        return Retryable(f"PostgreSQL {state}: {error}{_hint(error)}")
    return error


def _hint(error: asyncpg.PostgresError) -> str:
    is_pooler = "startup parameter" in str(error)
    return " (behind a pooler set COFFEE_RT_DATABASE_STATEMENT_CACHE_SIZE=0)" if is_pooler else ""


def _is_lost_connection(error: asyncpg.InterfaceError) -> bool:
    text = str(error)
    return "closed" in text or "closing" in text or "released" in text


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Raises what map_error says for whatever the block raises."""
    try:
        yield
    except Exception as error:
        mapped = map_error(error)
        if mapped is error:
            raise
        raise mapped from error
