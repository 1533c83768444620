"""Real servers for every test that asks for one: one Valkey and one PostgreSQL per test session.

Both come from the embedded wheels, start at the first test that needs them and keep nothing on disk
afterwards. Each test has a Redis namespace and a database of its own, so tests may run in any order and,
under xdist, beside each other (a worker process is a session).

A test whose event loop ends with a connection that nobody closed fails, by `WatchedLoop`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from collections.abc import Coroutine, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from coffee_rt.embedded.server_process import TEST, ServerProblem
from coffee_rt.embedded.servers import EmbeddedPostgres, EmbeddedValkey
from tests.certified_postgres import programs

T = TypeVar("T")

collect_ignore = [] if programs() else ["integration/test_postgres_certificates.py"]

_TEMPLATE = "migrated"
_numbers = itertools.count(1)


_left_open: list[str] = []


class WatchedLoop(asyncio.SelectorEventLoop):
    """Says at its end which connections are still open. Otherwise the garbage collector would, as an error of
    whatever test it happens to run in, perhaps minutes later."""

    def close(self) -> None:
        if not self.is_closed():
            transports: Mapping[int, asyncio.Transport] = getattr(self, "_transports")  # noqa: B009
            for transport in list(transports.values()):
                if transport.get_extra_info("socket").fileno() != -1:
                    peer = transport.get_extra_info("peername")
                    _left_open.append(f"{transport!r} to {peer} of {transport.get_protocol()!r}")
        super().close()


class _Policy(asyncio.DefaultEventLoopPolicy):
    _loop_factory = WatchedLoop


asyncio.set_event_loop_policy(_Policy())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, object, object]:
    """After the test's fixtures, its loop among them."""
    result = yield
    left, _left_open[:] = _left_open[:], []
    assert not left, f"connections that nobody closed: {left}"
    return result


def run_aside(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a thread, whatever loop this one has."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """A folder for the session's servers, gone at its end."""
    with tempfile.TemporaryDirectory(prefix="coffee-rt-test-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def valkey_url(server_folder: Path) -> Iterator[str]:
    """The session's Valkey: nothing is written to disk. Use `redis_namespace` for keys."""
    server = EmbeddedValkey(server_folder / "valkey", durability=TEST)
    _start(server)
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def postgres_url(server_folder: Path) -> Iterator[str]:
    """The session's PostgreSQL (as its administrator; fsync off). Use `database_url` for tables."""
    server = EmbeddedPostgres(server_folder / "postgres", durability=TEST, database="admin")
    _start(server)
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def template_database(postgres_url: str) -> str:
    """Name of a database with all migrations applied, which each test's own is a copy of."""
    from coffee_rt.store.migrations import migrate

    run_aside(_execute(postgres_url, f"CREATE DATABASE {_TEMPLATE}"))
    run_aside(migrate(_with_database(postgres_url, _TEMPLATE)))
    return _TEMPLATE


@pytest.fixture
def redis_namespace() -> str:
    """A key prefix nobody else uses."""
    return f"t{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """A database of this test's own with nothing in it."""
    yield from _own_database(postgres_url, "template1")


@pytest.fixture
def database_url(postgres_url: str, template_database: str) -> Iterator[str]:
    """A migrated database of this test's own."""
    yield from _own_database(postgres_url, template_database)


def _own_database(admin_url: str, template: str) -> Iterator[str]:
    name = f"t{next(_numbers)}"
    run_aside(_execute(admin_url, f"CREATE DATABASE {name} TEMPLATE {template}"))
    yield _with_database(admin_url, name)
    run_aside(_execute(admin_url, f"DROP DATABASE {name} WITH (FORCE)"))


def _start(server: EmbeddedPostgres | EmbeddedValkey) -> None:
    """Start on a free port; once more when another program took the port in between."""
    try:
        server.start()
    except ServerProblem:
        server.stop()
        server.port = 0
        server.start()


def _with_database(url: str, database: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
