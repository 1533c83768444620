"""A process that starts before the schema is there waits for it; nobody has to start it again.

On Kubernetes all parts of an installation begin at once, so this is how each first start goes.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from coffee_rt.store.migrations import migrate
from tests.conftest import run_aside

pytestmark = pytest.mark.integration

START_SECONDS_MAX = 60
WAITING = ("worker", "aggregator", "fanout", "query-api")
"""Not order-api: it takes orders as soon as the log is there, and checks API keys once it has them."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Running:
    """One process and its health."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    def status(self, path: str) -> tuple[int, Any]:
        """(status, body) of a health page; (0, None) while nobody listens."""
        try:
            with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            with error:
                return error.code, json.load(error)
        except OSError:
            return 0, None

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not condition():
            assert self.process.poll() is None, "the process ended"
            assert time.monotonic() < deadline, self.status("/readyz")
            time.sleep(0.1)


@contextmanager
def running(process: str, **environ: str) -> Iterator[Running]:
    port = free_port()
    started = subprocess.Popen(
        [sys.executable, "-m", "coffee_rt", process],
        env={
            "PATH": os.environ["PATH"],
            "COFFEE_RT_HTTP_PORT": str(port),
            "COFFEE_RT_FANOUT_WEBSOCKET_PORT": "0",
            "COFFEE_RT_BREAKER_OPEN_SECONDS": "1",
            **environ,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Running(started, port)
    finally:
        started.terminate()
        started.wait(30)


@pytest.mark.parametrize("process", WAITING)
def test_it_is_alive_and_unready_until_the_schema_is_there(
    process: str, empty_database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    with running(
        process,
        COFFEE_RT_DATABASE_URL=empty_database_url,
        COFFEE_RT_REDIS_URL=valkey_url,
        COFFEE_RT_NAMESPACE=redis_namespace,
    ) as started:
        started.until(lambda: started.status("/livez")[0] == 200)
        started.until(lambda: "coffee-rt migrate" in json.dumps(started.status("/readyz")[1]))
        assert started.status("/readyz")[0] == 503
        run_aside(migrate(empty_database_url))
        started.until(lambda: started.status("/readyz")[0] == 200)


def test_order_api_is_ready_for_the_log_and_refuses_politely_without_keys(
    empty_database_url: str, valkey_url: str, redis_namespace: str
) -> None:
    with running(
        "order-api",
        COFFEE_RT_DATABASE_URL=empty_database_url,
        COFFEE_RT_REDIS_URL=valkey_url,
        COFFEE_RT_NAMESPACE=redis_namespace,
    ) as started:
        started.until(lambda: started.status("/readyz")[0] == 200)
        assert started.status("/livez")[0] == 200
