"""The embedded servers keep what they are told, start again quickly, and explain what is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from coffee_rt.embedded.server_process import TEST, ServerProblem
from coffee_rt.embedded.servers import EmbeddedPostgres, EmbeddedValkey

pytestmark = pytest.mark.integration


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "postgres", durability=TEST)
    yield server
    server.stop()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(tmp_path / "valkey")
    yield server
    server.stop()


async def _query(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_postgres_keeps_its_data_between_starts(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    await _query(postgres.url, "CREATE TABLE kept AS SELECT 41 + 1 AS answer")
    postgres.stop()
    assert not postgres.is_running
    postgres.start()
    assert await _query(postgres.url, "SELECT answer FROM kept") == 42


async def test_postgres_is_version_18_and_never_root(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    version = await _query(postgres.url, "SHOW server_version_num")
    assert str(version).startswith("18")
    assert postgres.pid is not None
    assert psutil.Process(postgres.pid).uids().effective != 0


async def test_postgres_wants_its_password(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    with pytest.raises(asyncpg.InvalidPasswordError):
        await _query(
            f"postgresql://coffee_rt:wrong@127.0.0.1:{postgres.port}/coffee_rt", "SELECT 1"
        )


async def test_postgres_recovers_after_being_killed(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    await _query(postgres.url, "CREATE TABLE kept AS SELECT 1 AS answer")
    assert postgres.pid is not None
    os.kill(postgres.pid, signal.SIGKILL)
    postgres.stop()
    postgres.start()
    assert await _query(postgres.url, "SELECT answer FROM kept") == 1


async def test_an_interrupted_first_start_is_done_again(postgres: EmbeddedPostgres) -> None:
    staged = postgres.data_dir.with_name("postgres.new")
    staged.mkdir()
    (staged / "PG_VERSION").write_text("18\n")
    postgres.start()
    assert await _query(postgres.url, "SELECT 1") == 1
    assert not staged.exists()


def test_a_folder_with_something_else_is_refused(postgres: EmbeddedPostgres) -> None:
    postgres.data_dir.mkdir()
    (postgres.data_dir / "letters.txt").write_text("dear mother")
    with pytest.raises(ServerProblem, match="not a PostgreSQL data directory"):
        postgres.start()
    assert (postgres.data_dir / "letters.txt").exists()


def test_data_of_another_major_version_is_refused(postgres: EmbeddedPostgres) -> None:
    postgres.data_dir.mkdir()
    (postgres.data_dir / "PG_VERSION").write_text("15\n")
    with pytest.raises(ServerProblem, match=r"PostgreSQL 15.*brings PostgreSQL 18"):
        postgres.start()


def test_valkey_writes_to_disk_before_it_answers_and_never_evicts(valkey: EmbeddedValkey) -> None:
    valkey.start()
    with redis.Redis.from_url(valkey.url) as client:
        assert client.config_get("appendonly")["appendonly"] == "yes"
        assert client.config_get("appendfsync")["appendfsync"] == "always"
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        # A rewrite of the file holds answers up for tens of milliseconds: not at every 64 MB.
        size = client.config_get("auto-aof-rewrite-min-size")["auto-aof-rewrite-min-size"]
        assert int(size) == 512 << 20


def test_valkey_keeps_its_data_after_being_killed(valkey: EmbeddedValkey) -> None:
    valkey.start()
    with redis.Redis.from_url(valkey.url) as client:
        client.set("kept", "yes")
    assert valkey.pid is not None
    os.kill(valkey.pid, signal.SIGKILL)
    valkey.stop()
    valkey.start()
    with redis.Redis.from_url(valkey.url) as client:
        assert client.get("kept") == b"yes"


def test_valkey_wants_its_password(valkey: EmbeddedValkey) -> None:
    valkey.start()
    with (
        redis.Redis(port=valkey.port, retry=Retry(NoBackoff(), 0)) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()


def test_a_server_left_by_an_earlier_run_is_ended_first(valkey: EmbeddedValkey) -> None:
    valkey.start()
    again = EmbeddedValkey(valkey.data_dir)
    again.start()
    try:
        assert not valkey.is_running
        assert again.is_running
    finally:
        again.stop()


def test_servers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; "
        "from coffee_rt.embedded.servers import EmbeddedValkey; "
        "server = EmbeddedValkey(Path(sys.argv[1])); server.start(); "
        "print(server.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "valkey")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    with parent:
        server = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    try:
        server.wait(10)
    except psutil.NoSuchProcess:
        return
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
