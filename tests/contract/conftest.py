"""Every contract test of log and channels runs in memory, on one Valkey, on the master of a Sentinel, on a
Cluster of three, and the log's on redis-server where one is installed; those of the store in memory and on PostgreSQL."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.log_servers import ValkeyCluster, ValkeySentinels, running
from tests.store_harness import WriteStore, a_write_store
from tests.streams_bed import Bed, MemoryBed, RedisBed

_REDIS_SERVER = shutil.which("redis-server")
_KINDS = ["memory", "valkey", "sentinel", "cluster", *(["redis"] if _REDIS_SERVER else [])]


@pytest.fixture(scope="session")
def redis_url(server_folder: Path) -> Iterator[str]:
    """A redis-server of the machine, whatever its version (7.0 is the floor)."""
    assert _REDIS_SERVER is not None
    path = server_folder / "redis.sock"
    command = [_REDIS_SERVER, "--port", "0", "--unixsocket", str(path)]
    command += ["--save", "", "--appendonly", "no", "--dir", str(server_folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _wait_ready(path)
        yield f"unix://{path}"
        process.terminate()


@pytest.fixture(scope="session")
def sentinel_url(server_folder: Path) -> Iterator[str]:
    """A master found through a sentinel; nothing fails over here."""
    servers = ValkeySentinels(server_folder / "sentinel", sentinels=1, replicas=0)
    with running(servers):
        yield servers.url


@pytest.fixture(scope="session")
def cluster_url(server_folder: Path) -> Iterator[str]:
    """Three primaries, so that the four shards live on more than one."""
    servers = ValkeyCluster(server_folder / "cluster")
    with running(servers):
        yield servers.url


def _wait_ready(path: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as client:
            if client.connect_ex(str(path)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("redis-server did not start")


@pytest.fixture(params=_KINDS)
async def bed(request: pytest.FixtureRequest, redis_namespace: str) -> AsyncIterator[Bed]:
    """A log of this test's own."""
    if request.param == "memory":
        made: Bed = MemoryBed()
    else:
        made = RedisBed(request.getfixturevalue(f"{request.param}_url"), redis_namespace)
    yield made
    await made.close()


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.integration)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[WriteStore]:
    """A store of this test's own."""
    is_memory = request.param == "memory"
    url = None if is_memory else request.getfixturevalue("database_url")
    async with a_write_store(url) as made:
        yield made
